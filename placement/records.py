"""The frozen records that cross a process, and their versioned encoding.

Where a record lies in the store (`{}` is filled by the record's own fields):

    /functions/{namespace}/{name}          FunctionRecord   written by the gateway
    /code/{digest}                         tar.gz bytes     written by the gateway
    /tokens/{token_id}                     TokenRecord      written by the gateway
    /images/{sha256 of the image name}     ImageRecord      written by the gateway
    /namespaces/{name}                     NamespaceRecord  written by the gateway (namespaces.py)
    /secrets/{namespace}/{name}            SecretRecord     written by the gateway (secrets.py)
    /nodes/{node_id}                       NodeRecord       ephemeral, by the agent
    /residents/{node_id}/{digest}          ResidentRecord   ephemeral, by the agent
    /instances/{node_id}/{instance_id}     InstanceRecord   ephemeral, by the agent
    /assignments/{node_id}/{instance_id}   Assignment       by the leader, fenced
    /prefetches/{node_id}/order            Prefetch         by the leader, fenced
    /gangs/{gang_id}                       Gang             by the leader, fenced
    /failures/{namespace}/{name}           FailureRecord    by the leader, fenced
    /placement/epoch                       election fence   by the leader
    /placement/leader                      LeaderRecord     ephemeral, by the leader

Encoding is `{"v": 1, ...fields}` as JSON. Unknown fields are ignored, so that a rolling update
may add one; another version is refused.
"""

from __future__ import annotations

import dataclasses
import hashlib
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import orjson

from stoker.placement.building import build
from stoker.placement.errors import BadRequest
from stoker.placement.function_code import HandlerKind
from stoker.placement.kpa import Kpa
from stoker.placement.timeouts import Timeouts

ENCODING_VERSION = 1

Task = Literal["chat", "completion", "embed", "custom"]
InstanceState = Literal["starting", "serving", "stopping", "failed"]


@dataclass(frozen=True, slots=True)
class CheckpointRef:
    """A checkpoint pinned by digest: `digest` is the 64 hex digits of its manifest's SHA-256."""

    uri: str
    digest: str
    weight_bytes: int
    packed: bool


@dataclass(frozen=True, slots=True)
class Scaling:
    """How many instances a function may have, and when they go.

    `concurrency` is the hard limit of requests in flight in one instance. Without `idle_seconds`
    the leader decides by what it has learnt of the function. With `kpa` averages of the load say
    how many there should be, with `llm` bands of use and the tokens that wait, and with neither
    the requests of this moment.

    While instances serve, `queue_per_instance` requests may wait for each, if that is stated.
    """

    minimum: int = 0
    maximum: int = 1
    concurrency: int = 16
    idle_seconds: float | None = None
    kpa: Kpa | None = None
    llm: bool = False
    queue_per_instance: int | None = None


@dataclass(frozen=True, slots=True)
class DeviceNeed:
    """`count` devices of one kind on one node; `cpu` means that none is needed."""

    kind: str
    count: int


