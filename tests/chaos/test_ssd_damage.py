"""Whatever happens to a file of the SSD tier, what is served is what was published."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from harness import checkpoints
from harness.caches import GIB, WAIT_SECONDS, bytes_of, finish
from harness.fake_source import FakeSource
from stoker.native import CHUNK_BYTES, Pool
from stoker.placement.errors import SourceUnavailable
from stoker.placement.records import CheckpointRef
from stoker.runtime.checkpoint.residency import Residency
from stoker.runtime.checkpoint.settings import CheckpointSettings
from stoker.runtime.checkpoint.source import Source, open_source
from stoker.runtime.checkpoint.tiers import CheckpointCache

MEBIBYTES = 17  # two chunks, the second one short
Rounds = Callable[[int, int], int]
Damage = Callable[[random.Random, bytes], bytes]


def flip_a_bit(chance: random.Random, octets: bytes) -> bytes:
    at = chance.randrange(len(octets))
    return octets[:at] + bytes([octets[at] ^ 1 << chance.randrange(8)]) + octets[at + 1 :]


def truncate(chance: random.Random, octets: bytes) -> bytes:
    return octets[: chance.randrange(len(octets))]


def change_the_length(chance: random.Random, octets: bytes) -> bytes:
    """Bytes go missing in the middle, or come in."""
    at, count = chance.randrange(len(octets)), chance.randrange(1, 5000)
    if chance.random() < 0.5:
        return octets[:at] + octets[at + count :]
    return octets[:at] + chance.randbytes(count) + octets[at:]


class Node:
    """Two remote checkpoints and a local one, all of them on the SSD of one node."""

    def __init__(self, folder: Path) -> None:
        self.ssd_dir = folder / "ssd"
        plain = checkpoints.plain(folder / "plain", MEBIBYTES)
        local = checkpoints.plain(folder / "local", MEBIBYTES, 1)
        packed = checkpoints.packed(checkpoints.plain(folder / "packed", MEBIBYTES, 2))
        self.remote = {
            "s3://fake/plain": FakeSource.of_folder(plain),
            "s3://fake/packed": FakeSource.of_folder(packed),
        }
        self.published = {uri: source.files for uri, source in self.remote.items()}
        self.published[local.as_uri()] = FakeSource.of_folder(local).files
        cache = self.start()
        self.refs = {uri: cache.resolve(uri) for uri in self.published}
        for ref in self.refs.values():
            self.check(cache, ref)
        self.layouts = {d.name: (d / "layout.json").read_bytes() for d in self.ssd_dir.iterdir()}
        self.stop(cache)

    def start(self) -> CheckpointCache:
        return CheckpointCache(
            self.ssd_dir,
            GIB,
            Pool(6 * CHUNK_BYTES),
            CheckpointSettings(),
            source_opener=self.open,
        )

    def stop(self, cache: CheckpointCache) -> None:
        finish(cache)
        cache.close()

    def open(self, uri: str) -> Source:
        return self.remote[uri] if uri in self.remote else open_source(uri)

    def reach(self, reachable: bool) -> None:
        for source in self.remote.values():
            source.before_read = lambda name, offset: None
            if not reachable:
                source.fail_with(SourceUnavailable("The bucket is gone."))

    def check(self, cache: CheckpointCache, ref: CheckpointRef) -> Residency:
        """Open the checkpoint, and compare all that a worker would read."""
        residency = cache.open(ref)
        residency.wait(WAIT_SECONDS)
        published = self.published[ref.uri]
        assert bytes_of(cache, residency) == published["model.safetensors"]
        for name in ("config.json", "tokenizer.json"):
            assert (residency.files_dir / name).read_bytes() == published[name]
        return residency

    def check_layout(self, residency: Residency) -> None:
        assert residency.layout_path.read_bytes() == self.layouts[residency.digest]

    def files(self, ref: CheckpointRef) -> list[Path]:
        """What can be damaged, which is not what an earlier round has emptied."""
        files = (path for path in (self.ssd_dir / ref.digest).rglob("*") if path.is_file())
        return sorted(path for path in files if path.stat().st_size)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Node:
    return Node(tmp_path_factory.mktemp("node"))


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("damage", [flip_a_bit, truncate, change_the_length])
def test_a_damaged_file_of_the_ssd_is_never_served(
    node: Node, damage: Damage, rounds: Rounds
) -> None:
    chance = random.Random(damage.__name__)
    damaged: set[str] = set()
    for number in range(rounds(12, 1000)):
        ref = node.refs[sorted(node.refs)[number % 3]]
        path = chance.choice(node.files(ref))
        path.write_bytes(damage(chance, path.read_bytes()))
        damaged.add(path.parent.name if path.parent.name == "chunks" else path.name)

        # Out of reach of the bucket, what is damaged may be refused; then nothing may be served.
        reachable = number % 2 == 0
        assert served(node, ref, reachable) or not reachable
        assert served(node, ref, True)
    assert len(damaged) > 3


def served(node: Node, ref: CheckpointRef, reachable: bool) -> bool:
    """Whether a restarted node serves the checkpoint; what it serves is compared."""
    node.reach(reachable)
    cache = node.start()
    try:
        node.check_layout(node.check(cache, ref))
    except SourceUnavailable:
        return False
    finally:
        node.stop(cache)
    return True
