"""`stoker jobs`: what was called asynchronously, what became of it, and what failed for good."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

import click

from stoker.gateway.cli.client import GatewayClient, error_of
from stoker.gateway.cli.options import (
    bytes_in_words,
    client_of,
    gateway_option,
    json_option,
    path_of,
    print_json,
    print_table,
    reports_errors,
)
from stoker.gateway.cli.status import age_in_words
from stoker.gateway.jobs.records import STATES
from stoker.placement.errors import Conflict

callbacks_option = click.option(
    "--callbacks", is_flag=True, help="The callbacks instead of the calls."
)


@click.group()
def jobs() -> None:
    """Look at asynchronous calls, and cancel or retry them."""


@jobs.command("ls")
@click.option("--state", type=click.Choice(STATES), default=None, help="Only these.")
@click.option("--function", default="", help="Only calls of this function.")
@click.option("--limit", default=100, show_default=True, type=click.IntRange(1, 1000))
@callbacks_option
@gateway_option
@json_option
@reports_errors
def list_jobs(
    state: str | None,
    function: str,
    limit: int,
    callbacks: bool,
    gateway: str | None,
    as_json: bool,
) -> None:
    """List the calls, the newest first."""
    found = _listed(client_of(gateway), state or "", function, limit, callbacks)
    _print_jobs(found, as_json)


@jobs.command()
@click.argument("call_id")
@gateway_option
@json_option
@reports_errors
def show(call_id: str, gateway: str | None, as_json: bool) -> None:
    """Show one call, and its callback."""
    job = client_of(gateway).call("GET", path_of("/system/async", call_id))
    if as_json:
        print_json(job)
        return
    callback = job.pop("callback") or {}
    rows = [(name, _in_words(name, value)) for name, value in job.items() if value is not None]
    rows += [
        (f"callback {name}", _in_words(name, callback[name]))
        for name in ("host", "state", "runs", "due_at", "status", "error")
        if callback.get(name) is not None
    ]
    print_table(("FIELD", "VALUE"), rows)


@jobs.command()
@click.argument("call_id")
@gateway_option
@reports_errors
def result(call_id: str, gateway: str | None) -> None:
    """Print what the function answered."""
    with client_of(gateway).open("GET", path_of("/async-function", call_id)) as answer:
        if answer.status >= 400:
            raise error_of(answer)
        if answer.status == 202:
            state = answer.json()["state"]
            raise Conflict(
                f"Expected {call_id} to have ended, found it {state}.",
                f"Look again later; `stoker jobs show {call_id}` tells when it is due.",
            )
        for chunk in answer.chunks():
            sys.stdout.buffer.write(chunk)
        sys.stdout.buffer.flush()


@jobs.command()
@click.argument("call_ids", nargs=-1, required=True, metavar="CALL_ID...")
@gateway_option
@reports_errors
def cancel(call_ids: tuple[str, ...], gateway: str | None) -> None:
    """Cancel calls that have not ended."""
    client = client_of(gateway)
    for call_id in call_ids:
        client.call("DELETE", path_of("/async-function", call_id))
        click.echo(f"Cancelled {call_id}")


@jobs.group()
def dead() -> None:
    """What failed for good, and is kept for a week."""


@dead.command("ls")
@callbacks_option
@gateway_option
@json_option
@reports_errors
def list_dead(callbacks: bool, gateway: str | None, as_json: bool) -> None:
    """List what failed for good, and why."""
    _print_jobs(_listed(client_of(gateway), "dead", "", 1000, callbacks), as_json)


@dead.command()
@click.argument("call_ids", nargs=-1, metavar="[CALL_ID...]")
@click.option("--all", "everything", is_flag=True, help="Each that `dead ls` lists.")
@callbacks_option
@gateway_option
@reports_errors
def retry(
    call_ids: tuple[str, ...], everything: bool, callbacks: bool, gateway: str | None
) -> None:
    """Let calls that failed for good run again."""
    if bool(call_ids) == everything:
        raise click.UsageError("Name calls, or all of them with --all.")
    client = client_of(gateway)
    if everything:
        call_ids = tuple(job["call_id"] for job in _listed(client, "dead", "", 1000, callbacks))
    for call_id in call_ids:
        path = path_of("/system/async", call_id) + "/retry"
        client.call("POST", path + ("?queue=callback" if callbacks else ""))
        click.echo(f"Retried {call_id}")


def _listed(
    client: GatewayClient, state: str, function: str, limit: int, callbacks: bool
) -> list[dict[str, Any]]:
    path = path_of(
        "/system/async",
        state=state,
        function=function,
        limit=str(limit),
        queue="callback" if callbacks else "",
    )
    found: list[dict[str, Any]] = client.call("GET", path)
    return found


def _print_jobs(found: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    print_table(
        ("CALL ID", "OF", "STATE", "RUNS", "AGE", "STATUS", "REASON"),
        [
            (
                job["call_id"],
                job.get("function") or job.get("host", ""),
                job["state"],
                str(job["runs"]),
                age_in_words(time.time() - job["created_at"]),
                str(job["status"] or ""),
                _cause(job["error"]),
            )
            for job in found
        ],
    )


def _in_words(name: str, value: Any) -> str:
    if name.endswith("_at"):
        seconds = value - time.time()
        return f"in {age_in_words(seconds)}" if seconds > 0 else f"{age_in_words(-seconds)} ago"
    if name.endswith("_bytes"):
        return bytes_in_words(value)
    return _cause(value) if name == "error" else str(value)


def _cause(error: Mapping[str, Any] | None) -> str:
    return str((error or {}).get("cause", ""))
