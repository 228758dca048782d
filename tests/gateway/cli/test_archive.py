"""The Function Builder archive of a handler folder."""

import io
import json
import tarfile
from pathlib import Path

import pytest

from stoker.gateway.cli.archive import build_archive
from stoker.gateway.cli.stack import StackFunction
from stoker.placement.errors import BadSpec


def function(handler: Path, template: Path | None = None) -> StackFunction:
    return StackFunction(
        name="echo",
        lang="python3-stoker",
        image="echo:1",
        handler=handler,
        template=template,
        build_args={"A": "1"},
    )


def handler_in(folder: Path) -> Path:
    handler = folder / "handler"
    (handler / "lib").mkdir(parents=True)
    (handler / "__pycache__").mkdir()
    (handler / "handler.py").write_text("def handle(event, context): ...\n")
    (handler / "lib" / "words.txt").write_text("hello\n")
    (handler / "__pycache__" / "handler.pyc").write_bytes(b"old")
    return handler


def contents(archive: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        return {m.name: (tar.extractfile(m) or io.BytesIO()).read() for m in tar.getmembers()}


def test_an_archive_holds_the_configuration_and_the_handler_folder(tmp_path: Path) -> None:
    found = contents(build_archive(function(handler_in(tmp_path))))

    config = json.loads(found.pop("com.openfaas.docker.config"))
    assert config == {"image": "echo:1", "buildArgs": {"A": "1"}}
    assert found == {
        "context/template.yml": b"language: python3-stoker\n",
        "context/function/handler.py": b"def handle(event, context): ...\n",
        "context/function/lib/words.txt": b"hello\n",
    }


def test_a_template_beside_the_stack_file_travels_without_its_own_function(tmp_path: Path) -> None:
    template = tmp_path / "template"
    (template / "function").mkdir(parents=True)
    (template / "template.yml").write_text("language: mine\n")
    (template / "function" / "handler.py").write_text("# replaced\n")

    found = contents(build_archive(function(handler_in(tmp_path), template)))

    assert found["context/template.yml"] == b"language: mine\n"
    assert found["context/function/handler.py"].startswith(b"def handle")


def test_the_same_folder_gives_the_same_bytes(tmp_path: Path) -> None:
    handler = handler_in(tmp_path)
    first = build_archive(function(handler))
    (handler / "handler.py").touch()

    assert build_archive(function(handler)) == first


def test_a_link_is_refused(tmp_path: Path) -> None:
    handler = handler_in(tmp_path)
    (handler / "secret").symlink_to("/etc/passwd")

    with pytest.raises(BadSpec, match="found the link secret"):
        build_archive(function(handler))
