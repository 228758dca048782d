"""Reading a simulation's inputs: the cluster, its functions, and who called them when.

The cluster is YAML; numbers are bytes, seconds and bytes per second:

    nodes:
      - {count: 4, devices: 4, device_bandwidth: 24e9, dram_bytes: 512e9, ssd_bytes: 2e12,
         ssd_bandwidth: 5e9, remote_bandwidth: 1.25e9}
    functions:
      - {name: opt-6.7b, count: 32, weight_bytes: 13.4e9, devices: 1, concurrency: 1}

A trace is CSV, plain or gzip: `t_s`, and `function`, `seconds` or `prompt_tokens` and
`output_tokens`, as far as they are known.
"""

from __future__ import annotations

import csv
import gzip
import itertools
import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from stoker.placement.errors import BadSpec
from stoker.placement.records import (
    CheckpointRef,
    DeviceNeed,
    FunctionRecord,
    NodeRecord,
    Scaling,
)
from stoker.placement.simulate_parts import Function, Request
from stoker.placement.simulate_workload import Lengths, made_request, zipf_shares
from stoker.placement.simulate_world import World

NAMESPACE = "sim"
DEVICE_KIND = "gpu"
NODES_MAXIMUM = 100_000
FUNCTIONS_MAXIMUM = 1_000_000
REQUESTS_MAXIMUM = 50_000_000
# More sockets than places: an instance that ends keeps its own for a moment.
SPARES_EXTRA = 4

_TIME_NAMES = ("t_s", "start_s", "time", "timestamp")
_FUNCTION_NAMES = ("function", "func", "model")
_SECONDS_NAMES = ("seconds", "duration_s")


@dataclass(frozen=True, slots=True)
class Copies:
    """How many nodes hold a function's weights on their SSD to begin with; None: all that can."""

    digest: str
    byte_count: int
    nodes: int | None


@dataclass(frozen=True, slots=True)
class Cluster:
    """What a cluster file says. Each simulation makes its own world and functions of it."""

    nodes: tuple[NodeRecord, ...]
    functions: tuple[FunctionRecord, ...]
    copies: tuple[Copies, ...]
    token_seconds: Mapping[str, tuple[float, float]]

    def world(self) -> World:
        """The nodes, with weights put onto SSDs round robin until they are full."""
        world = World(self.nodes)
        ring = itertools.cycle(world.nodes.values())
        for copy in self.copies:
            wanted = len(self.nodes) if copy.nodes is None else min(copy.nodes, len(self.nodes))
            for _ in range(len(self.nodes)):
                if wanted == 0:
                    break
                wanted -= next(ring).keep_on_ssd(copy.digest, copy.byte_count)
        return world

    def with_functions(self, records: Iterable[FunctionRecord]) -> Cluster:
        """The same with more functions, whose weights every SSD holds that has room."""
        added = tuple(records)
        copies = tuple(
            Copies(r.checkpoint.digest, r.checkpoint.weight_bytes, None)
            for r in added
            if r.checkpoint is not None
        )
        paces = {record.key: (0.0, 0.0) for record in added}
        return replace(
            self,
            functions=self.functions + added,
            copies=self.copies + copies,
            token_seconds={**self.token_seconds, **paces},
        )

    def with_minimum(self, key: str, minimum: int) -> Cluster:
        """The same, where one function always has so many instances."""
        return replace(
            self,
            functions=tuple(
                replace(record, scaling=replace(record.scaling, minimum=minimum))
                if record.key == key
                else record
                for record in self.functions
            ),
        )

    def made_functions(self, idle_seconds: float | None = None) -> list[Function]:
        """The functions; `idle_seconds` for those whose file says nothing of it."""
        found = []
        for record in self.functions:
            function = Function(record)
            if record.scaling.idle_seconds is None and idle_seconds is not None:
                function.keep(idle_seconds)
            function.prompt_token_seconds, function.token_seconds = self.token_seconds[record.key]
            found.append(function)
        return found


def read_cluster(path: Path) -> Cluster:
    """The cluster that the file describes; BadSpec for one that is none."""
    try:
        described = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise BadSpec(f"Expected a cluster as YAML in {path}, found: {error}.") from error
    return cluster_of(described, str(path))


