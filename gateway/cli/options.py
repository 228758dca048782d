"""What several verbs share: the gateway option, the exits, the two ways to print."""

from __future__ import annotations

import functools
import json
import urllib.parse
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from stoker.gateway.cli.client import GatewayClient, find_access
from stoker.gateway.cli.text import plain
from stoker.placement.errors import StokerError

P = ParamSpec("P")
COMPLETION_SECONDS = 1.0

namespace_option = click.option("--namespace", "-n", default="", help="Namespace of the function.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def function_argument(command: Callable[P, None]) -> Callable[P, None]:
    """The name of a function, given to the command as the parameter `name`."""
    return click.argument("name", shell_complete=function_names)(command)


def function_names(context: click.Context, _: click.Parameter, begun: str) -> list[str]:
    """What a shell offers for the name of a function; nothing when the gateway does not say."""
    try:
        path = path_of("/system/functions", namespace=context.params.get("namespace") or "")
        client = client_of(context.params.get("gateway"))
        found = client.call("GET", path, timeout_seconds=COMPLETION_SECONDS)
    except StokerError:
        return []
    names = [str(function["name"]) for function in found]
    return [name for name in names if name.startswith(begun) and plain(name) == name]


def gateway_option(command: Callable[P, None]) -> Callable[P, None]:
    """--gateway, given to the command as the parameter `gateway`."""
    return click.option(
        "--gateway", "-g", default=None, metavar="URL", help="Gateway URL ($STOKER_GATEWAY)."
    )(command)


def reports_errors(command: Callable[P, None]) -> Callable[P, None]:
    """Turn an error into two lines on stderr and exit 1; Ctrl-C into exit 130."""

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except StokerError as error:
            report(error)
            raise click.exceptions.Exit(1) from None
        except KeyboardInterrupt:
            raise click.exceptions.Exit(130) from None
        except BrokenPipeError:
            raise click.exceptions.Exit(0) from None

    return wrapped


def report(error: StokerError) -> None:
    """`error: <cause>` and `remedy: <remedy>` on stderr."""
    say(f"error: {error.cause}", err=True)
    if error.remedy:
        say(f"remedy: {error.remedy}", err=True)


def say(text: str, *, err: bool = False) -> None:
    """One line; nothing in it that came from afar can steer the terminal."""
    click.echo(plain(text), err=err)


def client_of(gateway: str | None) -> GatewayClient:
    return GatewayClient(find_access(gateway))


def path_of(route: str, name: str = "", /, **query: str) -> str:
    """`route/name?query` with everything quoted and empty values left out."""
    path = f"{route}/{urllib.parse.quote(name, safe='')}" if name else route
    present = {key: value for key, value in query.items() if value}
    return f"{path}?{urllib.parse.urlencode(present)}" if present else path


def body_of(fields: dict[str, Any], namespace: str) -> dict[str, Any]:
    """The body of a request, with the namespace if one was named."""
    return {**fields, "namespace": namespace} if namespace else fields


def print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2))


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, err: bool = False
) -> None:
    """A table on a terminal; in a pipe the same rows as tab-separated lines."""
    rows = [[plain(cell).replace("\t", r"\x09") for cell in row] for row in rows]
    console = Console(stderr=err)
    if not console.is_terminal:
        for row in (columns, *rows):
            click.echo("\t".join(row).rstrip(), err=err)
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    for line in console.render_lines(table, pad=False):
        styled = (s.style.render(s.text) if s.style else s.text for s in line)
        click.echo("".join(styled).rstrip(), err=err)


def bytes_in_words(count: float) -> str:
    """1536 as `1.5 KiB`."""
    units = ("B", "KiB", "MiB", "GiB", "TiB")
    power = 0
    while count >= 1024 and power < len(units) - 1:
        count /= 1024
        power += 1
    return f"{count:.1f} {units[power]}" if power else f"{count:.0f} B"
