"""`stoker invoke`: call a function and print what it answers, as it comes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from stoker.gateway.cli.client import Answer, GatewayClient, error_of
from stoker.gateway.cli.options import (
    client_of,
    function_argument,
    gateway_option,
    namespace_option,
    path_of,
    print_table,
    reports_errors,
)
from stoker.gateway.cli.server_timing import (
    decode_event,
    delta_text,
    parse_server_timing,
    sse_data,
    waterfall,
)
from stoker.placement.errors import BadRequest, FunctionError, StokerError


@click.command()
@function_argument
@click.option("--data", "-d", default=None, help="Body: text, @file, or - for stdin.")
@click.option("--stream", is_flag=True, help="Print the answer as it is made.")
@click.option("--timing", is_flag=True, help="Show on stderr where the time went.")
@click.option("--async", "later", is_flag=True, help="Queue the call and print its id.")
@click.option("--callback", default="", help="With --async: URL that gets the answer.")
@click.option("--timeout", "timeout_seconds", default=300.0, help="Seconds to wait for bytes.")
@namespace_option
@gateway_option
@reports_errors
def invoke(
    name: str,
    data: str | None,
    stream: bool,
    timing: bool,
    later: bool,
    callback: str,
    timeout_seconds: float,
    namespace: str,
    gateway: str | None,
) -> None:
    """Call a function with a body and print its answer."""
    client = client_of(gateway)
    body = _body(data)
    headers = {"Content-Type": "application/json" if _is_json(body) else "text/plain"}
    if later:
        _queue(client, name, namespace, body, headers, callback)
        return
    if stream and body:
        body, headers = _streamed(client, name, namespace, body, headers)
    route = f"/function/{name}.{namespace}" if namespace else path_of("/function", name)
    with client.open("POST", route, body, headers, timeout_seconds=timeout_seconds) as answer:
        if answer.status >= 400:
            raise _failure(answer, name)
        _print_body(answer, stream)
        if timing:
            _print_timing(answer)


def _queue(
    client: GatewayClient,
    name: str,
    namespace: str,
    body: bytes,
    headers: dict[str, str],
    callback: str,
) -> None:
    route = f"/async-function/{name}.{namespace}" if namespace else path_of("/async-function", name)
    if callback:
        headers = {**headers, "X-Callback-Url": callback}
    with client.open("POST", route, body, headers) as answer:
        if answer.status >= 400:
            raise error_of(answer, name)
        click.echo(answer.headers["X-Call-Id"])


def _body(data: str | None) -> bytes:
    if data == "-" or (data is None and not sys.stdin.isatty()):
        return sys.stdin.buffer.read()
    if data is not None and data.startswith("@"):
        try:
            return Path(data[1:]).read_bytes()
        except OSError as error:
            raise BadRequest(
                f"Expected a file at {data[1:]}, found: {error.strerror}.",
                "Write --data @FILE with the path of a file.",
            ) from error
    return (data or "").encode()


def _is_json(body: bytes) -> bool:
    if not body.lstrip().startswith((b"{", b"[")):
        return False
    try:
        json.loads(body)
    except ValueError:
        return False
    return True


def _streamed(
    client: GatewayClient, name: str, namespace: str, body: bytes, headers: dict[str, str]
) -> tuple[bytes, dict[str, str]]:
    """The body that asks for a stream: a prompt for a chat function becomes a conversation."""
    request: Any = json.loads(body) if headers["Content-Type"] == "application/json" else None
    if not isinstance(request, dict):
        status = client.call(
            "GET", path_of("/system/function", name, namespace=namespace), missing=name
        )
        task = (status.get("annotations") or {}).get("stoker/task")
        prompt = body.decode(errors="replace")
        if task == "chat":
            request = {"messages": [{"role": "user", "content": prompt}]}
        elif task == "completion":
            request = {"prompt": prompt}
        else:
            return body, headers
    if "messages" in request or "prompt" in request:
        streamed = {"model": name, **request, "stream": True}
        return json.dumps(streamed).encode(), {"Content-Type": "application/json"}
    return body, headers


def _print_body(answer: Answer, stream: bool) -> None:
    if stream and answer.content_type == "text/event-stream":
        for data in sse_data(answer.lines()):
            event = decode_event(data)
            if event is None:
                continue
            if "error" in event:
                raise _stream_error(event["error"])
            click.echo(delta_text(event), nl=False)
        click.echo()
        return
    last = b""
    for chunk in answer.chunks():
        sys.stdout.buffer.write(chunk)
        sys.stdout.buffer.flush()
        last = chunk
    if sys.stdout.isatty() and last and not last.endswith(b"\n"):
        click.echo()


def _stream_error(error: Any) -> StokerError:
    if isinstance(error, dict) and error.get("cause"):
        return StokerError.from_wire(error)
    said = error.get("message") if isinstance(error, dict) else error
    return FunctionError(f"The stream ended with an error: {said}")


def _print_timing(answer: Answer) -> None:
    stages = parse_server_timing(answer.headers.get("Server-Timing", ""))
    if not stages:
        click.echo("The answer carries no Server-Timing.", err=True)
        return
    rows = waterfall(stages)
    print_table(("stage", "ms", ""), rows, err=True)


def _failure(answer: Answer, name: str) -> StokerError:
    """The platform's error, or the function's own answer as an error."""
    platform = "X-OpenFaaS-Internal" in answer.headers
    if platform or answer.status in (401, 404):
        return error_of(answer, name)
    error = error_of(answer)
    if type(error) is not StokerError:
        return error
    said = error.cause.partition(": ")[2]
    return FunctionError(
        f"The function {name} answered {answer.status}: {said}",
        f"Read its log with `stoker logs {name}`.",
    )
