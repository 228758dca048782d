"""Checks of a running gateway: it answers, takes the password, has nodes and our release."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import stoker
from stoker.gateway.cli.client import GatewayClient, error_of, find_access
from stoker.placement.errors import DeadlineExceeded, StokerError, Unauthorized
from stoker.runtime.doctor_check import Check, refused

GATEWAY = "gateway"
PASSWORD = "password"  # noqa: S105 - the name of a check
NODES = "nodes"
RELEASE = "release"
ANSWER_SECONDS = 2.0


def gateway_checks(gateway: str | None, environment: Mapping[str, str]) -> Iterator[Check]:
    """One check while no gateway runs; that is a fault only where one was named."""
    named = bool(gateway or environment.get("STOKER_GATEWAY"))
    access = find_access(gateway, environment)
    try:
        client = GatewayClient(access)
        with client.open("GET", "/healthz", timeout_seconds=ANSWER_SECONDS) as answer:
            status = answer.status
    except StokerError as error:
        if named or isinstance(error, DeadlineExceeded):
            yield refused(GATEWAY, error)
        else:
            found = f"No gateway answers at {access.url}; `stoker up` starts one."
            yield Check(GATEWAY, "ok", found)
        return
    if status != 200:
        found = f"What answers at {access.url} says {status} to /healthz and is no ready gateway."
        remedy = "Wait until it is ready, or name a free port: `stoker up --port PORT`."
        yield Check(GATEWAY, "fail" if named else "warn", found, remedy)
        return
    yield Check(GATEWAY, "ok", f"A gateway answers at {access.url}.")
    yield from _behind_the_password(client)


def _behind_the_password(client: GatewayClient) -> Iterator[Check]:
    try:
        nodes = _ask(client, "/system/nodes")
        info = _ask(client, "/system/info")
    except Unauthorized as error:
        yield refused(PASSWORD, error)
        return
    except StokerError as error:
        yield refused(GATEWAY, error)
        return
    yield Check(PASSWORD, "ok", "The gateway accepts the password.")
    yield _nodes(nodes)
    yield _release(info)


def _nodes(nodes: Any) -> Check:
    listed = nodes if isinstance(nodes, list) else []
    waiting = [str(node.get("node_id")) for node in listed if not node.get("zygote_ready")]
    if not listed:
        remedy = "Start one with `stoker up`, or read logs/agent.log in the state directory."
        return Check(NODES, "warn", "No node has joined, so no function can start.", remedy)
    if waiting:
        found = f"Of {len(listed)} nodes, these are not ready: {', '.join(waiting)}."
        return Check(NODES, "warn", found, "Wait a minute, then read their logs/agent.log.")
    return Check(NODES, "ok", f"All nodes are ready: {len(listed)}.")


def _release(info: Any) -> Check:
    version = info.get("version") if isinstance(info, dict) else None
    found = version.get("release") if isinstance(version, dict) else None
    if found == stoker.__version__:
        return Check(RELEASE, "ok", f"The gateway and this command are Stoker {found}.")
    return Check(
        RELEASE,
        "warn",
        f"The gateway is {found or 'of an unknown release'}, this command {stoker.__version__}.",
        "Install the same release on both sides.",
    )


def _ask(client: GatewayClient, path: str) -> Any:
    with client.open("GET", path, timeout_seconds=ANSWER_SECONDS) as answer:
        if answer.status >= 400:
            raise error_of(answer)
        return answer.json()
