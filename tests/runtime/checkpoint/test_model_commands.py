"""The `stoker model` commands from end to end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from stoker.deploy.s3server import S3Server
from stoker.runtime.checkpoint.resolve import resolve
from stoker.runtime.checkpoint.source_file import FileSource
from stoker.runtime.cli import model


def run(*arguments: str) -> Result:
    result = CliRunner().invoke(model, list(arguments))
    assert result.exit_code == 0, result.output
    return result


def test_pack_writes_beside_the_folder_by_default(tiny_llama: Path) -> None:
    report = json.loads(run("pack", str(tiny_llama), "--json").stdout)

    assert report["uri"] == f"{tiny_llama}-packed"
    assert resolve(FileSource(Path(report["uri"]))).digest == report["digest"]


@pytest.mark.usefixtures("s3_environment")
def test_pack_push_and_ls_agree(tiny_llama: Path, packed_tiny: Path) -> None:
    packed = json.loads(
        run("pack", str(tiny_llama), "--out", "s3://models/cli/one", "--json").stdout
    )
    pushed = json.loads(run("push", str(packed_tiny), "s3://models/cli/two", "--json").stdout)
    listed = json.loads(run("ls", "s3://models/cli", "--json").stdout)

    assert packed["digest"] == pushed["digest"]
    assert [row["uri"] for row in listed] == ["s3://models/cli/one", "s3://models/cli/two"]
    assert {row["weight_bytes"] for row in listed} == {packed["weight_bytes"]}


def test_a_push_to_no_bucket_ends_with_the_remedy(
    packed_tiny: Path, s3_environment: S3Server
) -> None:
    result = CliRunner().invoke(model, ["push", str(packed_tiny), "s3://no-such-bucket/x"])

    assert result.exit_code == 1
    assert "error: Expected s3://no-such-bucket/x" in result.stderr
    assert "remedy: " in result.stderr
