from __future__ import annotations

import random

import pytest

from stoker.native import digest


def crc32c(octets: bytes) -> int:
    crc = 0xFFFFFFFF
    for octet in octets:
        crc ^= octet
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def plain_digest(octets: bytes) -> bytes:
    quarter = (-(-len(octets) // 4) + 7) // 8 * 8
    return b"".join(
        crc32c(octets[index * quarter : (index + 1) * quarter]).to_bytes(4, "big")
        for index in range(4)
    )


def test_the_plain_checksum_is_the_published_one() -> None:
    assert crc32c(b"123456789") == 0xE3069283


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 31, 32, 33, 63, 100, 1023, 4096, 5001])
def test_the_digest_equals_an_independent_one(length: int) -> None:
    octets = random.Random(length).randbytes(length)
    assert digest(octets) == plain_digest(octets)
    assert digest(memoryview(octets)) == plain_digest(octets)


def test_a_digest_needs_contiguous_bytes() -> None:
    with pytest.raises(BufferError):
        digest(memoryview(b"abcdef")[::2])
    with pytest.raises(TypeError):
        digest("text")  # type: ignore[arg-type]
