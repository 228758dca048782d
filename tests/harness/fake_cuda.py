"""The fake CUDA driver of native/tests, built with the machine's compiler."""

from __future__ import annotations

import ctypes
import gc
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SOURCES = Path(__file__).resolve().parents[2] / "native" / "tests"
LEAKS_OF_A_DEVICE = 2  # its context and its stream


class FakeCuda:
    """One library, loaded once for a process; `path` is what `Device` takes as its driver."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "libcuda_fake.so")
        sources = [str(SOURCES / name) for name in ("fake_cuda.cpp", "fake_cuda_control.cpp")]
        flags = ["-std=c++20", "-O1", "-shared", "-fPIC", "-pthread"]
        subprocess.run(["c++", *flags, *sources, "-o", self.path], check=True)
        self._library = ctypes.CDLL(self.path)
        self._library.fake_cuda_violation.restype = ctypes.c_char_p
        self._library.fake_cuda_registered_peak_bytes.restype = ctypes.c_size_t
        self._library.fake_cuda_read.restype = ctypes.c_bool

    def reset(self, devices: int = 2, device_bytes: int = 1 << 30) -> None:
        self._library.fake_cuda_reset(devices, ctypes.c_size_t(device_bytes))

    def fail(self, function: str, nth: int, code: int) -> None:
        self._library.fake_cuda_fail(function.encode(), nth, code)

    def hold(self, held: bool) -> None:
        self._library.fake_cuda_hold(ctypes.c_bool(held))

    def read(self, address: int, byte_count: int) -> bytes:
        octets = ctypes.create_string_buffer(byte_count)
        found = self._library.fake_cuda_read(
            ctypes.c_ulonglong(address), octets, ctypes.c_size_t(byte_count)
        )
        assert found, f"no device has {byte_count} bytes at {address:#x}"
        return octets.raw

    @property
    def violations(self) -> list[str]:
        count = self._library.fake_cuda_violation_count()
        return [self._library.fake_cuda_violation(index).decode() for index in range(count)]

    @property
    def leak_count(self) -> int:
        return int(self._library.fake_cuda_leak_count())

    @property
    def registered_peak_bytes(self) -> int:
        return int(self._library.fake_cuda_registered_peak_bytes())


@contextmanager
def checked(driver: FakeCuda) -> Iterator[FakeCuda]:
    """The driver as new; at the end no rule was broken and nothing of it is left."""
    driver.reset()
    yield driver
    gc.collect()
    assert driver.violations == []
    assert driver.leak_count == 0
