"""Which store a URL names."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from stoker.placement.errors import BadRequest
from stoker.placement.sqlite_file import check_file
from stoker.placement.sqlite_store import SqliteStore
from stoker.placement.store import Store
from stoker.placement.store_rules import CHROOT_DEFAULT, check_path


def open_store(url: str, cluster_token: str) -> Store:
    """Open `sqlite:///abs/path/store.sqlite` or `zookeeper://host:port[,host:port]/chroot`.

    A file is guarded by its permissions, what lies in ZooKeeper by the cluster's token. BadRequest
    for another URL, CoordinationLost if the store cannot be opened, Unauthorized for another token.
    """
    place = _place_of(url)
    if isinstance(place, Path):
        return SqliteStore(place)
    from stoker.placement.zookeeper_store import ZooKeeperStore  # not everyone has a cluster

    return ZooKeeperStore(*place, cluster_token)


def probe_store(url: str, cluster_token: str) -> bool:
    """Whether there is a store at `url`; makes none.

    BadRequest for what is no store's URL, CoordinationLost if it is damaged or out of reach,
    Unauthorized for another token.
    """
    place = _place_of(url)
    if isinstance(place, Path):
        if not place.exists():
            return False
        check_file(place)
        return True
    from stoker.placement.zookeeper_store import probe

    return probe(*place, cluster_token)


def sqlite_file_of(url: str) -> Path | None:
    """The file of an embedded store, None for another one; BadRequest for what is no store."""
    place = _place_of(url)
    return place if isinstance(place, Path) else None


def _place_of(url: str) -> Path | tuple[str, str]:
    """The SQLite file, or ZooKeeper's hosts and chroot."""
    parts = urlsplit(url)
    plain = not (parts.query or parts.fragment)
    if parts.scheme == "sqlite" and plain and not parts.netloc and len(parts.path) > 1:
        return Path(parts.path)
    if parts.scheme == "zookeeper" and plain and parts.netloc and "@" not in parts.netloc:
        chroot = parts.path.rstrip("/")
        return parts.netloc, check_path(chroot) if chroot else CHROOT_DEFAULT
    raise BadRequest(
        "Expected the URL of a store, sqlite:///path/store.sqlite or "
        f"zookeeper://host:port/chroot, found {parts.scheme or 'no scheme'!r} "
        f"with path {parts.path!r:.80}.",
        "Correct STOKER_STORE; a password is made from the cluster's token and stands in no URL.",
    )
