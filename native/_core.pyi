"""The Python surface of the native loader.

System errors are OSError with errno, message and filename. A bad argument is a ValueError or
TypeError. Every blocking call lets other Python threads run.
"""

from collections.abc import Sequence
from os import PathLike
from typing import Final, Literal

from typing_extensions import Buffer, CapsuleType

CHUNK_BYTES: Final = 16777216

class HeaderError(ValueError):
    """A safetensors header breaks the format.

    `kind`: short_file, header_length, beyond_file, truncated, json, utf8, duplicate_key, field,
    dtype, shape, offsets, hole, overlap, trailing_bytes or too_many_tensors. `offset` is the
    position in the file.
    """

    kind: str
    offset: int

class ChunkError(RuntimeError):
    """A chunk's bytes do not have the digest they should. Digests are 32 hex digits.

    `path` and `offset` say where the bytes came from ("" and 0 when `commit` found it).
    """

    ordinal: int
    path: str
    offset: int
    expected: str
    found: str

class Cancelled(RuntimeError): ...

class DeviceError(RuntimeError):
    """A call of the CUDA driver failed.

    `code` is its CUresult and `call` the name of the function, or "dlopen" (303) or "dlsym" (302)
    where the driver's library or a function in it is missing.
    """

    code: int
    call: str

class DeviceOutOfMemory(DeviceError, MemoryError):
    """The device, or the host for what is to be pinned, has too little memory."""

def digest(buffer: Buffer) -> bytes:
    """The 16 bytes of the chunk digest: CRC32C of each contiguous quarter, big-endian."""

def header_bytes(buffer: Buffer, file_bytes: int) -> int:
    """Where the data section begins (8 + the JSON's length), from a file's first 8 bytes."""

def parse_header(
    buffer: Buffer, file_bytes: int
) -> list[tuple[str, str, tuple[int, ...], int, int]]:
    """(name, dtype, shape, begin, end) of each tensor, sorted by begin.

    `buffer` starts with the whole header; `begin` and `end` count from the data section, and
    cover it without hole or overlap. Raises HeaderError.
    """

def parse_metadata(buffer: Buffer, file_bytes: int) -> dict[str, str]:
    """The `__metadata__` of the header. Raises HeaderError."""

def has_io_uring() -> bool:
    """Whether the kernel lets this process use io_uring."""

class Region:
    """Private writable memory, in huge pages where the kernel gives them."""

    def __init__(self, byte_count: int, huge_pages: bool = True) -> None: ...
    def __len__(self) -> int: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...
    @property
    def huge_pages(self) -> bool:
        """Whether huge pages back memory that was touched so far."""
    def discard(self, offset: int, byte_count: int) -> None:
        """Give the pages that lie wholly in the range back; what they held is lost."""

class Mapping:
    """Chunks of a pool side by side in one private writable range.

    Until `map` it is address space alone and reads as zeros, so that tensors may be made of it in a
    process that forks the one that maps. What is written afterwards stays in this process.
    """

    def __init__(self, byte_count: int) -> None: ...
    def map(self, pool_fd: int, chunks: Sequence[int]) -> None:
        """Put the chunks there, the last of which holds the last byte.

        `pool_fd` may be read-only and may be closed afterwards. Raises ValueError unless the
        chunks are there and as many as the bytes need.
        """
    def __len__(self) -> int: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...
    def populate(self) -> None:
        """Map every page now, so that no later read faults."""

