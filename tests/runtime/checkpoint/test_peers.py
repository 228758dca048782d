"""Chunks from another node's cache over real HTTP."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import checkpoints, web
from harness.agent_server import serving
from harness.caches import WAIT_SECONDS, MakeCache, bytes_of, fake, finish, loaded, opener
from harness.fake_source import FakeSource
from harness.s3_faults import Asked, Fault, proxied
from stoker.native import CHUNK_BYTES
from stoker.placement.errors import (
    CheckpointMissing,
    ChunkCorrupt,
    SourceUnavailable,
    StorageFull,
)
from stoker.placement.records import CheckpointRef
from stoker.runtime.checkpoint.source_peer import PeerAccess, PeerSource
from stoker.runtime.checkpoint.source_range import RangeReader
from stoker.runtime.checkpoint.tiers import CheckpointCache

TOKEN = "cluster-token-of-the-tests"
WEIGHTS = "model.safetensors"
URI = "s3://fake/m"
Peer = tuple[CheckpointCache, str, CheckpointRef]


@pytest.fixture
def packed(tmp_path: Path) -> FakeSource:
    """A packed checkpoint of three chunks and its source."""
    folder = checkpoints.plain(tmp_path / "m", 40)
    checkpoints.write_manifest(folder)
    return FakeSource.of_folder(folder)


@pytest.fixture
def peer(packed: FakeSource, make_cache: MakeCache, tmp_path: Path) -> Iterator[Peer]:
    """Another node that has the whole checkpoint, and where it listens."""
    cache = make_cache(opener(m=packed), folder="peer")
    ref, _ = loaded(cache, URI)
    with serving(cache, TOKEN, tmp_path / "logs") as address:
        yield cache, address, ref


def load(
    make_cache: MakeCache, source: FakeSource, peers: list[str], token: str = TOKEN
) -> tuple[CheckpointCache, bytes]:
    """What a node reads that has these peers; `source.reads` is what it took from its source."""
    cache = make_cache(opener(m=source), cluster_token=token)
    ref = cache.resolve(URI)
    source.reads.clear()
    residency = cache.open(ref, peers=peers)
    residency.wait(WAIT_SECONDS)
    return cache, bytes_of(cache, residency)


def test_a_load_takes_every_chunk_from_a_peers_memory(
    peer: Peer, packed: FakeSource, make_cache: MakeCache
) -> None:
    cache, found = load(make_cache, packed, [peer[1]])
    finish(cache)

    assert found == packed.files[WEIGHTS]
    assert packed.reads == []
    # What peers send says nothing of how fast the source is.
    assert cache.bandwidths()[0] == 0 < cache.bandwidths()[2]
    assert cache.residents() == peer[0].residents()


def test_a_load_takes_every_chunk_from_a_peers_disk(
    packed: FakeSource, make_cache: MakeCache, tmp_path: Path
) -> None:
    first = make_cache(opener(m=packed), folder="peer")
    loaded(first, URI)
    finish(first)
    restarted = make_cache(opener(m=packed), folder="peer")

    with serving(restarted, TOKEN, tmp_path / "logs") as address:
        _, found = load(make_cache, packed, [address])

    assert found == packed.files[WEIGHTS]
    assert packed.reads == []


def test_chunks_without_a_known_digest_never_come_from_a_peer(
    tmp_path: Path, make_cache: MakeCache
) -> None:
    source = FakeSource.of_folder(checkpoints.plain(tmp_path / "m", 17))
    other = make_cache(opener(m=source), folder="peer")
    loaded(other, URI)

    with (
        serving(other, TOKEN, tmp_path / "logs") as address,
        proxied(f"http://{address}") as proxy,
    ):
        _, found = load(make_cache, source, [proxy.url.removeprefix("http://")])

    assert found == source.files[WEIGHTS]
    assert proxy.asked == []


@pytest.mark.parametrize(
    "fault",
    [
        Fault(keep=0.5),
        Fault(silent=True),
        Fault(bytes_per_second=10e3),
        Fault(extra_length=100),
        Fault(503, "busy"),
        Fault(404, "absent"),
        Fault(500, "broken"),
    ],
    ids=str,
)
def test_a_peer_that_fails_costs_time_but_neither_the_load_nor_its_bytes(
    fault: Fault, peer: Peer, packed: FakeSource, make_cache: MakeCache
) -> None:
    with proxied(f"http://{peer[1]}", lambda asked: fault) as proxy:
        begun = time.monotonic()
        _, found = load(make_cache, packed, [proxy.url.removeprefix("http://")])
        seconds = time.monotonic() - begun

    assert found == packed.files[WEIGHTS]
    assert packed.reads
    assert proxy.faults > 0
    assert seconds < 10


def test_a_peer_that_lacks_one_chunk_is_asked_for_the_others(
    peer: Peer, packed: FakeSource, make_cache: MakeCache
) -> None:
    def lacks(asked: Asked) -> Fault | None:
        return Fault(404, "absent") if asked.key.endswith("/1") else None

    with proxied(f"http://{peer[1]}", lacks) as proxy:
        _, found = load(make_cache, packed, [proxy.url.removeprefix("http://")])

    assert found == packed.files[WEIGHTS]
    assert {offset // CHUNK_BYTES for _, offset in packed.reads} == {1}


def test_a_peer_that_sends_wrong_bytes_is_not_believed_and_not_asked_again(
    peer: Peer, packed: FakeSource, make_cache: MakeCache
) -> None:
    with proxied(f"http://{peer[1]}", lambda asked: Fault(flip_at=5_000_000)) as proxy:
        cache, found = load(make_cache, packed, [proxy.url.removeprefix("http://")])

    assert found == packed.files[WEIGHTS]
    again = [asked for asked in proxy.asked if asked.nth > 0]
    assert again == []
    assert 0 in {offset // CHUNK_BYTES for _, offset in packed.reads}
    assert cache._context.pool.free_count == 8 - 3


def test_a_source_that_lies_after_a_peer_has_lied_is_refused(
    peer: Peer, packed: FakeSource, make_cache: MakeCache
) -> None:
    weights = packed.files[WEIGHTS]
    flipped = FakeSource({**packed.files, WEIGHTS: weights[:-9] + b"!" + weights[-8:]})

    with (
        proxied(f"http://{peer[1]}", lambda asked: Fault(flip_at=1_000_000)) as proxy,
        pytest.raises(ChunkCorrupt),
    ):
        load(make_cache, flipped, [proxy.url.removeprefix("http://")])


def test_a_wrong_token_gets_no_chunk(peer: Peer, packed: FakeSource, make_cache: MakeCache) -> None:
    _, found = load(make_cache, packed, [peer[1]], token="another")

    assert found == packed.files[WEIGHTS]
    assert packed.reads


def test_a_peer_that_is_gone_is_done_without(packed: FakeSource, make_cache: MakeCache) -> None:
    _, found = load(make_cache, packed, ["127.0.0.1:9"])

    assert found == packed.files[WEIGHTS]


def test_any_range_is_read_exactly(peer: Peer, packed: FakeSource) -> None:
    cache, address, ref = peer
    manifest = cache._resolved[ref.digest]
    source = PeerSource(address, PeerAccess(TOKEN, RangeReader(proxied=False)), manifest)
    payload = packed.files[WEIGHTS]

    for offset, count in (
        (0, 1),
        (CHUNK_BYTES - 3, 6),
        (5, 2 * CHUNK_BYTES + 9),
        (len(payload) - 7, 7),
    ):
        into = bytearray(count)
        source.read(WEIGHTS, offset, memoryview(into), WAIT_SECONDS)
        assert into == payload[offset : offset + count]
    for name, offset in ((WEIGHTS, len(payload)), ("other.safetensors", 0)):
        with pytest.raises(CheckpointMissing):
            source.read(name, offset, memoryview(bytearray(1)), WAIT_SECONDS)


def test_what_a_peer_refuses_is_a_typed_error(peer: Peer) -> None:
    cache, address, ref = peer
    manifest = cache._resolved[ref.digest]
    stranger = PeerSource(address, PeerAccess("wrong", RangeReader(proxied=False)), manifest)

    with pytest.raises(SourceUnavailable, match="401"):
        stranger.read(WEIGHTS, 0, memoryview(bytearray(1)), WAIT_SECONDS)


@pytest.mark.parametrize(
    ("path", "span", "status"),
    [
        ("{digest}/0", None, 200),
        ("{digest}/0", "bytes=5-9", 206),
        ("{digest}/0", "bytes=9-5", 400),
        ("{digest}/0", "bytes=0-99999999", 400),
        ("{digest}/0", "bytes=-5", 400),
        ("{digest}/3", None, 404),
        ("{digest}/-1", None, 404),
        ("{digest}/1e1", None, 404),
        ("{unknown}/0", None, 404),
        ("..%2F..%2Fetc/0", None, 404),
    ],
)
def test_the_route_answers_what_it_has(
    path: str, span: str | None, status: int, peer: Peer, packed: FakeSource
) -> None:
    where = path.format(digest=peer[2].digest, unknown="a" * 64)
    url = f"http://{peer[1]}/chunks/{where}"
    headers = web.signed(TOKEN, "GET", url) | ({"Range": span} if span else {})

    answer = web.call("GET", url, None, headers)

    assert answer.status == status
    if status == 206:
        assert answer.body == packed.files[WEIGHTS][5:10]
        assert answer.headers["content-range"] == f"bytes 5-9/{CHUNK_BYTES}"
    if status == 200:
        assert answer.body == packed.files[WEIGHTS][:CHUNK_BYTES]


def test_a_lent_chunk_stays_until_it_is_given_back(
    packed: FakeSource, make_cache: MakeCache, tmp_path: Path
) -> None:
    cache = make_cache(opener(m=packed, n=fake(tmp_path, "n")), chunks=3)
    ref, residency = loaded(cache, URI)
    finish(cache)
    lent = cache.lend(ref.digest, 2)
    residency.close()
    assert lent is not None

    with pytest.raises(StorageFull):
        cache.open(cache.resolve("s3://fake/n"))
    assert lent.read(0, 9) == packed.files[WEIGHTS][2 * CHUNK_BYTES :][:9]
    lent.close()
    loaded(cache, "s3://fake/n")
