"""`stoker ls`, `ps`, `describe` and `why`: what is deployed, what runs, and why there."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

import click
import orjson

from stoker.gateway.cli.options import (
    bytes_in_words,
    client_of,
    function_argument,
    gateway_option,
    json_option,
    namespace_option,
    path_of,
    print_json,
    print_table,
    reports_errors,
    say,
)
from stoker.placement.records import decode
from stoker.placement.why import WhyAnswer, sentences


@click.command("ls")
@namespace_option
@gateway_option
@json_option
@reports_errors
def list_functions(namespace: str, gateway: str | None, as_json: bool) -> None:
    """List the deployed functions."""
    functions = client_of(gateway).call("GET", path_of("/system/functions", namespace=namespace))
    if as_json:
        print_json(functions)
        return
    print_table(
        ("NAME", "TASK", "MODEL", "INVOCATIONS", "REPLICAS", "READY"),
        [
            (
                f["name"],
                _annotation(f, "task") or "custom",
                _annotation(f, "model") or f.get("image", ""),
                f"{f.get('invocationCount', 0):.0f}",
                str(f.get("replicas", 0)),
                str(f.get("availableReplicas", 0)),
            )
            for f in functions
        ],
    )


@click.command("ps")
@gateway_option
@json_option
@reports_errors
def list_instances(gateway: str | None, as_json: bool) -> None:
    """List the instances and the nodes they run on."""
    client = client_of(gateway)
    instances = client.call("GET", "/system/instances")
    nodes = client.call("GET", "/system/nodes")
    if as_json:
        print_json({"instances": instances, "nodes": nodes})
        return
    print_table(
        ("INSTANCE", "FUNCTION", "STATE", "NODE", "ADDRESS", "PID", "AGE", "BUSY", "REASON"),
        [instance_row(instance) for instance in instances],
    )
    click.echo()
    print_table(
        ("NODE", "READY", "CORES", "DRAM", "SSD", "FROM REMOTE", "FROM SSD"),
        [node_row(node) for node in nodes],
    )


@click.command()
@function_argument
@namespace_option
@gateway_option
@json_option
@reports_errors
def describe(name: str, namespace: str, gateway: str | None, as_json: bool) -> None:
    """Show one function, its settings and its instances."""
    client = client_of(gateway)
    path = path_of("/system/function", name, namespace=namespace)
    function = client.call("GET", path, missing=name)
    space = namespace or function.get("namespace", "")
    instances = [
        instance
        for instance in client.call("GET", "/system/instances")
        if instance["function"] == f"{function['name']}.{space}"
    ]
    if as_json:
        print_json({**function, "instances": instances})
        return
    rows = [
        ("name", function["name"]),
        ("namespace", space),
        ("image", function.get("image", "")),
        ("created", function.get("createdAt", "")),
        ("replicas", f"{function.get('availableReplicas', 0)}/{function.get('replicas', 0)} ready"),
        ("invocations", f"{function.get('invocationCount', 0):.0f}"),
        ("url", f"{client.url}/function/{name}" + (f".{namespace}" if namespace else "")),
    ]
    if failure := function.get("failure"):
        rows.append(("failed starts", failure_in_words(failure)))
    for kind in ("annotations", "labels", "envVars", "limits", "requests"):
        rows += [(f"{kind}.{key}", value) for key, value in (function.get(kind) or {}).items()]
    rows += [("secret", secret) for secret in function.get("secrets") or ()]
    for instance in instances:
        identifier, _, *cells = instance_row(instance)
        rows.append((f"instance {identifier}", " ".join(cells).strip()))
    print_table(("KEY", "VALUE"), rows)


@click.command()
@click.argument("request_id")
@gateway_option
@json_option
@reports_errors
def why(request_id: str, gateway: str | None, as_json: bool) -> None:
    """Say why a request was served where it was.

    REQUEST_ID is the X-Call-Id of a request that waited for a start, or the instance that served
    it (X-Served-By).
    """
    told = client_of(gateway).call("GET", path_of("/system/why", request_id))
    if as_json:
        print_json(told)
        return
    for line in sentences(decode(WhyAnswer, orjson.dumps(told))):
        say(line)


def instance_row(instance: Mapping[str, Any]) -> tuple[str, ...]:
    """One instance as cells; REASON is the cause of a failure."""
    failure = instance.get("failure") or {}
    return (
        str(instance["instance_id"]),
        str(instance["function"]),
        str(instance["state"]),
        str(instance["node_id"]),
        str(instance["address"]),
        str(instance.get("pid") or ""),
        age_in_words(float(instance["age_seconds"])),
        str(instance["in_flight"]),
        str(failure.get("cause", "")),
    )


def failure_in_words(failure: Mapping[str, Any]) -> str:
    """How many starts failed in a row, what comes next, and the last one's cause."""
    retry_at = failure["retryAt"]
    then = f"next try at {retry_at}" if retry_at else "given up until deployed or scaled again"
    return f"{failure['failedStarts']} in a row, {then}: {failure['cause']}"


def node_row(node: Mapping[str, Any]) -> Sequence[str]:
    return (
        str(node["node_id"]),
        "yes" if node.get("zygote_ready") else "starting",
        str(node.get("cores", "")),
        f"{bytes_in_words(node['dram_resident_bytes'])} / {bytes_in_words(node['dram_bytes'])}",
        f"{bytes_in_words(node['ssd_resident_bytes'])} / {bytes_in_words(node['ssd_bytes'])}",
        _rate(node.get("remote_bandwidth", 0.0)),
        _rate(node.get("ssd_bandwidth", 0.0)),
    )


def age_in_words(seconds: float) -> str:
    """95 as `1m35s`; a clock that runs behind gives `0s`."""
    whole = datetime.timedelta(seconds=max(0, int(seconds)))
    hours, rest = divmod(whole.seconds, 3600)
    minutes, remaining = divmod(rest, 60)
    if whole.days:
        return f"{whole.days}d{hours}h"
    if hours:
        return f"{hours}h{minutes}m"
    return f"{minutes}m{remaining}s" if minutes else f"{remaining}s"


def _rate(bytes_per_second: float) -> str:
    return f"{bytes_in_words(bytes_per_second)}/s" if bytes_per_second else "not measured"


def _annotation(function: Mapping[str, Any], key: str) -> str:
    return str((function.get("annotations") or {}).get(f"stoker/{key}", ""))