@dataclass(frozen=True, slots=True)
class FunctionRecord:
    """One deployed function. `created_at` is in seconds since the epoch (wall clock).

    `replicas_requested` is what a client last asked for by scale-function, if it did. An instance
    runs on any one of `devices`, and on any node without one. Of what waits, the highest
    `priority` goes first; a start is promised within `slo_ttft_seconds`, if that is stated.
    Instances below `generation_minimum` get no more calls.
    """

    name: str
    namespace: str
    image: str
    task: Task = "custom"
    checkpoint: CheckpointRef | None = None
    adapter: CheckpointRef | None = None
    code_digest: str | None = None
    engine: str = "transformers"
    dtype: str = "auto"
    max_context: int | None = None
    scaling: Scaling = field(default_factory=Scaling)
    environment: Mapping[str, str] = field(default_factory=dict)
    env_process: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    secrets: tuple[str, ...] = ()
    constraints: tuple[str, ...] = ()
    limits: Mapping[str, str] | None = None
    requests: Mapping[str, str] | None = None
    read_only_root_filesystem: bool = False
    replicas_requested: int | None = None
    created_at: float = 0.0
    generation: int = 1
    generation_minimum: int = 1
    devices: tuple[DeviceNeed, ...] = ()
    priority: int = 0
    slo_ttft_seconds: float | None = None
    timeouts: Timeouts | None = None

    @property
    def key(self) -> str:
        """`name.namespace`, as OpenFaaS writes it."""
        return f"{self.name}.{self.namespace}"

    @property
    def path(self) -> str:
        return f"/functions/{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """What an image name means here: the built archive, and what its files say that it is."""

    image: str
    code_digest: str
    kind: HandlerKind = "openfaas"

    @staticmethod
    def path_of(image: str) -> str:
        return "/images/" + hashlib.sha256(image.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """One node agent. Bandwidths are measured, in bytes per second (0: not yet known).

    `peer_bandwidth` is what it receives from and sends to another node, `device_bandwidth` what
    each of its `device_count` devices of `device_kind` takes in; each has `device_bytes` of memory
    (0: not known). `zone` is what fails together.
    `spare_addresses` are `host:port` of listening sockets that no instance owns yet; the
    planner gives one to a client while its command to the agent still travels. `sandbox` names
    what functions are held by on this node, `parked` functions for which a process stands by.
    """

    node_id: str
    agent_address: str
    cores: int
    dram_bytes: int
    ssd_bytes: int
    instances_maximum: int
    spare_addresses: tuple[str, ...] = ()
    remote_bandwidth: float = 0.0
    ssd_bandwidth: float = 0.0
    init_seconds: float = 0.0
    zygote_ready: bool = False
    sandbox: tuple[str, ...] = ()
    peer_bandwidth: float = 0.0
    device_bandwidth: float = 0.0
    device_kind: str = "cpu"
    device_count: int = 0
    zone: str = ""
    device_bytes: int = 0
    parked: tuple[str, ...] = ()

    @property
    def path(self) -> str:
        return f"/nodes/{self.node_id}"


@dataclass(frozen=True, slots=True)
class ResidentRecord:
    """How many weight bytes of one checkpoint each tier of one node holds."""

    node_id: str
    digest: str
    dram_bytes: int
    ssd_bytes: int

    @property
    def path(self) -> str:
        return f"/residents/{self.node_id}/{self.digest}"


@dataclass(frozen=True, slots=True)
class Assignment:
    """The leader's order that a node run an instance at an address it announced as spare.

    `devices` are the numbers of the node's devices that it may use; `source` is the node that the
    leader expects to send the weights, if it is a peer.
    """

    instance_id: str
    function: str
    generation: int
    node_id: str
    address: str
    epoch: int
    created_at: float
    devices: tuple[int, ...] = ()
    source: str = ""

    @property
    def path(self) -> str:
        return f"/assignments/{self.node_id}/{self.instance_id}"


@dataclass(frozen=True, slots=True)
class Prefetch:
    """The leader's order that a node bring checkpoints before anybody calls them, in this order.

    They go where nobody needs the room, behind everything that somebody waits for.
    """

    node_id: str
    epoch: int
    checkpoints: tuple[CheckpointRef, ...]

    @property
    def path(self) -> str:
        return f"/prefetches/{self.node_id}/order"


@dataclass(frozen=True, slots=True)
class InstanceRecord:
    """What the agent says of an instance. `failure` is an error's wire form when failed.

    `init_seconds` is how long its process took from the fork until the function could be called,
    `process_seconds` the same from the order on. `start_seconds` is from the order until it served,
    all weights there; they took `fetch_seconds` from afar and `ssd_seconds` from the disk.
    Its process stood by if it was `parked`.
    """

    instance_id: str
    function: str
    generation: int
    node_id: str
    address: str
    state: InstanceState
    epoch: int
    started_at: float
    pid: int = 0
    failure: Mapping[str, Any] | None = None
    init_seconds: float = 0.0
    start_seconds: float = 0.0
    process_seconds: float = 0.0
    fetch_seconds: float = 0.0
    ssd_seconds: float = 0.0
    parked: bool = False

    @property
    def path(self) -> str:
        return f"/instances/{self.node_id}/{self.instance_id}"


Record = FunctionRecord | NodeRecord | ResidentRecord | InstanceRecord | Assignment


@dataclass(frozen=True, slots=True)
class FailureRecord:
    """The starts of a function that failed in a row; gone after one that succeeded.

    `crashes` of the `count` were the function's own fault. `error` is the last one's wire form.
    The next start is not before `retry_at`, in seconds since the epoch; without it, there is none
    until the function is deployed or scaled anew: `function_version` is its record's in the store.
    """

    function: str
    function_version: int
    instance_id: str
    node_id: str
    count: int
    crashes: int
    error: Mapping[str, Any]
    failed_at: float
    retry_at: float | None

    @property
    def path(self) -> str:
        name, _, namespace = self.function.rpartition(".")
        return f"/failures/{namespace}/{name}"


@dataclass(frozen=True, slots=True)
class LeaderRecord:
    """Who decides now, where to ask it (`host:port`), and its epoch."""

    leader_id: str
    address: str
    epoch: int


# What crosses HTTP between gateway, placement and agent.


@dataclass(frozen=True, slots=True)
class FunctionDemand:
    """One gateway's view of one function. `idle_seconds` is since its last request ended,
    `request_seconds` how long its requests take in an instance, `prefill_seconds` how long until
    the first token of one that nothing else keeps waiting (0: not known).

    `called_version` is the store's version of the function's record that the gateway knew when it
    was last called, -1 if it never was: no clock tells what came first, a call or a scale request.
    `requests` have come in all since the gateway began; `queued_tokens` are about what those that
    wait have for their prompts. `working` are the instances that those in flight are at. The one
    that waits longest came `waited_seconds` ago.
    """

    in_flight: int
    queued: int
    idle_seconds: float
    called_version: int = -1
    requests: int = 0
    queued_tokens: int = 0
    request_seconds: float = 0.0
    prefill_seconds: float = 0.0
    working: tuple[str, ...] = ()
    waited_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class DemandReport:
    """POST /report: the full state of one gateway, sent every second. Keys are function keys."""

    gateway_id: str
    functions: Mapping[str, FunctionDemand]


@dataclass(frozen=True, slots=True)
class PlaceRequest:
    """POST /place: a gateway lacks a free slot for `function`; `call_ids` are calls that wait."""

    gateway_id: str
    function: str
    demand: FunctionDemand
    call_ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PlaceAnswer:
    """Every instance the function has or will have, starting ones included."""

    assignments: tuple[Assignment, ...]


@dataclass(frozen=True, slots=True)
class ResolveRequest:
    """POST /resolve on an agent: pin the model at `uri`, or the adapter."""

    uri: str
    adapter: bool = False


@dataclass(frozen=True, slots=True)
class EvictRequest:
    """POST /evict on an agent: drop a checkpoint's weights from memory, or from the disk too."""

    digest: str
    disk: bool = False


def encode(record: Any) -> bytes:
    """The record as JSON bytes with its encoding version."""
    return orjson.dumps({"v": ENCODING_VERSION, **dataclasses.asdict(record)})


_R = TypeVar("_R")


def decode(cls: type[_R], payload: bytes) -> _R:
    """The record of class `cls` in `payload`; BadRequest if it is not one."""
    try:
        fields = orjson.loads(payload)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"Expected a {cls.__name__} as JSON, found: {error}.") from error
    version = fields.get("v") if isinstance(fields, dict) else None
    if type(version) is not int or version != ENCODING_VERSION:  # True == 1
        raise BadRequest(
            f"Expected a {cls.__name__} of version {ENCODING_VERSION}, found version {version!r}.",
            "Run the same release of Stoker on every machine.",
        )
    value = build(cls, fields, cls.__name__)
    return typing.cast(_R, value)
