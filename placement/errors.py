"""Every error that Stoker raises, and the HTTP status each one becomes at the edge.

StokerError                  500  internal
├── BadRequest               400  bad_request
│   ├── BadJson              400  bad_json
│   ├── BadSpec              400  bad_spec
│   ├── ContextOverflow      400  context_length_exceeded
│   ├── DestinationForbidden 400  destination_forbidden
│   ├── MethodNotAllowed     405  method_not_allowed
│   └── PayloadTooLarge      413  payload_too_large
├── Unauthorized             401  unauthorized
├── Forbidden                403  forbidden
├── RequestTimeout           408  request_timeout
├── NotFound                 404  not_found
│   └── FunctionNotFound     404  function_not_found
├── Conflict                 409  conflict
│   ├── VersionConflict      409  version_conflict
│   └── Fenced               409  fenced
├── QueueFull                429  queue_full
│   └── RateLimited          429  rate_limited
├── CheckpointError          400  checkpoint_invalid
│   ├── CheckpointMissing    400  checkpoint_missing
│   ├── CheckpointForbidden  403  checkpoint_forbidden
│   ├── PickleRefused        400  pickle_refused
│   ├── HeaderInvalid        400  safetensors_header_invalid
│   ├── CheckpointChanged    409  checkpoint_changed
│   └── ChunkCorrupt         502  chunk_corrupt
├── FunctionError            500  function_error
├── InstanceError            502  instance_error
│   ├── InstanceLost         502  instance_lost
│   └── StartFailed          502  start_failed
├── Unavailable              503  unavailable
│   ├── NoCapacity           503  no_capacity
│   ├── CrashLoop            503  crash_loop
│   ├── MemoryShort          503  memory_short
│   ├── SourceUnavailable    503  source_unavailable
│   ├── StorageFull          503  storage_full
│   ├── DeviceFailed         503  device_failed
│   └── CoordinationLost     503  coordination_unavailable
├── DeadlineExceeded         504  deadline_exceeded
└── Unsupported              501  unsupported

An error carries one sentence of cause (what was expected, what was found, where) and one of
remedy. It crosses a process as the object that `to_wire` gives and `from_wire` reads back.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar


class StokerError(Exception):
    """Root of the tree; `cause` and `remedy` are sentences, `details` are JSON values."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal"

    def __init__(
        self,
        cause: str,
        remedy: str = "",
        *,
        retry_after_seconds: float | None = None,
        **details: Any,
    ) -> None:
        super().__init__(cause)
        self.cause = cause
        self.remedy = remedy
        self.retry_after_seconds = retry_after_seconds
        self.details = details

    def __str__(self) -> str:
        return f"{self.cause} {self.remedy}".strip()

    def to_wire(self) -> dict[str, Any]:
        """The error as a JSON object: code, cause, remedy, details, retry_after_seconds."""
        wire: dict[str, Any] = {"code": self.code, "cause": self.cause, "remedy": self.remedy}
        if self.details:
            wire["details"] = self.details
        if self.retry_after_seconds is not None:
            wire["retry_after_seconds"] = self.retry_after_seconds
        return wire

    @staticmethod
    def from_wire(wire: Mapping[str, Any]) -> StokerError:
        """The error that `to_wire` described; an unknown code becomes the root class."""
        cls = _BY_CODE.get(str(wire.get("code", "")), StokerError)
        details = wire.get("details")
        return cls(
            str(wire.get("cause", "The other side gave no cause.")),
            str(wire.get("remedy", "")),
            retry_after_seconds=wire.get("retry_after_seconds"),
            **(details if isinstance(details, dict) else {}),
        )


class BadRequest(StokerError):
    status, code = 400, "bad_request"


class BadJson(BadRequest):
    code = "bad_json"


class BadSpec(BadRequest):
    code = "bad_spec"


class ContextOverflow(BadRequest):
    code = "context_length_exceeded"


class DestinationForbidden(BadRequest):
    code = "destination_forbidden"


class MethodNotAllowed(BadRequest):
    status, code = 405, "method_not_allowed"


class PayloadTooLarge(BadRequest):
    status, code = 413, "payload_too_large"


class Unauthorized(StokerError):
    status, code = 401, "unauthorized"


class Forbidden(StokerError):
    status, code = 403, "forbidden"


class RequestTimeout(StokerError):
    status, code = 408, "request_timeout"


class NotFound(StokerError):
    status, code = 404, "not_found"


class FunctionNotFound(NotFound):
    code = "function_not_found"


class Conflict(StokerError):
    status, code = 409, "conflict"


class VersionConflict(Conflict):
    code = "version_conflict"


class Fenced(Conflict):
    code = "fenced"


class QueueFull(StokerError):
    status, code = 429, "queue_full"


class RateLimited(QueueFull):
    code = "rate_limited"


class CheckpointError(StokerError):
    status, code = 400, "checkpoint_invalid"


class CheckpointMissing(CheckpointError):
    # Not 404: a PUT answered 404 tells faas-cli that the function is absent, and it POSTs.
    code = "checkpoint_missing"


class CheckpointForbidden(CheckpointError):
    status, code = 403, "checkpoint_forbidden"


class PickleRefused(CheckpointError):
    code = "pickle_refused"


class HeaderInvalid(CheckpointError):
    code = "safetensors_header_invalid"


class CheckpointChanged(CheckpointError):
    status, code = 409, "checkpoint_changed"


class ChunkCorrupt(CheckpointError):
    status, code = 502, "chunk_corrupt"


class FunctionError(StokerError):
    code = "function_error"


class InstanceError(StokerError):
    status, code = 502, "instance_error"


class InstanceLost(InstanceError):
    code = "instance_lost"


class StartFailed(InstanceError):
    code = "start_failed"


class Unavailable(StokerError):
    status, code = 503, "unavailable"


class NoCapacity(Unavailable):
    code = "no_capacity"


class CrashLoop(Unavailable):
    code = "crash_loop"


class MemoryShort(Unavailable):
    code = "memory_short"


class SourceUnavailable(Unavailable):
    code = "source_unavailable"


class StorageFull(Unavailable):
    code = "storage_full"


class DeviceFailed(Unavailable):
    code = "device_failed"


class CoordinationLost(Unavailable):
    code = "coordination_unavailable"


class DeadlineExceeded(StokerError):
    status, code = 504, "deadline_exceeded"


class Unsupported(StokerError):
    status, code = 501, "unsupported"


def error_classes() -> Iterator[type[StokerError]]:
    """Every class of the tree, root first."""
    queue: list[type[StokerError]] = [StokerError]
    while queue:
        cls = queue.pop(0)
        yield cls
        queue.extend(cls.__subclasses__())


_BY_CODE = {cls.code: cls for cls in error_classes()}
