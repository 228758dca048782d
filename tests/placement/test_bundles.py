"""Every place for bundles keeps one contract; the bucket is one of a real S3 server."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import s3
from stoker.placement.bundles import (
    STORED_BYTES_MAXIMUM,
    Bundles,
    FolderBundles,
    StoredBundles,
    open_bundles,
)
from stoker.placement.errors import BadRequest, PayloadTooLarge, StorageFull, Unavailable
from stoker.placement.memory_store import MemoryStore

ARCHIVE = b"an archive" * 1000
DIGEST = hashlib.sha256(ARCHIVE).hexdigest()


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with (
        s3.running(tmp_path_factory.mktemp("s3")) as server,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in server.environment.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(params=["folder", "store", "s3"])
def bundles(request: pytest.FixtureRequest, tmp_path: Path) -> Bundles:
    if request.param == "folder":
        return open_bundles(f"file://{tmp_path}/a/b", "zookeeper://z:1", MemoryStore())
    if request.param == "store":
        return open_bundles(None, "zookeeper://z:1/chroot", MemoryStore())
    request.getfixturevalue("bucket")
    return open_bundles(f"s3://{s3.BUCKET}/code/{tmp_path.name}", "zookeeper://z:1", MemoryStore())


def test_what_was_put_comes_back_and_nothing_else_does(bundles: Bundles) -> None:
    assert bundles.get(DIGEST) is None
    bundles.put(DIGEST, ARCHIVE)
    bundles.put(DIGEST, ARCHIVE)
    assert bundles.get(DIGEST) == ARCHIVE
    assert bundles.get("0" * 64) is None


@pytest.mark.parametrize("name", ["../" + DIGEST, "", DIGEST.upper(), DIGEST + "\n"])
def test_a_name_that_is_no_digest_is_refused(bundles: Bundles, name: str) -> None:
    with pytest.raises(BadRequest):
        bundles.put(name, ARCHIVE)
    with pytest.raises(BadRequest):
        bundles.get(name)


def test_beside_an_embedded_store_lies_a_folder_that_only_its_owner_reads(tmp_path: Path) -> None:
    bundles = open_bundles(None, f"sqlite://{tmp_path}/store.sqlite", MemoryStore())
    bundles.put(DIGEST, ARCHIVE)
    (file,) = (tmp_path / "bundles").iterdir()
    assert file.name == f"{DIGEST}.tar.gz"
    assert [path.stat().st_mode & 0o777 for path in (file, file.parent)] == [0o600, 0o700]


def test_what_fits_into_no_entry_of_the_store_is_told_where_to_go() -> None:
    archive = os.urandom(STORED_BYTES_MAXIMUM + 1)
    with pytest.raises(PayloadTooLarge, match="at most 900000 bytes, found 900001") as raised:
        StoredBundles(MemoryStore()).put("0" * 64, archive)
    assert raised.value.remedy == "Set STOKER_BUNDLES to s3://bucket/prefix."


def test_a_folder_that_cannot_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageFull):
        FolderBundles(tmp_path / "file" / "folder").put(DIGEST, ARCHIVE)


def test_a_bucket_that_is_not_there_is_told(bucket: None) -> None:
    absent = open_bundles("s3://absent", "zookeeper://z:1", MemoryStore())
    with pytest.raises(Unavailable, match="s3://absent/"):
        absent.put(DIGEST, ARCHIVE)
    with pytest.raises(Unavailable, match="s3://absent/"):
        absent.get(DIGEST)


@pytest.mark.parametrize(
    "url", ["http://x/y", "s3://", "s3://a:b@c/d", "file://host/x", "s3://b?x"]
)
def test_another_url_is_refused(url: str) -> None:
    with pytest.raises(BadRequest, match="STOKER_BUNDLES"):
        open_bundles(url, "zookeeper://z:1", MemoryStore())
