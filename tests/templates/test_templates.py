"""What `faas-cli template pull` and `faas-cli new` find in this repository."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
LANGUAGES = ("python3-embed", "python3-llm", "python3-stoker")


@pytest.fixture(scope="module")
def pulled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The templates of a clone, copied as the client does: each folder below `template/`."""
    clone, pulled = (tmp_path_factory.mktemp(name) for name in ("clone", "pulled"))
    source = tmp_path_factory.mktemp("source")
    # A commit of what lies here now, so that the test is of this tree and not of the last commit.
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "template", "templates"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    for name in listed:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, source / name, follow_symlinks=False)
    who = ("-c", "user.name=t", "-c", "user.email=t@example.invalid")
    for command in (("init", "-q"), ("add", "-A"), (*who, "commit", "-q", "-m", "Templates")):
        subprocess.run(["git", *command], cwd=source, check=True)
    subprocess.run(
        ["git", "clone", "-q", "--depth=1", source.as_uri(), str(clone / "x")], check=True
    )
    for folder in (clone / "x" / "template").iterdir():
        if folder.is_dir():
            shutil.copytree(folder, pulled / "template" / folder.name)
    return pulled


def test_a_clone_has_every_template_where_the_client_looks(pulled: Path) -> None:
    assert sorted(path.name for path in (pulled / "template").iterdir()) == list(LANGUAGES)


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_template_is_what_the_client_reads(pulled: Path, language: str) -> None:
    template = pulled / "template" / language
    said = yaml.safe_load((template / "template.yml").read_text())
    assert (said["language"], said["handler_folder"]) == (language, "function")
    assert (template / "function" / "handler.py").is_file()


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_new_function_passes_the_tests_that_come_with_it(
    pulled: Path, tmp_path: Path, language: str
) -> None:
    shutil.copytree(pulled / "template" / language / "function", tmp_path / "mine")
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "handler_test.py"],
        cwd=tmp_path / "mine",
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout
