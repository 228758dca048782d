from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
from collections.abc import Callable
from importlib.util import cache_from_source
from pathlib import Path

import pytest

from stoker.placement.bundles import StoredBundles
from stoker.placement.errors import BadRequest, StartFailed
from stoker.placement.memory_store import MemoryStore
from stoker.runtime import code_cache
from stoker.runtime.code_cache import CodeCache, compile_sources


def archive(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for info, content in members:
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def member(name: str, content: bytes = b"x", **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, content


def stored(store: MemoryStore, payload: bytes) -> str:
    digest = hashlib.sha256(payload).hexdigest()
    store.put(f"/code/{digest}", payload)
    return digest


def test_an_archive_is_unpacked_once_with_its_folders_and_executable_bits(tmp_path: Path) -> None:
    store = MemoryStore()
    digest = stored(
        store,
        archive(member("handler.py", b"def handle(): ..."), member("bin/run", b"#!", mode=0o755)),
    )
    cache = CodeCache(tmp_path / "code", StoredBundles(store))
    folder = cache.open(digest)
    assert (folder / "handler.py").read_bytes() == b"def handle(): ..."
    assert (folder / "bin/run").stat().st_mode & 0o777 == 0o755
    assert (folder / "handler.py").stat().st_mode & 0o777 == 0o644
    store.delete(f"/code/{digest}")
    assert cache.open(digest) == folder
    assert [path.name for path in (tmp_path / "code").iterdir()] == [digest]


@pytest.mark.parametrize(
    "bad",
    [
        member("../escape"),
        member("/etc/passwd"),
        member("a/../../escape"),
        member("link", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        member("link", b"", type=tarfile.LNKTYPE, linkname="handler.py"),
        member("pipe", b"", type=tarfile.FIFOTYPE),
        member("device", b"", type=tarfile.CHRTYPE),
    ],
    ids=lambda bad: f"{bad[0].name}-{bad[0].type!r}",
)
def test_a_member_that_leaves_the_folder_or_is_no_plain_file_is_refused(
    tmp_path: Path, bad: tuple[tarfile.TarInfo, bytes]
) -> None:
    store = MemoryStore()
    digest = stored(store, archive(member("handler.py"), bad))
    with pytest.raises(StartFailed, match="in the handler archive"):
        CodeCache(tmp_path / "code", StoredBundles(store)).open(digest)
    assert list((tmp_path / "code").iterdir()) == []
    assert [path.name for path in tmp_path.iterdir()] == ["code"]


def test_an_archive_that_does_not_match_its_digest_is_refused_with_both(tmp_path: Path) -> None:
    store = MemoryStore()
    payload = archive(member("handler.py"))
    store.put(f"/code/{'0' * 64}", payload)
    with pytest.raises(StartFailed, match=f"{'0' * 64}.*{hashlib.sha256(payload).hexdigest()}"):
        CodeCache(tmp_path, StoredBundles(store)).open("0" * 64)


def test_an_archive_that_is_not_in_the_store_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(StartFailed, match=r"archive f{64} where bundles are kept, found none"):
        CodeCache(tmp_path, StoredBundles(MemoryStore())).open("f" * 64)


def test_a_digest_that_is_a_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadRequest):
        CodeCache(tmp_path, StoredBundles(MemoryStore())).open("../../etc")


def bomb() -> bytes:
    return gzip.compress(bytes(code_cache.UNPACKED_BYTES_MAXIMUM + 1), 1)


def torn() -> bytes:
    return archive(member("handler.py", bytes(range(256)) * 64))[:-50]


@pytest.mark.parametrize("payload", [bomb, torn, lambda: b"PK not gzip"])
def test_what_is_no_bounded_archive_is_refused_and_leaves_nothing(
    tmp_path: Path, payload: Callable[[], bytes]
) -> None:
    store = MemoryStore()
    digest = stored(store, payload())
    with pytest.raises(StartFailed):
        CodeCache(tmp_path, StoredBundles(store)).open(digest)
    assert list(tmp_path.iterdir()) == []


def test_too_many_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code_cache, "MEMBERS_MAXIMUM", 2)
    store = MemoryStore()
    digest = stored(store, archive(*(member(f"f{i}") for i in range(3))))
    with pytest.raises(StartFailed, match="at most 2 files"):
        CodeCache(tmp_path, StoredBundles(store)).open(digest)


def test_a_new_cache_drops_torn_folders_and_the_oldest_archives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(code_cache, "KEPT_MAXIMUM", 1)
    store = MemoryStore()
    cache = CodeCache(tmp_path, StoredBundles(store))
    old = cache.open(stored(store, archive(member("old"))))
    new = cache.open(stored(store, archive(member("new"))))
    (tmp_path / ".unpacking-torn").mkdir()
    cache.open(new.name)
    CodeCache(tmp_path, StoredBundles(store))
    assert list(tmp_path.iterdir()) == [new]
    assert not old.exists()


def test_sources_get_bytecode_once_and_one_that_is_no_python_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in (("good", "X = 1\n"), ("bad", "def\n"), ("package/inner", "Y = 2\n")):
        path = tmp_path / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    compile_sources(tmp_path)

    def bytecode(name: str) -> Path:
        return Path(cache_from_source(str(tmp_path / f"{name}.py")))

    assert bytecode("good").is_file()
    assert bytecode("package/inner").is_file()
    assert not bytecode("bad").exists()
    bytecode("good").unlink()
    compile_sources(tmp_path)
    assert not bytecode("good").exists()
    (tmp_path / "large").mkdir()
    (tmp_path / "large" / "source.py").write_text("Z = 3\n")
    monkeypatch.setattr(code_cache, "COMPILED_BYTES_MAXIMUM", 5)
    compile_sources(tmp_path / "large")
    assert [path.name for path in (tmp_path / "large").iterdir()] == ["source.py"]