class Pool:
    """Shared memory for checkpoints, handed out in whole chunks.

    Chunks that are released while someone still has them mapped change under that someone.
    `memory_file` is the descriptor of an empty memory file to use, or of the one that an earlier
    pool of this capacity used, whose bytes stay; it may be closed afterwards. OSError if it is not
    a memory file.
    """

    def __init__(self, capacity_bytes: int, memory_file: int | None = None) -> None: ...
    @property
    def fd(self) -> int: ...
    @property
    def reader_fd(self) -> int:
        """The same memory through a descriptor that cannot be written by."""
    @property
    def chunk_count(self) -> int: ...
    @property
    def capacity_bytes(self) -> int: ...
    @property
    def free_count(self) -> int: ...
    @property
    def huge_pages(self) -> bool:
        """Whether huge pages really back the pool."""
    @property
    def prefaulted_bytes(self) -> int: ...
    @property
    def registered(self) -> bool:
        """Whether its memory is pinned for io_uring, which spares the kernel work at each read."""
    def allocate(self, count: int) -> list[int]:
        """`count` chunks, lowest first. Raises MemoryError, and then takes none."""
    def claim(self, chunks: Sequence[int]) -> None:
        """Take these very chunks; all or none. Raises ValueError for one that is not free."""
    def release(self, chunks: Sequence[int]) -> None:
        """Give chunks back; all or none. Raises ValueError for one that is not allocated."""
    def prefault(self, threads: int = 1) -> None:
        """Fault the pool in, in background threads of idle priority. Contents stay."""
    def chunk(self, index: int) -> memoryview:
        """The 16 MiB of one chunk, writable; the view keeps the pool alive."""

class Progress:
    """How far a load is, in a page that other processes share and wait on.

    `total_bytes` is the extent of the checkpoint's address space: it ends in the last chunk.
    """

    def __init__(self, chunk_count: int, total_bytes: int) -> None: ...
    @staticmethod
    def open(fd: int) -> Progress:
        """Join the page behind a descriptor, which may be closed afterwards."""
    @property
    def fd(self) -> int: ...
    @property
    def chunk_count(self) -> int: ...
    @property
    def total_bytes(self) -> int: ...
    @property
    def watermark_bytes(self) -> int:
        """Bytes of address space ready from the start, without a gap."""
    @property
    def state(self) -> Literal["loading", "complete", "failed", "cancelled"]: ...
    @property
    def error(self) -> str: ...
    fetch_seconds: float
    load_seconds: float
    def is_ready(self, ordinal: int) -> bool: ...
    def publish(self, ordinal: int) -> None:
        """Mark a chunk as ready; `Load` does so for what it has verified."""
    def complete(self) -> None:
        """End the load well. Raises ValueError while chunks are missing."""
    def fail(self, message: str) -> None:
        """End the load with a message, of which 2048 bytes are kept."""
    def cancel(self) -> None: ...
    def wait(self, watermark_bytes: int, timeout_seconds: float) -> int:
        """Wait until so much is ready or the load has ended; returns the watermark.

        Look at `state` when less came back than was asked for. Raises TimeoutError.
        """

    def wait_for_range(self, begin: int, end: int, timeout_seconds: float) -> bool:
        """Wait until the chunks of bytes [begin, end) are ready, whatever lies before them.

        False when the load has ended without them. Raises TimeoutError.
        """

def device_count(driver_path: str = "libcuda.so.1") -> int:
    """How many CUDA devices the driver offers; 0 where there is no driver. Raises DeviceError."""

class Device:
    """A CUDA device by its primary context, which PyTorch uses too, and one stream for copies.

    Raises DeviceError, as does everything that uses a device.
    """

    def __init__(self, ordinal: int, driver_path: str = "libcuda.so.1") -> None: ...
    @property
    def ordinal(self) -> int: ...
    @property
    def name(self) -> str: ...
    @property
    def total_bytes(self) -> int: ...
    @property
    def free_bytes(self) -> int: ...

class PinnedRange:
    """All of a pool or region, pinned so that every device reads it without the processor.

    Pinning faults the memory in. The range keeps it alive and unpins it at the end.
    """

    def __init__(self, device: Device, memory: Pool | Region) -> None: ...
    @property
    def chunk_count(self) -> int: ...

