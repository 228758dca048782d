"""`stoker rm`, `scale`, `evict` and `logs`: the small verbs."""

from __future__ import annotations

import datetime
import json
import re
from typing import Any

import click

from stoker.gateway.cli.client import CONTROL_SECONDS, error_of
from stoker.gateway.cli.options import (
    body_of,
    client_of,
    function_argument,
    function_names,
    gateway_option,
    json_option,
    namespace_option,
    path_of,
    reports_errors,
    say,
)
from stoker.placement.errors import BadRequest

_UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@click.command("rm")
@click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=function_names)
@namespace_option
@gateway_option
@reports_errors
def remove(names: tuple[str, ...], namespace: str, gateway: str | None) -> None:
    """Remove functions; their instances are stopped."""
    client = client_of(gateway)
    for name in names:
        value = body_of({"functionName": name}, namespace)
        client.call(
            "DELETE", path_of("/system/functions", namespace=namespace), value, missing=name
        )
        say(f"Removed {name}")


@click.command()
@function_argument
@click.argument("replicas", type=click.IntRange(min=0))
@namespace_option
@gateway_option
@reports_errors
def scale(name: str, replicas: int, namespace: str, gateway: str | None) -> None:
    """Set how many instances a function has now."""
    value = body_of({"serviceName": name, "replicas": replicas}, namespace)
    path = path_of("/system/scale-function", name, namespace=namespace)
    client_of(gateway).call("POST", path, value, missing=name)
    say(f"Scaled {name} to {replicas}")


@click.command()
@function_argument
@click.option("--disk", is_flag=True, help="From the nodes' disks too.")
@namespace_option
@gateway_option
@reports_errors
def evict(name: str, disk: bool, namespace: str, gateway: str | None) -> None:
    """Drop the weights of a function at zero from the nodes' memory."""
    value = body_of({"serviceName": name, "disk": disk}, namespace)
    path = path_of("/system/evict-function", name, namespace=namespace)
    client_of(gateway).call("POST", path, value, missing=name)
    say(f"Evicted {name}")


@click.command()
@function_argument
@click.option("--follow", "-f", is_flag=True, help="Go on with what comes.")
@click.option("--tail", default=0, help="Only the last N lines (0: all that are kept).")
@click.option("--since", default="", help="Only what is younger: 90s, 10m, 2h, or RFC 3339.")
@click.option("--instance", default="", help="Only this instance.")
@namespace_option
@gateway_option
@json_option
@reports_errors
def logs(
    name: str,
    follow: bool,
    tail: int,
    since: str,
    instance: str,
    namespace: str,
    gateway: str | None,
    as_json: bool,
) -> None:
    """Print the log of a function."""
    path = path_of(
        "/system/logs",
        name=name,
        namespace=namespace,
        instance=instance,
        tail=str(tail) if tail > 0 else "",
        follow="1" if follow else "",
        since=since_timestamp(since, datetime.datetime.now(datetime.UTC)),
    )
    # A followed log may be silent for as long as it likes.
    timeout_seconds = None if follow else CONTROL_SECONDS
    with client_of(gateway).open("GET", path, timeout_seconds=timeout_seconds) as answer:
        if answer.status >= 400:
            raise error_of(answer, name)
        for line in answer.lines():
            if line.strip() and as_json:
                click.echo(line)
            elif line.strip():
                say(_readable(line))


def since_timestamp(since: str, now: datetime.datetime) -> str:
    """RFC 3339 for a span such as `10m` before `now`, or for a timestamp as given."""
    if not since:
        return ""
    matched = re.fullmatch(r"(\d+)([smhd])", since)
    if matched:
        span = datetime.timedelta(seconds=int(matched.group(1)) * _UNIT_SECONDS[matched.group(2)])
        return (now - span).isoformat()
    try:
        moment = datetime.datetime.fromisoformat(since)
    except ValueError as error:
        raise BadRequest(
            f"Expected a span or a timestamp in --since, found {since!r}.",
            "Write 90s, 10m, 2h, 1d or 2026-01-31T12:00:00Z.",
        ) from error
    return (moment if moment.tzinfo else moment.astimezone()).isoformat()


def _readable(line: bytes) -> str:
    try:
        entry: Any = json.loads(line)
    except ValueError:
        return line.decode(errors="replace")
    if not isinstance(entry, dict):
        return line.decode(errors="replace")
    instance = str(entry.get("instance", ""))
    prefix = f"{entry.get('timestamp', '')} {instance}".strip()
    return f"{prefix} {entry.get('text', '')}".rstrip("\n")
