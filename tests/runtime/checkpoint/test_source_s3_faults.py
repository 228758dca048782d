"""A load from a real S3 server whose answers a proxy breaks."""

from __future__ import annotations

import itertools
import json
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from harness import checkpoints
from harness import s3 as s3_harness
from harness.caches import WAIT_SECONDS, MakeCache, bytes_of
from harness.s3_faults import (
    Asked,
    Fault,
    FaultProxy,
    Plan,
    for_byte,
    for_weights,
    proxied,
    sometimes,
)
from harness.waiting import eventually
from stoker.deploy.s3server import S3Server
from stoker.native import CHUNK_BYTES, digest
from stoker.placement.errors import (
    CheckpointChanged,
    CheckpointForbidden,
    ChunkCorrupt,
    SourceUnavailable,
    StokerError,
)
from stoker.runtime.checkpoint.fetcher import CONNECTIONS
from stoker.runtime.checkpoint.manifest import MANIFEST_NAME
from stoker.runtime.checkpoint.settings import CheckpointSettings
from stoker.runtime.checkpoint.source import open_source
from stoker.runtime.checkpoint.tiers import CheckpointCache

MEBIBYTES = 56
WEIGHTS = "model.safetensors"
UNAVAILABLE = Fault(503, "SlowDown")
EXPIRED = Fault(403, "ExpiredToken")
_prefixes = itertools.count()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed checkpoint of random bytes, four chunks long."""
    folder = checkpoints.plain(tmp_path_factory.mktemp("faults") / "m", MEBIBYTES)
    checkpoints.write_manifest(folder)
    return folder


@pytest.fixture(scope="module")
def uri(s3: S3Server, folder: Path) -> str:
    return s3_harness.upload(s3, folder, "faults")


@pytest.fixture(scope="module")
def weights(folder: Path) -> bytes:
    return (folder / WEIGHTS).read_bytes()


Proxied = Callable[..., FaultProxy]


@pytest.fixture
def proxy(s3_environment: S3Server) -> Iterator[Proxied]:
    with ExitStack() as stack:

        def start(plan: Plan = lambda asked: None) -> FaultProxy:
            return stack.enter_context(proxied(s3_environment.endpoint_url, plan))

        yield start


def load(
    make_cache: MakeCache, proxy: FaultProxy, uri: str, seconds: float = WAIT_SECONDS
) -> tuple[float, bytes]:
    """Seconds from the URI to the last byte, and the bytes."""
    cache = cache_of(make_cache, proxy)
    begun = time.monotonic()
    residency = cache.open(cache.resolve(uri))
    residency.wait(seconds)
    return time.monotonic() - begun, bytes_of(cache, residency)


def cache_of(make_cache: MakeCache, proxy: FaultProxy) -> CheckpointCache:
    # A checkpoint on the SSD would not be fetched again.
    return make_cache(settings=CheckpointSettings(proxy.url), ssd_bytes=1 << 20)


def ends(weights: bytes) -> list[int]:
    return [min(at + CHUNK_BYTES, len(weights)) - 1 for at in range(0, len(weights), CHUNK_BYTES)]


def covering(through: FaultProxy, position: int) -> int:
    """How often a byte of the weights was asked for."""
    return sum(
        (asked.first or 0) <= position <= (asked.last or 0)
        for asked in through.asked
        if asked.key.endswith(WEIGHTS)
    )


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_three_in_ten_answers_unavailable_cost_at_most_three_tries_a_chunk(
    seed: int, proxy: Proxied, make_cache: MakeCache, uri: str, weights: bytes
) -> None:
    refuse = sometimes(seed, 0.3, UNAVAILABLE)
    # Three refusals in a row for the same bytes are more than is promised to be outlasted.
    through = proxy(lambda asked: refuse(asked) if asked.nth < 2 else None)

    _, found = load(make_cache, through, uri)

    assert found == weights
    assert through.faults >= 2
    assert max(covering(through, at) for at in range(0, len(weights), 1 << 19)) <= 3
    assert through.body_bytes <= 1.5 * len(weights)


@pytest.mark.parametrize("seed", [1, 2])
def test_one_connection_of_10_kb_per_second_at_most_doubles_the_load(
    seed: int, proxy: Proxied, make_cache: MakeCache, uri: str, weights: bytes
) -> None:
    slow_end = random.Random(seed).choice(ends(weights))
    clean, slowed = proxy(), proxy(for_weights(Fault(bytes_per_second=10e3), end=slow_end))
    for through in (clean, slowed):
        through.bytes_per_second = 10e6  # as much as object stores give one connection

    clean_seconds, _ = load(make_cache, clean, uri)
    slowed_seconds, found = load(make_cache, slowed, uri)

    assert found == weights
    assert slowed.faults == 1
    assert slowed_seconds <= 2 * clean_seconds
    assert slowed.body_bytes <= 1.1 * len(weights)
    assert sum(asked.last in ends(weights) for asked in slowed.asked) == len(ends(weights)) + 1


def test_a_slow_connection_among_fast_ones_is_given_up_at_once(
    proxy: Proxied, make_cache: MakeCache, uri: str, weights: bytes
) -> None:
    through = proxy(for_weights(Fault(bytes_per_second=10e3), end=ends(weights)[0]))

    seconds, found = load(make_cache, through, uri)

    assert found == weights
    assert seconds < 5


def test_a_connection_that_falls_silent_is_tried_again_within_10_seconds(
    proxy: Proxied, make_cache: MakeCache, uri: str, weights: bytes
) -> None:
    through = proxy(for_weights(Fault(silent=True)))  # every chunk's first, so none can compare

    _, found = load(make_cache, through, uri)

    assert found == weights
    for end in ends(weights):
        first, second = (a.at_seconds for a in through.asked if a.last == end)
        assert second - first <= 10


@pytest.mark.parametrize(
    "fault", [Fault(keep=0.5), Fault(extra_length=-1000), Fault(extra_length=1000)], ids=str
)
def test_a_body_of_the_wrong_length_is_fetched_again(
    fault: Fault, proxy: Proxied, make_cache: MakeCache, uri: str, weights: bytes
) -> None:
    through = proxy(for_weights(fault, end=ends(weights)[1]))

    _, found = load(make_cache, through, uri)

    assert through.faults == 1
    assert found == weights
    assert through.body_bytes <= 1.5 * len(weights)


def test_bodies_that_always_end_early_are_never_served(
    proxy: Proxied, make_cache: MakeCache, uri: str
) -> None:
    through = proxy(for_weights(Fault(keep=0.5), times=99))

    with pytest.raises(SourceUnavailable, match=r"faults/model\.safetensors.*body that ended"):
        load(make_cache, through, uri)


@pytest.mark.parametrize("position", [0, 12_345_678, CHUNK_BYTES, 3 * CHUNK_BYTES + 7])
def test_a_bit_that_flips_once_is_fetched_again(
    position: int, proxy: Proxied, make_cache: MakeCache, uri: str, weights: bytes
) -> None:
    through = proxy(for_byte(Fault(flip_at=position), position))

    _, found = load(make_cache, through, uri)

    assert found == weights
    assert through.faults == 1
    assert covering(through, position) == 2


def test_a_bit_that_always_flips_is_refused_with_file_offset_and_both_digests(
    proxy: Proxied, make_cache: MakeCache, uri: str, weights: bytes
) -> None:
    end = ends(weights)[2]
    through = proxy(for_byte(Fault(flip_at=end - 5), end - 5, times=99))

    with pytest.raises(ChunkCorrupt) as caught:
        load(make_cache, through, uri)

    chunk = weights[2 * CHUNK_BYTES : end + 1]
    flipped = chunk[:-6] + bytes([chunk[-6] ^ 1]) + chunk[-5:]
    assert caught.value.details == {
        "file": WEIGHTS,
        "offset": 2 * CHUNK_BYTES,
        "expected": digest(chunk).hex(),
        "found": digest(flipped).hex(),
    }
    assert covering(through, end - 5) == 2


@pytest.mark.parametrize("packed", [True, False])
def test_an_object_replaced_in_mid_load_is_refused(
    packed: bool, proxy: Proxied, make_cache: MakeCache, s3: S3Server, folder: Path, weights: bytes
) -> None:
    prefix = f"replaced-{next(_prefixes)}"
    target = s3_harness.upload(s3, folder, prefix)
    s3_client = s3_harness.client(s3)
    if not packed:
        s3_client.delete_object(Bucket=s3_harness.BUCKET, Key=f"{prefix}/{MANIFEST_NAME}")
    other = weights[:-1] + bytes([weights[-1] ^ 1])
    last = ends(weights)[3]

    replacing = threading.Lock()
    replaced = []

    def replace_before_the_last(asked: Asked) -> None:
        if asked.last != last:
            return
        with replacing:  # a second try waits as well
            if not replaced:
                eventually(lambda: through.body_bytes >= CHUNK_BYTES)  # a version has been met
                key = f"{prefix}/{WEIGHTS}"
                s3_client.put_object(Bucket=s3_harness.BUCKET, Key=key, Body=other)
                replaced.append(asked)

    through = proxy()
    through.before = replace_before_the_last

    with pytest.raises(CheckpointChanged, match=WEIGHTS):
        load(make_cache, through, target)


def test_credentials_that_expire_are_read_anew_once(
    proxy: Proxied, make_cache: MakeCache, uri: str, weights: bytes
) -> None:
    left = [EXPIRED] * CONNECTIONS

    def refuse_the_first(asked: Asked) -> Fault | None:
        hit = left and asked.nth == 0 and asked.key.endswith(WEIGHTS)
        return left.pop() if hit else None

    through = proxy(refuse_the_first)

    _, found = load(make_cache, through, uri)

    assert found == weights
    assert through.faults == CONNECTIONS
    assert max(through.tries().values()) <= 3


def test_a_listing_goes_on_after_credentials_have_expired(proxy: Proxied, uri: str) -> None:
    through = proxy(lambda asked: EXPIRED if len(through.asked) == 1 else None)

    files = open_source(uri, CheckpointSettings(through.url)).list()

    assert WEIGHTS in {file.name for file in files}
    assert len(through.asked) == 2


@pytest.mark.parametrize("during", ["listing", "weights"])
def test_credentials_that_stay_refused_are_told_within_5_seconds_and_2_more_calls(
    during: str, proxy: Proxied, make_cache: MakeCache, uri: str, weights: bytes
) -> None:
    plan = for_weights(EXPIRED, times=99) if during == "weights" else lambda asked: EXPIRED
    through = proxy(plan)
    begun = time.monotonic()

    with pytest.raises(CheckpointForbidden, match="ExpiredToken"):
        load(make_cache, through, uri)

    assert time.monotonic() - begun < 5
    needed = CONNECTIONS if during == "weights" else 1
    assert through.faults <= needed + 2


def test_an_endpoint_that_refuses_connections_is_unavailable_within_5_seconds(
    s3_environment: S3Server, uri: str
) -> None:
    with socket.socket() as unbound:
        unbound.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{unbound.getsockname()[1]}"
        source = open_source(uri, CheckpointSettings(endpoint))
        begun = time.monotonic()

        for ask in (
            source.list,
            lambda: source.read(WEIGHTS, 0, memoryview(bytearray(9)), None),
        ):
            with pytest.raises(SourceUnavailable, match="Expected to reach s3://"):
                ask()

    assert time.monotonic() - begun < 5


def test_a_signature_never_shows_in_an_error(proxy: Proxied, uri: str) -> None:
    through = proxy(for_weights(Fault(403, "AccessDenied"), times=99))
    source = open_source(uri, CheckpointSettings(through.url))

    with pytest.raises(StokerError) as caught:
        source.read(WEIGHTS, 0, memoryview(bytearray(9)), None)

    assert "X-Amz" not in json.dumps(caught.value.to_wire())


def test_ranges_go_through_the_proxy_that_the_environment_names(
    s3_environment: S3Server,
    proxy: Proxied,
    uri: str,
    weights: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    through = proxy()
    for name in ("no_proxy", "NO_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTP_PROXY", through.url)
    # Another region makes another client, which reads the environment anew.
    settings = CheckpointSettings(s3_environment.endpoint_url, "us-proxied-1")
    into = bytearray(1000)

    open_source(uri, settings).read(WEIGHTS, 5, memoryview(into), None)

    assert bytes(into) == weights[5:1005]
    assert [(asked.first, asked.last) for asked in through.asked] == [(5, 1004)]
