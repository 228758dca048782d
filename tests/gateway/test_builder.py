"""The builder takes a handler folder and nothing else."""

from __future__ import annotations

import io
import tarfile

import pytest

from stoker.gateway.auth import Credentials
from stoker.gateway.builder import CONFIG_NAME, build
from stoker.placement.errors import BadSpec

HANDLER = b"def handle(event, context):\n    return event\n"
CONFIG = b'{"image": "echo:1"}'


def context(*members: tuple[str, bytes], config: bytes = CONFIG, **attributes: object) -> bytes:
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        for name, content in ((CONFIG_NAME, config), *members):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            member.mtime = len(members)
            if name != CONFIG_NAME:
                for key, value in attributes.items():
                    setattr(member, key, value)
            archive.addfile(member, io.BytesIO(content))
    return tar.getvalue()


def names(archive: bytes) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as opened:
        return opened.getnames()


def test_only_the_handler_folder_is_kept() -> None:
    made = build(
        context(
            ("context/Dockerfile", b"FROM x"),
            ("context/function/lib/a.py", b""),
            ("context/function/handler.py", HANDLER),
        )
    )
    assert (made.image, names(made.archive)) == ("echo:1", ["handler.py", "lib/a.py"])


def test_a_context_that_is_the_handler_folder_is_taken_whole() -> None:
    made = build(context(("context/handler.py", HANDLER), ("context/x.txt", b"x")))
    assert names(made.archive) == ["handler.py", "x.txt"]


def test_the_same_files_in_another_order_give_the_same_digest() -> None:
    a, b = ("context/function/handler.py", HANDLER), ("context/function/b.py", b"1")
    assert build(context(a, b)).digest == build(context(b, a, ("context/y", b""))).digest


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../x", "context/function/../../x", "context/a\\b", "a/.."]
)
def test_a_path_that_leads_out_is_refused(name: str) -> None:
    with pytest.raises(BadSpec, match="relative paths"):
        build(context((name, b"x")))


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE]
)
def test_what_is_no_plain_file_is_refused(kind: bytes) -> None:
    with pytest.raises(BadSpec, match="plain files"):
        build(context(("context/function/x", b""), type=kind, linkname="/etc/passwd"))


def test_too_many_files_are_refused() -> None:
    files = [(f"context/function/{n}", b"") for n in range(1000)]
    with pytest.raises(BadSpec, match=r"at most 1000 files.*found 1001"):
        build(context(("context/function/handler.py", HANDLER), *files))


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (b"def main(): ...\nclass Helper: ...", "found main, Helper"),
        (b"", "found no definition"),
        (b"x = 1\ndef handle(:", "line 2"),
        (b"\x00", "Expected Python"),
    ],
)
def test_a_handler_without_handle_is_refused_with_what_was_found(source: bytes, said: str) -> None:
    with pytest.raises(BadSpec, match=said):
        build(context(("context/function/handler.py", source)))


@pytest.mark.parametrize(
    "source",
    [b"async def handle(e, c): ...", b"from x import y as handle", b"handle = lambda e, c: e"],
)
def test_handle_may_be_defined_in_other_ways(source: bytes) -> None:
    assert build(context(("context/handler.py", source))).file_count == 1


@pytest.mark.parametrize("config", [b"{", b"[]", b'{"image": ""}', b'{"image": 1}'])
def test_a_config_without_an_image_is_refused(config: bytes) -> None:
    with pytest.raises(BadSpec, match=r"com\.openfaas\.docker\.config"):
        build(context(("context/handler.py", HANDLER), config=config))


@pytest.mark.parametrize("payload", [b"", b"no tar at all", context()[:700]])
def test_what_is_no_tar_is_refused(payload: bytes) -> None:
    with pytest.raises(BadSpec):
        build(payload)


def test_a_signature_is_the_hmac_of_the_payload() -> None:
    credentials = Credentials("key")
    right = "sha256=9c1b84bf08eb9c5e4c2e2f1f8ae6dcfcd3a0b3e1e0a5d0c2b8e6e6d6a1a6e6ab"
    assert not credentials.signature(right, b"payload")
    assert not credentials.signature("", b"payload")
    known = "sha256=5d98b45c90a207fa998ce639fea6f02ecc8cc3f36fef81d694fb856b4d0a28ca"
    assert credentials.signature(known, b"payload")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("handler.py", "openfaas"),
        ("main.py", "functions-framework"),
        ("func.py", "knative"),
        ("function/func.py", "knative"),
        ("function/__init__.py", "knative"),
        ("respond.sh", "process"),
    ],
)
def test_the_files_say_of_what_kind_the_function_is(name: str, kind: str) -> None:
    made = build(
        context((f"context/function/{name}", HANDLER), ("context/index.py", b"import handler"))
    )
    assert (made.kind, names(made.archive)) == (kind, [name])


def test_the_first_known_file_decides() -> None:
    both = [(f"context/function/{name}", HANDLER) for name in ("main.py", "handler.py")]
    assert build(context(*both)).kind == "openfaas"


def test_a_file_of_any_kind_must_be_python() -> None:
    with pytest.raises(BadSpec, match=r"Expected Python in main.py, found at line 1"):
        build(context(("context/main.py", b"def (:")))


def test_requirements_that_no_node_would_take_are_refused_with_their_line() -> None:
    handler = ("context/function/handler.py", HANDLER)
    build(context(handler, ("context/function/requirements.txt", b"# none\nflask>=3\n")))
    with pytest.raises(BadSpec, match=r"in line 2 of requirements.txt, found '-r other.txt'"):
        build(context(handler, ("context/function/requirements.txt", b"flask\n-r other.txt")))


def test_a_program_stays_executable() -> None:
    made = build(context(("context/run", b"#!/bin/sh"), mode=0o755))
    with tarfile.open(fileobj=io.BytesIO(made.archive), mode="r:gz") as opened:
        assert opened.getmember("run").mode == 0o755


def test_an_empty_context_is_refused() -> None:
    with pytest.raises(BadSpec, match=r"below context/function/ or context/, found nothing"):
        build(context())
