"""Progress, cancellation, awaiting and casts of loads, whatever they load from."""

from __future__ import annotations

import asyncio
import gc
import itertools
import shutil
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import stoker
from harness import checkpoints
from harness import s3 as s3_harness
from harness.fake_source import FakeSource
from stoker.deploy.s3server import S3Server
from stoker.native import CHUNK_BYTES, Region
from stoker.placement.errors import (
    BadRequest,
    CheckpointChanged,
    CheckpointMissing,
    ChunkCorrupt,
    SourceUnavailable,
)
from stoker.runtime.checkpoint import bring as module
from stoker.runtime.checkpoint import load_tensors as load_tensors_module
from stoker.runtime.checkpoint import own

MIB = 1 << 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.sharded(tmp_path_factory.mktemp("bring") / "model", mebibytes=200)


def first_file(folder: Path) -> Path:
    return min(folder.glob("*.safetensors"))


def load_file(folder: Path, **options: Any) -> dict[str, torch.Tensor]:
    return stoker.load_file(first_file(folder), **options)


def load_s3(uri: str) -> Callable[..., dict[str, torch.Tensor]]:
    return lambda _, **options: stoker.load_tensors(uri, **options)


@pytest.fixture(params=["file", "folder", "s3"])
def load(request: pytest.FixtureRequest, folder: Path) -> Callable[..., dict[str, torch.Tensor]]:
    if request.param == "s3":
        server: S3Server = request.getfixturevalue("s3_environment")
        return load_s3(s3_harness.upload(server, folder, "bring"))
    return load_file if request.param == "file" else stoker.load_tensors


def loading_threads() -> list[threading.Thread]:
    names = ("stoker-fetch", "stoker-bring", "stoker-async")
    return [thread for thread in threading.enumerate() if thread.name.startswith(names)]


def assert_no_thread_is_left() -> None:
    for thread in loading_threads():
        thread.join(5)
    assert loading_threads() == []


def test_progress_rises_to_the_end_at_a_bounded_rate(
    load: Callable[..., dict[str, torch.Tensor]], folder: Path
) -> None:
    told: list[tuple[int, int, float]] = []
    load(folder, on_progress=lambda done, total: told.append((done, total, time.monotonic())))

    done = [each[0] for each in told]
    assert done == sorted(set(done))
    assert {each[1] for each in told} == {done[-1]}
    times = [each[2] for each in told[:-1]]
    assert all(b - a >= module.REPORT_SECONDS for a, b in itertools.pairwise(times))


def test_an_exception_in_the_callback_ends_the_load(
    load: Callable[..., dict[str, torch.Tensor]], folder: Path, regions: list[Any]
) -> None:
    class Enough(Exception):
        pass

    def enough(done: int, total: int) -> None:
        raise Enough

    with pytest.raises(Enough) as caught:
        load(folder, on_progress=enough)
    assert_no_thread_is_left()
    caught.value.__traceback__ = None
    del caught
    gc.collect()
    assert [region() for region in regions] == [None]


