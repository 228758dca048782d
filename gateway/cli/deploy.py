"""`stoker deploy`: say what will change, build what has a handler folder, then PUT or POST."""

from __future__ import annotations

import fnmatch
import hashlib
import hmac
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from stoker.gateway.cli.archive import build_archive
from stoker.gateway.cli.changes import Difference, differences
from stoker.gateway.cli.client import Access, GatewayClient, error_of, find_access
from stoker.gateway.cli.manifests import load_manifest
from stoker.gateway.cli.options import (
    gateway_option,
    json_option,
    path_of,
    print_json,
    reports_errors,
    say,
)
from stoker.gateway.cli.stack import StackFunction
from stoker.gateway.cli.text import plain
from stoker.placement.errors import BadSpec, NotFound, StokerError


@click.command()
@click.option(
    "--file",
    "-f",
    "stack_path",
    default="stack.yaml",
    show_default=True,
    type=click.Path(path_type=Path),
    help="Stack file, Knative Service or func.yaml.",
)
@click.option("--filter", "pattern", default="*", help="Deploy only names that match.")
@click.option("--dry-run", is_flag=True, help="Only say what would change.")
@gateway_option
@json_option
@reports_errors
def deploy(
    stack_path: Path, pattern: str, dry_run: bool, gateway: str | None, as_json: bool
) -> None:
    """Say what changes, and deploy a stack file, Knative Services or a func.yaml."""
    manifest = load_manifest(stack_path)
    for note in manifest.notes:
        say(f"note: {note}", err=True)
    chosen = [f for f in manifest.functions if fnmatch.fnmatchcase(f.name, pattern)]
    if not chosen:
        names = ", ".join(f.name for f in manifest.functions) or "no function"
        raise BadSpec(
            f"Expected a function like {pattern!r} in {stack_path}, found {names}.",
            "Name one of them with --filter.",
        )
    access = find_access(gateway)
    client = GatewayClient(access)
    results = []
    for function in chosen:
        status = _status(client, function)
        changes = differences(status, function.deployment())
        if not as_json:
            _show(function, status is None, changes)
        told = [asdict(change) for change in changes]
        result: dict[str, Any] = {"name": function.name, "changes": told}
        if not dry_run:
            if function.needs_build:
                build(client, access, function)
            result |= _put(client, function)
            if not as_json:
                say(f"Deployed {function.name}: {result['url']}")
        results.append(result)
    if as_json:
        print_json(results)


def _status(client: GatewayClient, function: StackFunction) -> dict[str, Any] | None:
    """What is deployed under this name; None for nothing."""
    path = path_of("/system/function", function.name, namespace=function.namespace)
    try:
        found: dict[str, Any] = client.call("GET", path, missing=function.name)
    except NotFound:
        return None
    return found


def _show(function: StackFunction, is_new: bool, changes: list[Difference]) -> None:
    """The changes, in colour on a terminal."""
    if is_new:
        say(f"{function.name} is new:")
    else:
        say(f"{function.name} changes:" if changes else f"{function.name} keeps its settings.")
    colors = {"+": "green", "-": "red", "~": "yellow"}
    for change in changes:
        click.echo(click.style(f"  {plain(str(change))}", fg=colors[change.sign]))
    if function.needs_build:
        say(f"  code: from {function.handler}")


def build(client: GatewayClient, access: Access, function: StackFunction) -> None:
    """POST /build the handler folder; StokerError with the builder's words if it fails."""
    archive = build_archive(function)
    signature = hmac.new((access.password or "").encode(), archive, hashlib.sha256).hexdigest()
    headers = {
        "Content-Type": "application/octet-stream",
        "Accept": "application/x-ndjson",
        "X-Build-Signature": f"sha256={signature}",
    }
    last: dict[str, Any] = {}
    with client.open("POST", "/build", archive, headers) as answer:
        if answer.status >= 400:
            raise error_of(answer)
        for line in answer.lines():
            if line.strip():
                last = _object(line)
    if last.get("status") != "success":
        said = last.get("error") or " ".join(map(str, last.get("log") or ())) or "no result"
        raise BadSpec(
            f"Expected {function.name} to build from {function.handler}, found: {said}",
            "Correct the handler folder and deploy again.",
        )


def _put(client: GatewayClient, function: StackFunction) -> dict[str, Any]:
    deployment = function.deployment()
    try:
        client.call("PUT", "/system/functions", deployment, missing=function.name)
    except NotFound:
        client.call("POST", "/system/functions", deployment)
    name = f"{function.name}.{function.namespace}" if function.namespace else function.name
    status = client.call(
        "GET", path_of("/system/function", function.name, namespace=function.namespace)
    )
    return {"url": client.url + f"/function/{name}", "status": status}


def _object(line: bytes) -> dict[str, Any]:
    try:
        decoded = json.loads(line)
    except ValueError as error:
        raise StokerError(f"Expected JSON lines from /build, found {line[:80]!r}.") from error
    return decoded if isinstance(decoded, dict) else {}
