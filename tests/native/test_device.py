"""The device stage over a fake CUDA driver that checks every call."""

from __future__ import annotations

import ctypes
import gc
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.fake_cuda import LEAKS_OF_A_DEVICE, FakeCuda, checked
from harness.native_load import TAIL_BYTES, TOTAL_BYTES, Bench
from stoker.native import (
    CHUNK_BYTES,
    Cancelled,
    ChunkError,
    Device,
    DeviceError,
    DeviceMemory,
    DeviceOutOfMemory,
    Load,
    PinnedRange,
    Progress,
    Region,
    device_count,
)

KDL_CUDA = 2
SIZES = [CHUNK_BYTES, TAIL_BYTES]


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> FakeCuda:
    return FakeCuda(tmp_path_factory.mktemp("cuda"))


@pytest.fixture
def cuda(driver: FakeCuda) -> Iterator[FakeCuda]:
    with checked(driver):
        yield driver


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def window_load(
    cuda: FakeCuda, bench: Bench, slots: int = 1, ordinal: int = 0
) -> tuple[Load, DeviceMemory, Progress]:
    device = Device(ordinal, cuda.path)
    memory = DeviceMemory(device, TOTAL_BYTES)
    window = PinnedRange(device, Region(slots * CHUNK_BYTES))
    progress = Progress(2, TOTAL_BYTES)
    load = Load.into_device(memory, window, SIZES, bench.digests, progress)
    return load, memory, progress


def read_whole(load: Load, bench: Bench) -> None:
    load.read(bench.requests, 2)
    load.finish()


@pytest.mark.parametrize("threads", [1, 4])
def test_a_file_reaches_the_device_through_a_smaller_window(
    cuda: FakeCuda, bench: Bench, threads: int
) -> None:
    load, memory, progress = window_load(cuda, bench)
    load.read(bench.requests, threads)
    load.finish()
    assert progress.watermark_bytes == TOTAL_BYTES
    assert cuda.read(memory.address, TOTAL_BYTES) == bench.octets
    assert cuda.registered_peak_bytes == CHUNK_BYTES
    progress.complete()


def test_chunks_of_the_network_reach_the_device(cuda: FakeCuda, bench: Bench) -> None:
    load, memory, _ = window_load(cuda, bench)
    for ordinal in (1, 0):
        begin = ordinal * CHUNK_BYTES
        load.fill(ordinal)[:] = bench.octets[begin : begin + SIZES[ordinal]]
        assert load.commit(ordinal) == bench.digests[ordinal]
    load.finish()
    assert cuda.read(memory.address, TOTAL_BYTES) == bench.octets


def test_a_resident_pool_is_pinned_once_and_uploaded_to_two_devices(
    cuda: FakeCuda, bench: Bench
) -> None:
    bench.load.read(bench.requests)
    pinned = PinnedRange(Device(0, cuda.path), bench.pool)
    assert pinned.chunk_count == bench.pool.chunk_count
    for ordinal in (0, 1):
        memory = DeviceMemory(Device(ordinal, cuda.path), TOTAL_BYTES)
        progress = Progress(2, TOTAL_BYTES)
        memory.upload(pinned, bench.chunks, progress)
        assert progress.watermark_bytes == TOTAL_BYTES
        assert cuda.read(memory.address, TOTAL_BYTES) == bench.octets


def test_a_load_may_end_in_the_pool_and_on_the_device(cuda: FakeCuda, bench: Bench) -> None:
    device = Device(0, cuda.path)
    memory = DeviceMemory(device, TOTAL_BYTES)
    progress = Progress(2, TOTAL_BYTES)
    load = Load.into_device(
        memory, PinnedRange(device, bench.pool), SIZES, bench.digests, progress, bench.chunks
    )
    load.read(bench.requests)
    load.finish()
    assert bench.mapped() == bench.octets
    assert cuda.read(memory.address, TOTAL_BYTES) == bench.octets


def test_nothing_is_published_before_its_copy_has_arrived(cuda: FakeCuda, bench: Bench) -> None:
    load, _, progress = window_load(cuda, bench, slots=2)
    cuda.hold(True)
    load.read(bench.requests)
    with pytest.raises(TimeoutError):
        progress.wait(1, 0.1)
    cuda.hold(False)
    load.finish()
    assert progress.wait(TOTAL_BYTES, 0) == TOTAL_BYTES


