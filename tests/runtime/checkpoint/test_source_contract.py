"""One contract for the sources on disk, in S3, and for the fake."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest

from harness import s3 as s3_harness
from harness.fake_source import FakeSource
from stoker.deploy.s3server import S3Server
from stoker.placement.errors import CheckpointChanged, CheckpointError, CheckpointMissing
from stoker.runtime.checkpoint.settings import CheckpointSettings
from stoker.runtime.checkpoint.source import Source, open_source

FILES = {
    "model.safetensors": bytes(range(256)) * 20_000,
    "config.json": b"{}",
    "empty.txt": b"",
    "1_Pooling/config.json": b"[]",
    "deep/er/config.json": b"no",
    ".hidden/config.json": b"no",
    ".hidden.json": b"no",
    "name with space+plus.json": b"odd",
}
Replace = Callable[[str, bytes], None]
_prefixes = itertools.count()


@pytest.fixture(params=["file", "s3", "fake"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Source, Replace]:
    if request.param == "fake":
        fake = FakeSource(FILES)
        return fake, fake.files.__setitem__
    for name, payload in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(payload)
    if request.param == "file":
        return open_source(tmp_path.as_uri()), lambda name, data: _rewrite(tmp_path / name, data)
    server: S3Server = request.getfixturevalue("s3_environment")
    prefix = f"contract/{next(_prefixes)}"
    uri = s3_harness.upload(server, tmp_path, prefix)
    client = s3_harness.client(server)
    source = open_source(uri, CheckpointSettings(server.endpoint_url))
    return source, lambda name, data: client.put_object(
        Bucket=s3_harness.BUCKET, Key=f"{prefix}/{name}", Body=data
    )


def _rewrite(path: Path, data: bytes) -> None:
    path.unlink()
    path.write_bytes(data)


def read(source: Source, name: str, offset: int, count: int, version: str | None = None) -> bytes:
    buffer = bytearray(count)
    source.read(name, offset, memoryview(buffer), version)
    return bytes(buffer)


def test_list_names_files_and_sizes_one_folder_deep(source: tuple[Source, Replace]) -> None:
    listed = {file.name: file.bytes for file in source[0].list()}

    assert listed == {
        name: len(payload)
        for name, payload in FILES.items()
        if name.count("/") <= 1 and not name.startswith(".")
    }


def test_any_range_is_read_exactly(source: tuple[Source, Replace]) -> None:
    payload = FILES["model.safetensors"]

    for offset, count in ((0, 1), (0, len(payload)), (255, 3_000_000), (len(payload) - 7, 7)):
        assert read(source[0], "model.safetensors", offset, count) == payload[offset:][:count]


def test_a_small_file_is_read_whole_within_its_limit(source: tuple[Source, Replace]) -> None:
    assert source[0].read_small("1_Pooling/config.json", 2) == b"[]"
    assert source[0].read_small("name with space+plus.json", 100) == b"odd"
    assert source[0].read_small("empty.txt", 0) == b""
    with pytest.raises(CheckpointError, match="at most 1 bytes"):
        source[0].read_small("config.json", 1)


def test_a_version_holds_until_the_file_changes(source: tuple[Source, Replace]) -> None:
    version = next(file.version for file in source[0].list() if file.name == "config.json")

    assert read(source[0], "config.json", 0, 2, version) == b"{}"
    assert source[0].read_small("config.json", 2, version) == b"{}"
    source[1]("config.json", b"[]")
    with pytest.raises(CheckpointChanged):
        read(source[0], "config.json", 0, 2, version)
    with pytest.raises(CheckpointChanged):
        source[0].read_small("config.json", 2, version)


def test_a_range_past_the_end_is_a_changed_file(source: tuple[Source, Replace]) -> None:
    with pytest.raises(CheckpointChanged):
        read(source[0], "config.json", 1, 2)


def test_an_absent_file_is_missing(source: tuple[Source, Replace]) -> None:
    with pytest.raises(CheckpointMissing, match=r"absent\.json"):
        read(source[0], "absent.json", 0, 1)
    with pytest.raises(CheckpointMissing, match=r"absent\.json"):
        source[0].read_small("absent.json", 1)


def test_a_name_that_leaves_the_folder_is_refused(source: tuple[Source, Replace]) -> None:
    for name in ("../config.json", "/etc/passwd", "a/../../b"):
        with pytest.raises(CheckpointError, match="relative file name"):
            source[0].read_small(name, 10)
