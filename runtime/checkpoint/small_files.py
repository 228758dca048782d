"""A checkpoint's configuration, tokenizer and layout on the SSD, verified at every open.

    <digest>/layout.json     follows from the manifest, and is compared with it
    <digest>/files/<name>    as long as the manifest says, with the digest that is in
    <digest>/sums.json       {name: chunk digest in hex}, of what was verified when it was fetched

Damage to the sums makes files look damaged, never the reverse.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import orjson

from stoker.native import digest
from stoker.runtime.checkpoint.manifest import FileEntry, Manifest
from stoker.runtime.durable import replace_file

LAYOUT_NAME = "layout.json"
FILES_NAME = "files"
_SUMS_NAME = "sums.json"


def payloads(layout: bytes, files: Mapping[str, bytes]) -> dict[str, bytes]:
    """What to write below the checkpoint's folder, by name."""
    sums = {name: digest(payload).hex() for name, payload in files.items()}
    named = {f"{FILES_NAME}/{name}": payload for name, payload in files.items()}
    return {LAYOUT_NAME: layout, _SUMS_NAME: orjson.dumps(sums), **named}


def damaged(folder: Path, manifest: Manifest, layout: bytes) -> list[str]:
    """The names, below `folder`, of what is not as it was written."""
    sums = _read_sums(folder)
    names = [
        f"{FILES_NAME}/{entry.name}"
        for entry in manifest.files
        if not _is_sound(folder / FILES_NAME / entry.name, entry, sums.get(entry.name))
    ]
    return names if _read(folder / LAYOUT_NAME) == layout else [LAYOUT_NAME, *names]


def mend(
    folder: Path, manifest: Manifest, layout: bytes, fetch: Callable[[FileEntry], bytes]
) -> list[str]:
    """Replace what is damaged, files by what `fetch` gives; the names. OSError."""
    names = damaged(folder, manifest, layout)
    if LAYOUT_NAME in names:
        replace_file(folder / LAYOUT_NAME, layout)
    sums = _read_sums(folder)
    for entry in manifest.files:
        if f"{FILES_NAME}/{entry.name}" in names:
            payload = fetch(entry)
            replace_file(folder / FILES_NAME / entry.name, payload)
            sums[entry.name] = digest(payload).hex()
            replace_file(folder / _SUMS_NAME, orjson.dumps(sums))
    return names


def _read_sums(folder: Path) -> dict[str, str]:
    try:
        sums = orjson.loads(_read(folder / _SUMS_NAME) or b"")
    except orjson.JSONDecodeError:
        return {}
    return sums if isinstance(sums, dict) else {}


def _is_sound(path: Path, entry: FileEntry, expected: str | None) -> bool:
    payload = _read(path)
    if payload is None or len(payload) != entry.bytes:
        return False
    return digest(payload).hex() == expected


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:  # gone or unreadable is as good as damaged
        return None