def test_a_corrupt_chunk_never_reaches_the_device(cuda: FakeCuda, bench: Bench) -> None:
    bench.path.write_bytes(bench.octets[:-1] + bytes([bench.octets[-1] ^ 1]))
    load, memory, progress = window_load(cuda, bench)
    with pytest.raises(ChunkError):
        load.read(bench.requests)
    load.finish()
    assert not progress.is_ready(1)
    assert cuda.read(memory.address + CHUNK_BYTES, TAIL_BYTES) == bytes(TAIL_BYTES)


def test_cancelling_wakes_who_waits_for_the_window(cuda: FakeCuda, bench: Bench) -> None:
    load, _, _ = window_load(cuda, bench)
    load.fill(0)
    canceller = threading.Timer(0.1, load.cancel)
    canceller.start()
    began = time.monotonic()
    with pytest.raises(Cancelled):
        load.fill(1)
    assert time.monotonic() - began < 10
    canceller.join()


@pytest.mark.parametrize(
    "function", ["cuMemcpyHtoDAsync_v2", "cuEventCreate", "cuEventRecord", "cuEventSynchronize"]
)
def test_a_failing_driver_ends_the_load_with_its_cause(
    cuda: FakeCuda, bench: Bench, function: str
) -> None:
    load, _, progress = window_load(cuda, bench)
    cuda.fail(function, 1, 719)
    with pytest.raises(DeviceError, match="719") as caught:
        read_whole(load, bench)
    assert (caught.value.code, caught.value.call) == (719, function)
    assert progress.state == "failed"
    assert function in progress.error


def test_a_full_device_is_a_memory_error_of_its_own(cuda: FakeCuda) -> None:
    device = Device(0, cuda.path)
    with pytest.raises(DeviceOutOfMemory, match="found 1073741824") as caught:
        DeviceMemory(device, (1 << 30) + 1)
    assert isinstance(caught.value, MemoryError)
    assert (caught.value.code, caught.value.call) == (2, "cuMemAlloc_v2")


def test_memory_that_cannot_be_pinned_is_a_memory_error(cuda: FakeCuda) -> None:
    device = Device(0, cuda.path)
    cuda.fail("cuMemHostRegister_v2", 1, 2)
    with pytest.raises(DeviceOutOfMemory):
        PinnedRange(device, Region(CHUNK_BYTES))


def test_a_device_tells_what_it_is(cuda: FakeCuda) -> None:
    device = Device(1, cuda.path)
    assert (device.ordinal, device.name, device.total_bytes) == (1, "Fake 1", 1 << 30)
    memory = DeviceMemory(device, 1000)
    assert (len(memory), memory.device, device.free_bytes) == (1000, device, (1 << 30) - 1000)
    assert device_count(cuda.path) == 2
    with pytest.raises(DeviceError) as caught:
        Device(2, cuda.path)
    assert (caught.value.code, caught.value.call) == (101, "cuDeviceGet")


def test_without_a_driver_there_are_no_devices(tmp_path: Path) -> None:
    nowhere = str(tmp_path / "libcuda.so.1")
    assert device_count(nowhere) == 0
    with pytest.raises(DeviceError, match="found none") as caught:
        Device(0, nowhere)
    assert (caught.value.code, caught.value.call) == (303, "dlopen")


class _Tensor(ctypes.Structure):
    """The head of DLPack's DLManagedTensorVersioned."""

    _fields_ = [
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("dimensions", ctypes.c_int32),
        ("dtype_code", ctypes.c_uint8),
        ("dtype_bits", ctypes.c_uint8),
        ("dtype_lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


def test_memory_is_exported_by_dlpack_and_outlives_the_loader(cuda: FakeCuda, bench: Bench) -> None:
    load, memory, _ = window_load(cuda, bench, ordinal=1)
    load.read(bench.requests)
    load.finish()
    address = memory.address
    assert memory.__dlpack_device__() == (KDL_CUDA, 1)
    capsule = memory.__dlpack__(stream=1, max_version=(1, 0), dl_device=(KDL_CUDA, 1), copy=False)
    del load, memory
    gc.collect()
    assert cuda.leak_count == LEAKS_OF_A_DEVICE + 1
    assert cuda.read(address, TOTAL_BYTES) == bench.octets
    get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
    get_pointer.restype, get_pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    tensor = _Tensor.from_address(get_pointer(capsule, b"dltensor_versioned"))
    assert (tensor.data, tensor.byte_offset) == (address, 0)
    assert (tensor.device_type, tensor.device_id) == (KDL_CUDA, 1)
    assert (tensor.dimensions, tensor.shape[0]) == (1, TOTAL_BYTES)
    assert (tensor.dtype_code, tensor.dtype_bits, tensor.dtype_lanes) == (1, 8, 1)