@pytest.fixture
def regions(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Weak references to what loads hold their bytes in."""
    found: list[Any] = []

    class Watched(Region):
        def __init__(self, byte_count: int) -> None:
            super().__init__(byte_count)
            found.append(weakref.ref(self))

    monkeypatch.setattr(module, "Region", Watched)
    return found


def test_a_cancelled_task_stops_its_load_and_leaves_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, regions: list[Any]
) -> None:
    source = FakeSource.of_folder(folder)
    source.before_read = lambda name, offset: time.sleep(0.05)
    monkeypatch.setattr(load_tensors_module, "open_model", lambda _: source)
    monkeypatch.setattr(module, "FETCH_THREADS", 1)

    async def cancelled() -> float:
        begun = asyncio.Event()
        loop = asyncio.get_running_loop()
        task = asyncio.ensure_future(
            stoker.load_tensors_async(
                "s3://any/model",
                on_progress=lambda done, total: loop.call_soon_threadsafe(begun.set),
            )
        )
        await asyncio.wait_for(begun.wait(), 10)
        at = time.monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return time.monotonic() - at

    assert asyncio.run(cancelled()) < 0.5  # all ranges one by one would take 0.8 s
    assert_no_thread_is_left()
    gc.collect()
    assert [region() for region in regions] == [None]


def test_the_event_loop_goes_on_during_a_load(folder: Path) -> None:
    async def counted() -> int:
        ticks = 0
        task = asyncio.ensure_future(stoker.load_file_async(first_file(folder), borrow=False))
        while not task.done():
            await asyncio.sleep(0)
            ticks += 1
        expected = stoker.load_file(first_file(folder))
        assert all(tensor.equal(expected[name]) for name, tensor in (await task).items())
        return ticks

    assert asyncio.run(counted()) > 10
    assert_no_thread_is_left()


def test_what_an_awaited_load_raises_arrives(tmp_path: Path) -> None:
    with pytest.raises(CheckpointMissing):
        asyncio.run(_awaited(stoker.load_file_async(tmp_path / "none.safetensors")))


async def _awaited(awaitable: Any) -> Any:
    return await awaitable


def test_a_source_that_fails_ends_the_load_with_its_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(name: str, offset: int) -> None:
        if offset >= CHUNK_BYTES:
            raise SourceUnavailable("Expected an answer, found none.", "Try again.")

    source = FakeSource.of_folder(folder)
    source.before_read = fail
    monkeypatch.setattr(load_tensors_module, "open_model", lambda _: source)
    with pytest.raises(SourceUnavailable, match="found none"):
        stoker.load_tensors("s3://any/model")
    assert_no_thread_is_left()


@pytest.mark.parametrize("times", [1, 2])
def test_a_chunk_that_comes_damaged_is_fetched_once_more(
    packed_tiny: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    source = FakeSource.of_folder(packed_tiny)
    read, left = source.read, times

    def damaged(name: str, offset: int, into: memoryview, version: str | None) -> None:
        nonlocal left
        read(name, offset, into, version)
        if left:
            into[-1] ^= 1
            left -= 1

    monkeypatch.setattr(source, "read", damaged)
    monkeypatch.setattr(load_tensors_module, "open_model", lambda _: source)
    if times == 2:
        with pytest.raises(ChunkCorrupt):
            stoker.load_tensors("s3://any/model")
        return
    found, expected = stoker.load_tensors("s3://any/model"), stoker.load_tensors(packed_tiny)
    assert all(found[name].equal(expected[name]) for name in expected)


def test_a_load_that_is_stopped_ends_wherever_it_is(folder: Path, regions: list[Any]) -> None:
    async def stopped() -> None:
        loop, begun, go = asyncio.get_running_loop(), asyncio.Event(), threading.Event()

        def hold(done: int, total: int) -> None:
            loop.call_soon_threadsafe(begun.set)
            go.wait(10)

        task = asyncio.ensure_future(
            stoker.load_file_async(first_file(folder), dtype=torch.float16, on_progress=hold)
        )
        await asyncio.wait_for(begun.wait(), 10)
        task.cancel()
        loop.call_soon(go.set)
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(stopped())
    assert_no_thread_is_left()
    gc.collect()
    assert [region() for region in regions] == [None]


def test_a_file_that_changes_while_it_is_read_is_refused(folder: Path, tmp_path: Path) -> None:
    path = shutil.copy(first_file(folder), tmp_path / "model.safetensors")

    def touch(done: int, total: int) -> None:
        if done < total:
            Path(path).write_bytes(Path(path).read_bytes())

    with pytest.raises(CheckpointChanged, match=r"model\.safetensors"):
        stoker.load_file(path, on_progress=touch)


CASTS = [torch.bfloat16, torch.float16, torch.float32, torch.float64]


@pytest.mark.parametrize("asked", CASTS)
def test_a_cast_is_that_of_torch_and_leaves_other_dtypes_alone(
    tmp_path: Path, asked: torch.dtype
) -> None:
    random = torch.randn(32, 6)
    kinds = [
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
        *(torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz),
    ]
    tensors = {str(kind): random.to(kind) for kind in kinds}
    tensors |= {
        "scale": torch.randint(100, 150, (8,), dtype=torch.uint8).view(torch.float8_e8m0fnu),
        "pairs": torch.randint(0, 255, (8,), dtype=torch.uint8).view(torch.float4_e2m1fn_x2),
        "bool": random > 0,
        "int": random.to(torch.int32),
        "complex": torch.complex(random, random),
        "empty": torch.empty(0, 3),
    }
    stoker.save_file(tensors, tmp_path / "t.safetensors")

    found = stoker.load_file(tmp_path / "t.safetensors", dtype=asked)

    assert list(found) == list(stoker.load_file(tmp_path / "t.safetensors"))
    kept = {"pairs", "bool", "int", "complex"}
    for name, tensor in tensors.items():
        expected = tensor if name in kept else tensor.to(asked)
        assert found[name].dtype == expected.dtype, name
        assert found[name].shape == expected.shape
        if expected.numel():
            assert found[name].view(torch.uint8).equal(expected.view(torch.uint8)), name


def test_a_cast_over_many_windows_is_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tensors smaller and larger than the window, while reading waits for the casts."""
    monkeypatch.setattr(own, "WINDOW_BYTES", 4 * CHUNK_BYTES)
    sizes = [3, 70 * MIB // 4, 1000, 5 * MIB, 120 * MIB // 4, 7, 9 * MIB]
    tensors = {f"t{n}": torch.randn(size) for n, size in enumerate(sizes)}
    stoker.save_file(tensors, tmp_path / "t.safetensors")

    found = stoker.load_file(tmp_path / "t.safetensors", dtype=torch.bfloat16)

    assert all(found[name].equal(tensor.bfloat16()) for name, tensor in tensors.items())


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn, "bfloat16"])
def test_a_dtype_that_weights_are_not_cast_to_is_refused(folder: Path, dtype: Any) -> None:
    with pytest.raises(BadRequest, match="dtype"):
        load_file(folder, dtype=dtype)
