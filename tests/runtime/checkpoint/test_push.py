from __future__ import annotations

from pathlib import Path

import pytest

from harness import checkpoints
from harness import s3 as s3_harness
from stoker.deploy.s3server import S3Server
from stoker.placement.errors import BadSpec, CheckpointMissing
from stoker.runtime.checkpoint.push import Listed, list_checkpoints, push, upload_order
from stoker.runtime.checkpoint.resolve import resolve
from stoker.runtime.checkpoint.settings import CheckpointSettings
from stoker.runtime.checkpoint.source import open_source
from stoker.runtime.checkpoint.source_file import FileSource


@pytest.fixture
def settings(s3_environment: S3Server) -> CheckpointSettings:
    return CheckpointSettings(s3_environment.endpoint_url)


def test_a_pushed_model_resolves_to_the_same_digest(
    packed_tiny: Path, settings: CheckpointSettings
) -> None:
    counted: list[int] = []

    manifest = push(packed_tiny, "s3://models/push/llama", settings, counted.append)

    assert resolve(open_source("s3://models/push/llama", settings)).digest == manifest.digest
    assert sum(counted) == sum(p.stat().st_size for p in packed_tiny.iterdir())


def test_a_file_of_several_parts_arrives_whole(
    tmp_path: Path, settings: CheckpointSettings
) -> None:
    folder = checkpoints.plain(tmp_path / "m", mebibytes=40)

    push(folder, "s3://models/push/parts", settings)

    source = open_source("s3://models/push/parts", settings)
    expected = (folder / "model.safetensors").read_bytes()
    found = bytearray(len(expected))
    source.read("model.safetensors", 0, memoryview(found), None)
    assert bytes(found) == expected


def test_what_completes_a_checkpoint_goes_up_last(packed_tiny: Path, tmp_path: Path) -> None:
    assert upload_order(resolve(FileSource(packed_tiny)))[-2:] == [
        "model.safetensors",
        "stoker.manifest.json",
    ]
    sharded = resolve(FileSource(checkpoints.sharded(tmp_path / "m", 1)))
    assert upload_order(sharded)[-1] == "model.safetensors.index.json"


def test_a_missing_bucket_is_an_error_with_a_remedy(
    packed_tiny: Path, settings: CheckpointSettings
) -> None:
    with pytest.raises(CheckpointMissing, match="s3://no-such-bucket/x") as caught:
        push(packed_tiny, "s3://no-such-bucket/x", settings)

    assert "must be made first" in caught.value.remedy


def test_only_s3_is_pushed_to(packed_tiny: Path, settings: CheckpointSettings) -> None:
    with pytest.raises(BadSpec, match="s3://bucket/prefix"):
        push(packed_tiny, "file:///tmp/x", settings)


def test_checkpoints_one_folder_below_are_listed(
    packed_tiny: Path, tmp_path: Path, s3: S3Server, settings: CheckpointSettings
) -> None:
    s3_harness.upload(s3, packed_tiny, "list/packed")
    s3_harness.upload(s3, checkpoints.plain(tmp_path / "m"), "list/plain")
    size = (packed_tiny / "model.safetensors").stat().st_size

    listed = list_checkpoints("s3://models/list", settings)

    assert listed[0] == Listed("s3://models/list/packed", True, size)
    assert [item.packed for item in listed] == [True, False]
    assert list_checkpoints("s3://models/list/packed", settings) == listed[:1]
