"""Upload a checkpoint to S3, and say what checkpoints lie somewhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from stoker.placement.errors import BadSpec, CheckpointError
from stoker.runtime.checkpoint import manifest as manifests
from stoker.runtime.checkpoint.manifest import MANIFEST_NAME, Manifest
from stoker.runtime.checkpoint.resolve import INDEX_NAME, WEIGHTS_NAME, resolve
from stoker.runtime.checkpoint.settings import CheckpointSettings
from stoker.runtime.checkpoint.source import Source, SourceFile, open_source, s3_location
from stoker.runtime.checkpoint.source_file import FileSource
from stoker.runtime.checkpoint.source_s3 import S3Folder


@dataclass(frozen=True, slots=True)
class Listed:
    """One checkpoint: `weight_bytes` of it lie at `uri`; `digest` only where it is on record."""

    uri: str
    packed: bool
    weight_bytes: int
    digest: str | None = None


def push(
    folder: Path,
    uri: str,
    settings: CheckpointSettings,
    on_bytes: Callable[[int], None] = lambda _: None,
) -> Manifest:
    """Upload the checkpoint in `folder` to `s3://bucket/prefix`; the bucket must exist.

    What makes a checkpoint of the files goes up last, so that half a push is never taken for a
    whole one. `on_bytes` is called from several threads.
    """
    if not uri.startswith("s3://"):
        raise BadSpec(f"Expected s3://bucket/prefix to push to, found {uri!r:.120}.")
    bucket, prefix = s3_location(uri)
    manifest = resolve(FileSource(folder.absolute()))
    target = S3Folder(bucket, prefix, settings)
    for name in upload_order(manifest):
        target.put(name, folder / name, on_bytes)
    return manifest


def upload_order(manifest: Manifest) -> list[str]:
    """Small files, weights, then the index or manifest that completes the checkpoint."""
    small = [entry.name for entry in manifest.files if entry.name != INDEX_NAME]
    index = [entry.name for entry in manifest.files if entry.name == INDEX_NAME]
    weights = [weight.name for weight in manifest.weights]
    return [*small, *weights, *index, *([MANIFEST_NAME] if manifest.packed else [])]


def list_checkpoints(uri: str, settings: CheckpointSettings) -> list[Listed]:
    """Every checkpoint at `uri` or one folder below it."""
    source = open_source(uri, settings)
    folders: dict[str, dict[str, SourceFile]] = {}
    for file in source.list():
        folder, _, name = file.name.rpartition("/")
        folders.setdefault(folder, {})[name] = file
    return [
        _listed(source, folder, files)
        for folder, files in sorted(folders.items())
        if files.keys() & {MANIFEST_NAME, INDEX_NAME, WEIGHTS_NAME}
    ]


def list_cached(ssd_dir: Path) -> list[Listed]:
    """What the SSD tier of a node on this machine holds, seen from outside its process."""
    listed = []
    for path in sorted(ssd_dir.glob("*/manifest.json")):
        try:
            manifest = manifests.decode(path.read_bytes())
            chunks = [chunk.stat().st_size for chunk in (path.parent / "chunks").iterdir()]
        except (OSError, CheckpointError):
            continue  # evicted while we looked, or a leftover that the node will sweep
        in_place = (path.parent / "origin").exists()
        held = manifest.weight_bytes if in_place else sum(chunks)
        listed.append(Listed(str(path.parent), manifest.packed, held, manifest.digest))
    return listed


def _listed(source: Source, folder: str, files: dict[str, SourceFile]) -> Listed:
    weights = [file.bytes for name, file in files.items() if name.endswith(".safetensors")]
    uri = f"{source.uri}/{folder}" if folder else source.uri
    return Listed(uri, MANIFEST_NAME in files, sum(weights))