class DeviceMemory:
    """Memory of a device; `torch.from_dlpack` makes it a tensor of bytes without a copy.

    It is freed with the last tensor of it. Raises DeviceOutOfMemory.
    """

    def __init__(self, device: Device, byte_count: int) -> None: ...
    def __len__(self) -> int: ...
    @property
    def device(self) -> Device: ...
    @property
    def address(self) -> int: ...
    def upload(self, host: PinnedRange, chunks: Sequence[int], progress: Progress) -> None:
        """Copy chunk `chunks[i]` of `host` to i * CHUNK_BYTES, for every i, and wait for it.

        Each chunk is published when its copy has arrived.
        """
    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> CapsuleType: ...
    def __dlpack_device__(self) -> tuple[int, int]: ...

class ReadRequest:
    """Chunk `ordinal` of a load lies in the file at `file_offset`."""

    def __init__(
        self, path: str | bytes | PathLike[str], file_offset: int, ordinal: int
    ) -> None: ...
    @property
    def path(self) -> str: ...
    @property
    def file_offset(self) -> int: ...
    @property
    def ordinal(self) -> int: ...

class Load:
    """One checkpoint on its way into memory; nothing unverified is ever published.

    Chunk i goes to pool chunk `chunks[i]`, has `sizes[i]` bytes, and must have `digests[i]`
    where that is not None.
    """

    def __init__(
        self,
        pool: Pool,
        chunks: Sequence[int],
        sizes: Sequence[int],
        digests: Sequence[bytes | None],
        progress: Progress,
    ) -> None: ...
    @staticmethod
    def into_region(
        region: Region,
        sizes: Sequence[int],
        digests: Sequence[bytes | None],
        progress: Progress,
        borrow: bool,
    ) -> Load:
        """A load whose chunk i lies at i * CHUNK_BYTES of the region.

        With `borrow`, pages that the page cache holds take the place of the region's own, copied
        when they are written to.
        """
    @staticmethod
    def into_device(
        memory: DeviceMemory,
        host: PinnedRange,
        sizes: Sequence[int],
        digests: Sequence[bytes | None],
        progress: Progress,
        chunks: Sequence[int] | None = None,
    ) -> Load:
        """A load whose chunk i ends at i * CHUNK_BYTES of a device's memory.

        On its way it passes through `host`, a window: each whole chunk of it is a slot, taken by
        one chunk at a time, and `host` serves no other such load meanwhile. With `chunks`, chunk
        i passes through and stays in chunk `chunks[i]` of `host`, and several loads may share it.
        A chunk is published when its copy has arrived; `finish` waits for that and raises what
        went wrong on the way, as later calls do. A window that stays full for five minutes, as
        when one thread fills more chunks than it has slots, is a TimeoutError.
        """
    def read(
        self,
        requests: Sequence[ReadRequest],
        threads: int = 4,
        direct: bool = True,
        deadline: float = ...,
    ) -> None:
        """Read, verify and publish chunks, begun in this order, several at a time.

        Of the loads into one pool, the one with the earliest `deadline` has the disk first. The
        first error stops what has not begun. Raises OSError, ChunkError or Cancelled, and
        ValueError for a chunk that is committed or in use.
        """
    @property
    def ways(self) -> dict[str, int]:
        """How many chunks were read by which way.

        `direct_by_ring`, `direct`, `buffered` (direct reads were refused), `cached` (copied from
        the page cache) or `borrowed` from it.
        """
    def finish(self) -> None:
        """Return when every committed chunk is published."""
    def fill(self, ordinal: int) -> memoryview:
        """The memory to write chunk `ordinal` to; valid until `commit` or `abandon`."""
    def commit(self, ordinal: int) -> bytes:
        """Verify and publish a filled chunk; returns its digest. Raises ChunkError."""
    def abandon(self, ordinal: int) -> None:
        """Give a chunk that is being filled back, so that it can be read or filled anew."""
    def write(self, ordinal: int, path: str | bytes | PathLike[str]) -> None:
        """Write a committed chunk to a file, whole or not at all, and synced."""
    def digest(self, ordinal: int) -> bytes | None:
        """The digest of a committed chunk, else None."""
    def cancel(self) -> None:
        """Stop reads soon; they, and every later fill, read and commit, raise Cancelled."""