def cluster_of(described: Any, where: str) -> Cluster:
    top = _Fields(described, where, {"nodes", "functions"})
    nodes: list[NodeRecord] = []
    for number, group in enumerate(top.items("nodes")):
        nodes += _nodes(_Fields(group, f"{where}, nodes[{number}]", _NODE_KEYS), number)
    records: list[FunctionRecord] = []
    copies: list[Copies] = []
    rates: dict[str, tuple[float, float]] = {}
    for number, group in enumerate(top.items("functions")):
        fields = _Fields(group, f"{where}, functions[{number}]", _FUNCTION_KEYS)
        pace = (fields.number("prompt_token_seconds", 0.0), fields.number("token_seconds", 0.0))
        for record in _functions(fields):
            records.append(record)
            rates[record.key] = pace
            if record.checkpoint is not None:
                held = fields.whole("ssd_copies", -1)
                copies.append(
                    Copies(
                        record.checkpoint.digest,
                        record.checkpoint.weight_bytes,
                        None if held < 0 else held,
                    )
                )
    if not nodes or len(nodes) > NODES_MAXIMUM or len(records) > FUNCTIONS_MAXIMUM:
        raise BadSpec(
            f"Expected 1 to {NODES_MAXIMUM} nodes and at most {FUNCTIONS_MAXIMUM} functions in "
            f"{where}, found {len(nodes)} and {len(records)}."
        )
    return Cluster(tuple(nodes), tuple(records), tuple(copies), rates)


_NODE_KEYS = {
    "count",
    "name",
    "devices",
    "device_bandwidth",
    "dram_bytes",
    "ssd_bytes",
    "ssd_bandwidth",
    "remote_bandwidth",
    "peer_bandwidth",
    "instances",
    "init_seconds",
    "zone",
}
_FUNCTION_KEYS = {
    "name",
    "count",
    "weight_bytes",
    "devices",
    "concurrency",
    "minimum",
    "maximum",
    "idle_seconds",
    "prompt_token_seconds",
    "token_seconds",
    "ssd_copies",
}


def _nodes(fields: _Fields, group: int) -> Iterator[NodeRecord]:
    devices = fields.whole("devices", 0)
    slots = fields.whole("instances", devices or 8)
    name = fields.text("name", f"node{group}")
    remote = fields.number("remote_bandwidth", 1.25e9)
    for number in range(fields.whole("count", 1)):
        node_id = f"{name}-{number}"
        yield NodeRecord(
            node_id=node_id,
            agent_address="",
            cores=0,
            dram_bytes=int(fields.number("dram_bytes", 64e9)),
            ssd_bytes=int(fields.number("ssd_bytes", 1e12)),
            instances_maximum=slots,
            spare_addresses=tuple(f"{node_id}:{n}" for n in range(2 * slots + SPARES_EXTRA)),
            remote_bandwidth=remote,
            ssd_bandwidth=fields.number("ssd_bandwidth", 2e9),
            init_seconds=fields.number("init_seconds", 0.1),
            zygote_ready=True,
            peer_bandwidth=fields.number("peer_bandwidth", remote),
            device_bandwidth=fields.number("device_bandwidth", 24e9) if devices else 0.0,
            device_kind=DEVICE_KIND if devices else "cpu",
            device_count=devices,
            # Without a word of what fails together, each node fails by itself.
            zone=fields.text("zone", node_id),
        )


def _functions(fields: _Fields) -> Iterator[FunctionRecord]:
    name, count = fields.text("name", "f"), fields.whole("count", 1)
    weight_bytes = int(fields.number("weight_bytes", 0.0))
    devices = fields.whole("devices", 0)
    idle = fields.number("idle_seconds", -1.0)
    scaling = Scaling(
        minimum=fields.whole("minimum", 0),
        maximum=fields.whole("maximum", 1000),
        concurrency=max(1, fields.whole("concurrency", 1)),
        idle_seconds=None if idle < 0 else idle,
    )
    for number in range(count):
        one = name if count == 1 else f"{name}-{number}"
        yield described_function(one, weight_bytes, devices, scaling)


def described_function(
    name: str, weight_bytes: int, devices: int, scaling: Scaling
) -> FunctionRecord:
    """The record of a function of its own weights, if it has some."""
    checkpoint = CheckpointRef("", name, weight_bytes, packed=True) if weight_bytes else None
    return FunctionRecord(
        name,
        NAMESPACE,
        "sim",
        checkpoint=checkpoint,
        scaling=scaling,
        devices=(DeviceNeed(DEVICE_KIND, devices),) if devices else (),
    )


