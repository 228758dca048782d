"""`stoker model pack | push | ls`."""

from __future__ import annotations

import dataclasses
import functools
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click
import orjson
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from stoker.placement.errors import StokerError
from stoker.runtime.checkpoint.settings import CheckpointSettings

_F = TypeVar("_F", bound=Callable[..., Any])


def _reported(command: _F) -> _F:
    """An error of ours ends the command with its two sentences and exit status 1."""

    @functools.wraps(command)
    def wrapper(*arguments: Any, **options: Any) -> Any:
        try:
            return command(*arguments, **options)
        except StokerError as error:
            click.echo(f"error: {error.cause}", err=True)
            if error.remedy:
                click.echo(f"remedy: {error.remedy}", err=True)
            sys.exit(1)

    return wrapper  # type: ignore[return-value] # functools.wraps keeps the signature


@click.group()
def model() -> None:
    """Pack, upload and list models."""


@model.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--out", help="A folder or s3://bucket/prefix. Default: FOLDER-packed.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@_reported
def pack(folder: Path, out: str | None, as_json: bool) -> None:
    """Rewrite the Hugging Face model in FOLDER so that it loads fastest.

    The result is still a Hugging Face folder with valid safetensors.
    """
    if out is None or not out.startswith("s3://"):
        target = (
            Path(out) if out else folder.absolute().with_name(f"{folder.absolute().name}-packed")
        )
        _report(str(target), _pack(folder, target), as_json)
        return
    work = Path(tempfile.mkdtemp(prefix="stoker-pack-"))
    try:
        packed = _pack(folder, work / "model")
        _push(work / "model", out)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    _report(out, packed, as_json)


@model.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("uri")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@_reported
def push(folder: Path, uri: str, as_json: bool) -> None:
    """Upload the model in FOLDER to URI, s3://bucket/prefix. The bucket must exist."""
    _report(uri, _push(folder, uri), as_json)


@model.command("ls")
@click.argument("uri", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
@_reported
def list_models(uri: str | None, as_json: bool) -> None:
    """List the models at URI and one folder below it; without URI, those cached on this node."""
    from stoker.runtime.checkpoint.push import list_cached, list_checkpoints

    if uri is None:
        state = Path(os.environ.get("STOKER_STATE") or Path.home() / ".stoker")
        found = list_cached(state / "ssd")
    else:
        found = list_checkpoints(uri, _settings())
    if as_json:
        click.echo(orjson.dumps([dataclasses.asdict(item) for item in found]).decode())
        return
    for item in found:
        form = "packed" if item.packed else "plain"
        click.echo(f"{item.uri}  {form}  {item.weight_bytes / 1e6:,.1f} MB")


def _settings() -> CheckpointSettings:
    return CheckpointSettings.from_environment(os.environ)


def _pack(folder: Path, target: Path) -> Any:
    from stoker.runtime.checkpoint.pack import pack as pack_folder

    with _bar("packing", _bytes_below(folder, "*.safetensors")) as advance:
        return pack_folder(folder, target, advance)


def _push(folder: Path, uri: str) -> Any:
    from stoker.runtime.checkpoint.push import push as push_folder

    with _bar("uploading", _bytes_below(folder, "*")) as advance:
        return push_folder(folder, uri, _settings(), advance)


def _bytes_below(folder: Path, pattern: str) -> int:
    return sum(path.stat().st_size for path in folder.glob(pattern) if path.is_file())


@contextmanager
def _bar(what: str, total_bytes: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr; the yielded function is told of each piece's bytes."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=total_bytes)
        yield lambda count: bar.advance(task, count)


def _report(where: str, manifest: Any, as_json: bool) -> None:
    fields = {
        "uri": where,
        "digest": manifest.digest,
        "packed": manifest.packed,
        "weight_bytes": manifest.weight_bytes,
        "tensors": len(manifest.tensors),
    }
    if as_json:
        click.echo(orjson.dumps(fields).decode())
        return
    click.echo(f"{where}: {manifest.weight_bytes / 1e6:,.1f} MB in {len(manifest.tensors)} tensors")
    click.echo(f"digest {manifest.digest}")
