"""`stoker doctor`: whether this machine and installation can run Stoker well."""

from __future__ import annotations

import logging
import os
import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import click

from stoker.deploy.doctor_gateway import gateway_checks
from stoker.gateway.cli.options import gateway_option, json_option, print_json, reports_errors
from stoker.runtime.doctor import node_checks
from stoker.runtime.doctor_check import Check, State

_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}
_NAME_COLUMNS = 30
_TEXT_COLUMNS = 100


@click.command()
@click.option("--state", type=click.Path(path_type=Path), default=None, help="State directory.")
@click.option("--store", default=None, metavar="URL", help="Store, e.g. zookeeper://host:2181/a.")
@gateway_option
@json_option
@reports_errors
def doctor(state: Path | None, store: str | None, gateway: str | None, as_json: bool) -> None:
    """Check this machine and installation, and say what to repair.

    Works with no server running. Exits with 1 if a check fails; warnings cost speed or safety.
    """
    # What the libraries log on the way is told by the checks, in one sentence each.
    logging.disable(logging.CRITICAL)
    environment = dict(os.environ)
    if state is not None:
        environment["STOKER_STATE"] = str(state.expanduser().absolute())
    if store is not None:
        environment["STOKER_STORE"] = store
    checks = []
    for check in _all_checks(gateway, environment):
        checks.append(check)
        if not as_json:
            click.echo(in_words(check))
    worst = worst_state(checks)
    if as_json:
        print_json({"state": worst, "checks": [asdict(check) for check in checks]})
    else:
        click.echo(f"\n{summary(checks)}")
    if worst == "fail":
        raise click.exceptions.Exit(1)


def _all_checks(gateway: str | None, environment: Mapping[str, str]) -> Iterator[Check]:
    yield from node_checks(environment)
    yield from gateway_checks(gateway, environment)


def worst_state(checks: Sequence[Check]) -> State:
    """What the whole is: as bad as its worst part."""
    states = {check.state for check in checks}
    return "fail" if "fail" in states else "warn" if "warn" in states else "ok"


def in_words(check: Check) -> str:
    """State, name and sentence, with the remedy on lines of its own."""
    state = click.style(f"{check.state:<6}", fg=_COLOURS[check.state])
    indent = " " * (6 + _NAME_COLUMNS)
    lines = textwrap.wrap(check.found, _TEXT_COLUMNS - len(indent), break_long_words=False)
    if check.remedy:
        # A remedy may be a command to copy, so it is not broken.
        lines.append(f"-> {check.remedy}")
    return f"{state}{check.name:<{_NAME_COLUMNS}}" + f"\n{indent}".join(lines)


def summary(checks: Sequence[Check]) -> str:
    counts = Counter(check.state for check in checks)
    verdict = {
        "ok": "Stoker can run here.",
        "warn": "Stoker can run here, and better with what -> says.",
        "fail": "Stoker cannot run well here before what failed is repaired.",
    }[worst_state(checks)]
    return f"{counts['ok']} ok, {counts['warn']} to improve, {counts['fail']} failed. {verdict}"
