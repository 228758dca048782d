from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from harness import checkpoints
from stoker.native import CHUNK_BYTES, Pool
from stoker.runtime.checkpoint.settings import CheckpointSettings
from stoker.runtime.checkpoint.tiers import CheckpointCache
from stoker.runtime.cli import model


def test_an_error_is_printed_as_cause_and_remedy(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "pytorch_model.bin").write_bytes(b"")

    result = CliRunner().invoke(model, ["pack", str(folder)])

    assert result.exit_code == 1
    lines = result.stderr.splitlines()
    assert lines[0].startswith("error: Expected model.safetensors")
    assert lines[1].startswith("remedy: Convert them with safetensors")


def test_ls_lists_a_folder_as_json(tmp_path: Path) -> None:
    folder = checkpoints.plain(tmp_path / "models" / "one")

    result = CliRunner().invoke(model, ["ls", (tmp_path / "models").as_uri(), "--json"])

    assert result.exit_code == 0
    assert json.loads(result.stdout) == [
        {
            "uri": folder.as_uri(),
            "packed": False,
            "weight_bytes": (folder / "model.safetensors").stat().st_size,
            "digest": None,
        }
    ]


def test_ls_without_a_uri_lists_what_this_node_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = checkpoints.plain(tmp_path / "m")
    cache = CheckpointCache(
        tmp_path / "state" / "ssd", 1 << 30, Pool(CHUNK_BYTES * 2), CheckpointSettings()
    )
    ref = cache.resolve(folder.as_uri())
    cache.open(ref).wait(20.0)
    cache.close()
    monkeypatch.setenv("STOKER_STATE", str(tmp_path / "state"))

    as_json = CliRunner().invoke(model, ["ls", "--json"])
    as_table = CliRunner().invoke(model, ["ls"])

    assert [row["digest"] for row in json.loads(as_json.stdout)] == [ref.digest]
    assert ref.digest in as_table.stdout


def test_the_command_line_starts_without_torch() -> None:
    program = "import sys, stoker.runtime.cli; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
