"""What the agent tells the zygote to start, and what comes back.

One message on the SOCK_SEQPACKET socket starts one worker, parks one, or starts another zygote:
`encode_start(start)` with the file descriptors of its `descriptor_names` as SCM_RIGHTS, in that
order. The zygote answers with `ZygoteEvent` messages; the worker itself writes `WorkerStatus` lines
to its status pipe. A parked worker says one to its control socket, and gets its start there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from stoker.placement.errors import BadRequest
from stoker.placement.records import FunctionRecord, decode, encode

MESSAGE_BYTES_MAXIMUM = 192 * 1024
"""Below the default send buffer of a unix socket; a chunk list of 400 GiB fits."""

DESCRIPTORS_MAXIMUM = 7

_PASSED_ON = (
    "PATH",
    "LANG",
    "LC_ALL",
    "LC_CTYPE",
    "TZ",
    "TMPDIR",
    "VIRTUAL_ENV",
    "PYTHONPATH",
    "LD_LIBRARY_PATH",
)


@dataclass(frozen=True, slots=True)
class CheckpointStart:
    """A resident (or still loading) checkpoint: `chunks` are its chunk numbers in the pool.

    `resident` says that it was complete when it was opened, which took `open_seconds`.
    `files_dir` holds the small files, `layout_path` the tensors' names, shapes and offsets.
    `uri` is where it came from, for whoever reads an error.
    """

    files_dir: str
    layout_path: str
    chunks: tuple[int, ...]
    byte_count: int
    digest: str
    uri: str = ""
    resident: bool = False
    open_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class SandboxStart:
    """`levels` as sandbox.py names them, `hidden` folders of the node, `groups` to join.

    `memory_bytes` is what the function may take beside its model's weights, None for any.
    """

    levels: tuple[str, ...] = ()
    hidden: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    memory_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class WorkerStart:
    """One worker to start. `token` is what its callers must know, and no more than that.

    `started_at` is time.monotonic() when the agent saw the assignment. `devices` are those that it
    may use, as CUDA names them.

    With a `failure` (wire form) it is to serve nothing, but to tell that to whoever waits for it.
    """

    instance_id: str
    function: FunctionRecord
    token: str
    threads: int
    work_dir: str
    started_at: float
    code_dir: str | None = None
    checkpoint: CheckpointStart | None = None
    failure: Mapping[str, Any] | None = None
    adapter: CheckpointStart | None = None
    sandbox: SandboxStart = SandboxStart()
    devices: tuple[str, ...] = ()

    @property
    def descriptor_names(self) -> tuple[str, ...]:
        """The file descriptors that travel with the message, in order."""
        names: tuple[str, ...] = ("listen", "log", "status")
        if self.function.secrets:
            names += ("secrets",)
        if self.checkpoint is not None:
            names += ("pool", "progress")
        return names if self.adapter is None else (*names, "adapter_progress")


@dataclass(frozen=True, slots=True)
class ParkStart:
    """A worker to make ready ahead of its start, which will come through `control`.

    `start` is what can be known by then: it has no token, and of a checkpoint no chunks.
    """

    start: WorkerStart

    @property
    def instance_id(self) -> str:
        return self.start.instance_id

    @property
    def descriptor_names(self) -> tuple[str, ...]:
        return ("control", "log")


@dataclass(frozen=True, slots=True)
class ZygoteStart:
    """A fork that becomes a zygote itself, in an environment; `control` is its socket."""

    instance_id: str
    environment_dir: str

    @property
    def descriptor_names(self) -> tuple[str, ...]:
        return ("control",)


@dataclass(frozen=True, slots=True)
class ZygoteEvent:
    """`status` is what os.waitstatus_to_exitcode gives: the exit code, or minus the signal.

    `modules` are the top-level ones that a zygote has imported when it is ready.
    """

    event: Literal["ready", "forked", "exited", "refused"]
    instance_id: str = ""
    pid: int = 0
    status: int = 0
    error: Mapping[str, Any] | None = None
    modules: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """One line of the status pipe. `error` is the wire form of what made the start fail.

    `from_template` says that the zygote had the function ready but for its weights. `called` is
    said before the first request is handled, which may be before `serving`. `parked` says that a
    start may come, and how many bytes of memory the process shares with nobody.
    """

    event: Literal["serving", "called", "failed", "parked"]
    init_seconds: float = 0.0
    from_template: bool = False
    private_bytes: int = 0
    error: Mapping[str, Any] | None = None


Start = WorkerStart | ParkStart | ZygoteStart

_KINDS: dict[str, type[Start]] = {"start": WorkerStart, "park": ParkStart, "zygote": ZygoteStart}


def encode_start(start: Start) -> bytes:
    """The message that starts `start`; BadRequest when it is too long for one packet."""
    (op,) = (name for name, kind in _KINDS.items() if isinstance(start, kind))
    message = orjson.dumps({"op": op, "start": orjson.loads(encode(start))})
    if len(message) > MESSAGE_BYTES_MAXIMUM:
        raise BadRequest(
            f"Expected a start message of at most {MESSAGE_BYTES_MAXIMUM} bytes, "
            f"found {len(message)} bytes for {start.instance_id}.",
            "Shorten the function's environment and annotations.",
        )
    return message


def decode_start(message: bytes) -> Start:
    """The start in `message`; BadRequest when it holds none."""
    try:
        fields = orjson.loads(message)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"Expected a start message as JSON, found: {error}.") from error
    kind = _KINDS.get(str(fields.get("op"))) if isinstance(fields, dict) else None
    if kind is None:
        raise BadRequest(f"Expected a message with op {', '.join(_KINDS)}, found {message[:80]!r}.")
    return decode(kind, orjson.dumps(fields.get("start")))


def encode_event(event: ZygoteEvent | WorkerStatus) -> bytes:
    """The event as JSON without a line end (the status pipe adds one)."""
    return orjson.dumps(dataclasses.asdict(event))


def decode_event(message: bytes) -> ZygoteEvent:
    """The zygote's event in one packet; BadRequest when it is not one."""
    return decode(ZygoteEvent, _with_version(message))


def decode_status(line: bytes) -> WorkerStatus:
    """The worker's status in one line; BadRequest when it is not one."""
    return decode(WorkerStatus, _with_version(line))


def _with_version(message: bytes) -> bytes:
    try:
        fields = orjson.loads(message)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"Expected an event as JSON, found: {error}.") from error
    if not isinstance(fields, dict):
        raise BadRequest(f"Expected an event object, found {message[:80]!r}.")
    return orjson.dumps({"v": 1, **fields})


def zygote_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment to start a zygote with: none of the agent's secrets, passive OpenMP.

    OpenMP reads its wait policy once, when its library is loaded, so it cannot be set later:
    spinning threads beside one busy neighbour cost a factor of 4 to 10 per token.
    """
    scrubbed = {name: environment[name] for name in _PASSED_ON if name in environment}
    return scrubbed | {
        "OMP_WAIT_POLICY": "passive",
        "GOMP_SPINCOUNT": "0",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "PYTHONUNBUFFERED": "1",
    }
