"""`stoker secret create | update | ls | rm`: values travel in bodies and are never printed."""

from __future__ import annotations

import base64
import sys
from pathlib import Path

import click

from stoker.gateway.cli.options import (
    body_of,
    client_of,
    gateway_option,
    json_option,
    namespace_option,
    path_of,
    print_json,
    print_table,
    reports_errors,
    say,
)
from stoker.placement.errors import BadRequest, NotFound

SECRET_BYTES_MAXIMUM = 1 << 20


@click.group()
def secret() -> None:
    """Secrets, which functions read as files in /var/openfaas/secrets."""


@secret.command("create")
@click.argument("name")
@click.argument("file", default="-")
@namespace_option
@gateway_option
@reports_errors
def create(name: str, file: str, namespace: str, gateway: str | None) -> None:
    """Store FILE, or standard input, as a new secret."""
    client_of(gateway).call("POST", "/system/secrets", _secret(name, file, namespace))
    say(f"Created {name}")


@secret.command("update")
@click.argument("name")
@click.argument("file", default="-")
@namespace_option
@gateway_option
@reports_errors
def update(name: str, file: str, namespace: str, gateway: str | None) -> None:
    """Put FILE, or standard input, in the place of a secret's value."""
    _existing(name, gateway, "PUT", _secret(name, file, namespace))
    say(f"Updated {name}")


@secret.command("ls")
@namespace_option
@gateway_option
@json_option
@reports_errors
def list_secrets(namespace: str, gateway: str | None, as_json: bool) -> None:
    """List the names of the secrets."""
    found = client_of(gateway).call("GET", path_of("/system/secrets", namespace=namespace))
    if as_json:
        print_json(found)
        return
    rows = [(str(entry["name"]), str(entry.get("namespace", ""))) for entry in found]
    print_table(("NAME", "NAMESPACE"), rows)


@secret.command("rm")
@click.argument("name")
@namespace_option
@gateway_option
@reports_errors
def remove(name: str, namespace: str, gateway: str | None) -> None:
    """Remove a secret."""
    _existing(name, gateway, "DELETE", body_of({"name": name}, namespace))
    say(f"Removed {name}")


def _existing(name: str, gateway: str | None, method: str, body: dict[str, str]) -> None:
    try:
        client_of(gateway).call(method, "/system/secrets", body)
    except NotFound as error:
        raise NotFound(
            f"Expected a secret {name!r}, found none.", "`stoker secret ls` lists them."
        ) from error


def _secret(name: str, file: str, namespace: str) -> dict[str, str]:
    if file == "-":
        value = sys.stdin.buffer.read(SECRET_BYTES_MAXIMUM + 1)
    else:
        try:
            with Path(file).open("rb") as opened:
                value = opened.read(SECRET_BYTES_MAXIMUM + 1)
        except OSError as error:
            raise BadRequest(f"Expected to read {file}, found: {error.strerror}.") from error
    if len(value) > SECRET_BYTES_MAXIMUM:
        raise BadRequest(f"Expected a secret of at most {SECRET_BYTES_MAXIMUM} bytes, found more.")
    return body_of({"name": name, "rawValue": base64.b64encode(value).decode()}, namespace)
