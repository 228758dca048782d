"""Which store a URL names."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from stoker.placement.errors import BadRequest
from stoker.placement.sqlite_store import SqliteStore
from stoker.placement.store import Store
from stoker.placement.store_rules import check_path


def open_store(url: str) -> Store:
    """Open `sqlite:///abs/path/store.sqlite` or `zookeeper://host:port[,host:port]/chroot`.

    BadRequest for another URL, CoordinationLost if the store cannot be opened.
    """
    parts = urlsplit(url)
    plain = not (parts.query or parts.fragment)
    if parts.scheme == "sqlite" and plain and not parts.netloc and len(parts.path) > 1:
        return SqliteStore(Path(parts.path))
    if parts.scheme == "zookeeper" and plain and parts.netloc and "@" not in parts.netloc:
        from stoker.placement.zookeeper_store import ZooKeeperStore  # not everyone has a cluster

        chroot = parts.path.rstrip("/")
        return (
            ZooKeeperStore(parts.netloc, check_path(chroot))
            if chroot
            else ZooKeeperStore(parts.netloc)
        )
    raise BadRequest(
        "Expected the URL of a store, sqlite:///path/store.sqlite or "
        f"zookeeper://host:port/chroot, found {parts.scheme or 'no scheme'!r} "
        f"with path {parts.path!r:.80}.",
        "Correct STOKER_STORE.",
    )
