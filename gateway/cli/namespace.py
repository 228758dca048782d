"""`stoker namespace create | ls | describe | rm`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from stoker.gateway.cli.client import GatewayClient
from stoker.gateway.cli.options import (
    client_of,
    gateway_option,
    json_option,
    path_of,
    print_json,
    print_table,
    reports_errors,
    say,
)
from stoker.placement.errors import BadRequest, NotFound

# By this mark OpenFaaS' clients know a namespace of functions.
_MARK = {"openfaas": "1"}


@click.group()
def namespace() -> None:
    """Namespaces of functions."""


@namespace.command("create")
@click.argument("name")
@click.option("--label", "labels", multiple=True, metavar="KEY=VALUE")
@click.option("--annotation", "annotations", multiple=True, metavar="KEY=VALUE")
@gateway_option
@reports_errors
def create(
    name: str, labels: Sequence[str], annotations: Sequence[str], gateway: str | None
) -> None:
    """Make a namespace."""
    body = {
        "name": name,
        "labels": _pairs("--label", labels),
        "annotations": {**_pairs("--annotation", annotations), **_MARK},
    }
    client_of(gateway).call("POST", "/system/namespace/", body)
    say(f"Created {name}")


@namespace.command("ls")
@gateway_option
@json_option
@reports_errors
def list_namespaces(gateway: str | None, as_json: bool) -> None:
    """List the namespaces."""
    found = client_of(gateway).call("GET", "/system/namespaces")
    if as_json:
        print_json(found)
        return
    print_table(("NAME",), [(str(name),) for name in found])


@namespace.command("describe")
@click.argument("name")
@gateway_option
@json_option
@reports_errors
def describe(name: str, gateway: str | None, as_json: bool) -> None:
    """Show one namespace with its labels and annotations."""
    found = _existing(client_of(gateway), "GET", name)
    if as_json:
        print_json(found)
        return
    rows = [("name", str(found["name"]))]
    for kind in ("labels", "annotations"):
        rows += [(f"{kind}.{key}", str(value)) for key, value in (found.get(kind) or {}).items()]
    print_table(("KEY", "VALUE"), rows)


@namespace.command("rm")
@click.argument("name")
@gateway_option
@reports_errors
def remove(name: str, gateway: str | None) -> None:
    """Remove a namespace."""
    _existing(client_of(gateway), "DELETE", name, {"name": name})
    say(f"Removed {name}")


def _existing(client: GatewayClient, method: str, name: str, body: Any = None) -> Any:
    try:
        return client.call(method, path_of("/system/namespace", name), body)
    except NotFound as error:
        raise NotFound(
            f"Expected a namespace {name!r}, found none.", "`stoker namespace ls` lists them."
        ) from error


def _pairs(option: str, texts: Sequence[str]) -> dict[str, str]:
    pairs = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise BadRequest(f"Expected KEY=VALUE in {option}, found {text!r}.")
        pairs[key] = value
    return pairs
