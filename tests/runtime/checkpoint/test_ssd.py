from __future__ import annotations

from pathlib import Path

import pytest

from stoker.placement.errors import StorageFull
from stoker.runtime.checkpoint.manifest import FileEntry, Manifest, WeightFile
from stoker.runtime.checkpoint.ssd import SsdEntry, SsdTier

DIGEST = "0123456789abcdef" * 2
CHUNK = 1000


def manifest(name: str, *, packed: bool = True) -> Manifest:
    digest = DIGEST if packed else None
    version = None if packed else name
    weight = WeightFile("model.safetensors", CHUNK, (digest,), version)
    sha256 = "ab" * 32 if packed else None
    return Manifest(packed, (FileEntry(f"{name}.json", 2, sha256, version),), (weight,), ())


def admit(tier: SsdTier, name: str, *, packed: bool = True) -> SsdEntry:
    return tier.admit(manifest(name, packed=packed), {f"{name}.json": b"{}"}, None)


def write_chunk(tier: SsdTier, entry: SsdEntry) -> None:
    assert tier.reserve_chunk(CHUNK)
    entry.chunk_path(0).write_bytes(b"x" * CHUNK)
    tier.chunk_written(entry, 0, CHUNK, ok=True)


def tier(tmp_path: Path, capacity_bytes: int = 1 << 20) -> SsdTier:
    return SsdTier(tmp_path / "ssd", capacity_bytes, lambda byte_count: byte_count / 1e9)


def test_a_folder_survives_a_restart(tmp_path: Path) -> None:
    before = tier(tmp_path)
    write_chunk(before, admit(before, "a"))

    after = tier(tmp_path)

    entry = after.hold(manifest("a").digest)
    assert entry is not None
    assert entry.cached == {0: CHUNK}
    assert (entry.files_dir / "a.json").read_bytes() == b"{}"
    assert after.used_bytes() == before.used_bytes()


def test_leftovers_are_swept_at_the_start(tmp_path: Path) -> None:
    before = tier(tmp_path)
    entry = admit(before, "a")
    write_chunk(before, entry)
    (entry.path / "chunks" / "0.tmp.77.1").write_bytes(b"half")
    (entry.path / "chunks" / "9").write_bytes(b"no such chunk")
    (tmp_path / "ssd" / "abc.tmp").mkdir()
    (tmp_path / "ssd" / "stray").write_bytes(b"")
    (tmp_path / "ssd" / ("0" * 64) / "chunks").mkdir(parents=True)

    tier(tmp_path)

    assert [path.name for path in (tmp_path / "ssd").iterdir()] == [entry.path.name]
    assert [path.name for path in (entry.path / "chunks").iterdir()] == ["0"]


def test_a_manifest_that_is_not_the_folders_own_is_swept(tmp_path: Path) -> None:
    before = tier(tmp_path)
    one, other = admit(before, "a"), admit(before, "b")
    (one.path / "manifest.json").write_bytes((other.path / "manifest.json").read_bytes())

    tier(tmp_path)

    assert [path.name for path in (tmp_path / "ssd").iterdir()] == [other.path.name]


def test_a_chunk_of_the_wrong_size_is_not_used(tmp_path: Path) -> None:
    before = tier(tmp_path)
    entry = admit(before, "a")
    entry.chunk_path(0).write_bytes(b"short")

    after = tier(tmp_path).hold(manifest("a").digest)

    assert after is not None
    assert after.cached == {}
    assert not entry.chunk_path(0).exists()


def test_a_chunk_is_used_only_with_a_digest(tmp_path: Path) -> None:
    before = tier(tmp_path)
    known, unknown = admit(before, "a", packed=False), admit(before, "b", packed=False)
    for entry in (known, unknown):
        write_chunk(before, entry)
    before.learn(known, 0, DIGEST)
    with open(unknown.path / "digests", "ab") as file:
        file.write(f"\n0 {DIGEST[:20]}".encode())  # torn by a crash
        file.write(f"\n0 {DIGEST} 00000000".encode())  # damaged

    after = tier(tmp_path)

    cached = {name: after.hold(manifest(name, packed=False).digest) for name in ("a", "b")}
    assert cached["a"] is not None
    assert cached["a"].digests == {0: DIGEST}
    assert cached["a"].cached == {0: CHUNK}
    assert cached["b"] is not None
    assert cached["b"].cached == {}


def test_a_torn_digest_spoils_no_later_one(tmp_path: Path) -> None:
    before = tier(tmp_path)
    entry = admit(before, "a", packed=False)
    write_chunk(before, entry)
    with open(entry.path / "digests", "ab") as file:
        file.write(b"\n1")
    before.learn(entry, 0, DIGEST)

    after = tier(tmp_path).hold(entry.manifest.digest)

    assert after is not None
    assert after.digests == {0: DIGEST}


def test_the_capacity_is_never_exceeded(tmp_path: Path) -> None:
    small = tier(tmp_path, 6000)
    for name in "abcdefgh":
        entry = admit(small, name)
        write_chunk(small, entry)
        small.release(entry)
        files = [f.stat().st_size for f in (tmp_path / "ssd").rglob("*") if f.is_file()]
        assert small.used_bytes() == sum(files) <= 6000

    held = small.weight_bytes()
    assert manifest("h").digest in held
    assert manifest("a").digest not in held


def test_of_a_held_folder_only_the_idle_chunks_go(tmp_path: Path) -> None:
    room_for_one = tier(tmp_path)
    entry = admit(room_for_one, "a")
    write_chunk(room_for_one, entry)
    room_for_one._capacity_bytes = room_for_one.used_bytes() + CHUNK // 2
    room_for_one.begin_reading(entry)
    assert not room_for_one.reserve_chunk(CHUNK)

    room_for_one.end_reading(entry)

    assert room_for_one.reserve_chunk(CHUNK)
    assert entry.cached == {}
    assert not entry.chunk_path(0).exists()
    assert (entry.files_dir / "a.json").exists()


def test_files_that_cannot_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageFull, match="of 10 free"):
        admit(tier(tmp_path, 10), "a")
    assert list((tmp_path / "ssd").iterdir()) == []


def test_a_quarantined_chunk_is_gone(tmp_path: Path) -> None:
    ssd = tier(tmp_path)
    entry = admit(ssd, "a")
    write_chunk(ssd, entry)

    ssd.quarantine(entry, 0)

    assert entry.cached == {}
    assert not entry.chunk_path(0).exists()