class _Fields:
    """An object of the cluster file; a key that is not known is refused."""

    def __init__(self, described: Any, where: str, known: set[str]) -> None:
        if not isinstance(described, dict):
            raise BadSpec(f"Expected an object at {where}, found {type(described).__name__}.")
        for key in described:
            if key not in known:
                raise BadSpec(f"Expected {', '.join(sorted(known))} at {where}, found {key!r:.60}.")
        self._described = described
        self._where = where

    def items(self, key: str) -> list[Any]:
        found = self._described.get(key, [])
        if not isinstance(found, list):
            raise BadSpec(f"Expected a list at {self._where}, {key}.")
        return found

    def text(self, key: str, default: str) -> str:
        return str(self._described.get(key, default))

    def number(self, key: str, default: float) -> float:
        found = self._described.get(key, default)
        try:
            number = float(found)
        except (TypeError, ValueError):
            number = math.nan
        # YAML reads 5e9 as a text; a number below the default's sign is none.
        if not math.isfinite(number) or (number < 0 and key in self._described):
            raise BadSpec(f"Expected a number at {self._where}, {key}, found {found!r:.60}.")
        return number

    def whole(self, key: str, default: int) -> int:
        found = self.number(key, default)
        if found != int(found):
            raise BadSpec(f"Expected a whole number at {self._where}, {key}, found {found}.")
        return int(found)


def read_rows(path: Path) -> Iterator[dict[str, str]]:
    """The rows of a CSV file, plain or gzip; BadSpec where it cannot be read."""
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rt", newline="", encoding="utf-8") as lines:
            yield from csv.DictReader(lines)
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise BadSpec(f"Expected a trace as CSV in {path}, found: {error}.") from error


def read_lengths(path: Path) -> Lengths:
    """(prompt tokens, output tokens) of each row that has some of both."""
    found = []
    for number, row in enumerate(read_rows(path), 2):
        prompt = _value(path, number, row, ("prompt_tokens",), 0.0)
        output = _value(path, number, row, ("output_tokens",), 0.0)
        if prompt > 0 and output > 0:
            found.append((int(prompt), int(output)))
    if not found:
        raise BadSpec(f"Expected prompt_tokens and output_tokens in {path}, found none.")
    return found


def read_names(path: Path) -> list[str]:
    """The functions that a trace names, the most called first."""
    counts: dict[str, int] = {}
    for row in read_rows(path):
        key = next((row[name] for name in _FUNCTION_NAMES if row.get(name)), "")
        counts[key] = counts.get(key, 0) + 1
    return sorted((name for name in counts if name), key=lambda name: (-counts[name], name))


def read_trace(
    path: Path, functions: Sequence[Function], *, seed: int = 0, zipf: float = 0.0
) -> list[Request]:
    """The requests of a trace, in order of arrival, from 0 s on.

    Rows that name no function are given one by popularity. BadSpec for a row that is none.
    """
    draw = random.Random(f"trace {seed}")
    by_name = {function.record.name: function for function in functions}
    shares = list(itertools.accumulate(zipf_shares(len(functions), zipf)))
    rows = []
    for number, row in enumerate(read_rows(path), 2):
        at = _value(path, number, row, _TIME_NAMES, None)
        name = next((row[key] for key in _FUNCTION_NAMES if row.get(key)), "")
        if not name:
            function = draw.choices(functions, cum_weights=shares)[0]
        elif name in by_name:
            function = by_name[name]
        else:
            raise BadSpec(f"Expected a function of the cluster in {path}:{number}, found {name!r}.")
        seconds = _value(path, number, row, _SECONDS_NAMES, -1.0)
        prompt = int(_value(path, number, row, ("prompt_tokens",), 0.0))
        output = int(_value(path, number, row, ("output_tokens",), 0.0))
        rows.append((at, function, prompt, output, seconds))
        if len(rows) > REQUESTS_MAXIMUM:
            raise BadSpec(f"Expected at most {REQUESTS_MAXIMUM} rows in {path}.")
    if not rows:
        raise BadSpec(f"Expected requests in {path}, found none.")
    rows.sort(key=lambda row: row[0])
    first = rows[0][0]
    requests = []
    for number, (at, function, prompt, output, seconds) in enumerate(rows):
        request = made_request(number, function, at - first, prompt, output)
        if seconds >= 0.0:
            request.left_seconds = seconds
        requests.append(request)
    return requests


def _value(
    path: Path,
    line: int,
    row: Mapping[str, str | None],
    names: tuple[str, ...],
    default: float | None,
) -> float:
    text = next((row[name] for name in names if row.get(name)), None)
    if text is None and default is not None:
        return default
    try:
        found = float(text or "")
    except ValueError:
        found = math.nan
    if not math.isfinite(found) or found < 0:
        raise BadSpec(f"Expected a number as {names[0]} in {path}:{line}, found {text!r}.")
    return found
