"""What the control routes do with functions: deploy, list, scale, remove. Blocking code."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Protocol

import structlog

from stoker.gateway.alerts import alerts_of, replicas_after
from stoker.gateway.builder import BundleSink, publish
from stoker.gateway.builtin_images import builtin_image
from stoker.gateway.jobs.retries import retries_of
from stoker.gateway.metrics import Metrics
from stoker.placement.errors import (
    BadRequest,
    BadSpec,
    Fenced,
    FunctionNotFound,
    VersionConflict,
)
from stoker.placement.function_code import stated_kind
from stoker.placement.names import DEFAULT_NAMESPACE, split_function_name, valid_namespace
from stoker.placement.namespaces import fence_of, unknown_namespace
from stoker.placement.records import (
    CheckpointRef,
    EvictRequest,
    FailureRecord,
    FunctionRecord,
    decode,
    encode,
)
from stoker.placement.secrets import path_of as secret_path
from stoker.placement.spec import (
    FunctionDraft,
    parse_deployment,
    record_from_draft,
    status_of,
    timestamp,
)
from stoker.placement.store import ABSENT, Change, Entry, Fence
from stoker.placement.view import Snapshot

WRITE_TRIES_MAXIMUM = 5
REPLICAS_MAXIMUM = 1_000_000
# After a scale call its number is told as it was asked; then what placement made of it.
SCALED_SECONDS = 5.0

_log = structlog.get_logger()


class FunctionStore(Protocol):
    """What this module needs of the store."""

    def get(self, path: str) -> Entry | None: ...

    def put(
        self, path: str, value: bytes, *, version: int | None = None, fence: Fence | None = None
    ) -> int: ...

    def delete(self, path: str, *, version: int | None = None) -> bool: ...


class ReadView(Protocol):
    """What this module needs of the view."""

    def snapshot(self) -> Snapshot: ...

    def apply(self, change: Change) -> None: ...


class Functions:
    """`resolve` pins a model or an adapter, which may take minutes; `evict` asks every node."""

    def __init__(
        self,
        store: FunctionStore,
        view: ReadView,
        resolve: Callable[[str, bool], CheckpointRef],
        evict: Callable[[EvictRequest], None],
        metrics: Metrics,
        bundles: BundleSink,
    ) -> None:
        self._store = store
        self._bundles = bundles
        self._view = view
        self._resolve = resolve
        self._evict = evict
        self._metrics = metrics
        self._scaled_at: dict[str, float] = {}

    def deploy(self, body: Mapping[str, Any], query_namespace: str, *, must_exist: bool) -> None:
        """Create or replace; FunctionNotFound if it `must_exist` and does not, BadSpec."""
        draft = parse_deployment(body, query_namespace or DEFAULT_NAMESPACE)
        retries_of(draft.annotations)  # read anew by each job; what is wrong is refused here
        path = f"/functions/{draft.namespace}/{draft.name}"
        if must_exist and self._store.get(path) is None:
            raise _missing(f"{draft.name}.{draft.namespace}")
        fence_of(self._store, draft.namespace)
        self._check_secrets(draft)
        checkpoint = self._resolve(draft.model_uri, False) if draft.model_uri else None
        adapter = self._resolve(draft.adapter_uri, True) if draft.adapter_uri else None
        code_digest = self._code_digest(draft) if draft.task == "custom" else None

        def next_record(present: FunctionRecord | None) -> FunctionRecord:
            if present is None and must_exist:
                raise _missing(f"{draft.name}.{draft.namespace}")
            made = record_from_draft(
                draft,
                checkpoint,
                code_digest,
                present.created_at if present else time.time(),
                present.generation + 1 if present else 1,
                adapter,
            )
            least = present.generation_minimum if present else 1
            return replace(made, generation_minimum=least)

        try:
            # Anew: pinning may have taken minutes.
            self._write(path, next_record, fence_of(self._store, draft.namespace))
        except Fenced:
            raise unknown_namespace(draft.namespace) from None

    def scale(self, name: str, body: Mapping[str, Any], query_namespace: str) -> None:
        """Ask for a number of instances, at most the function's maximum."""
        replicas = _replicas(body.get("replicas"))
        self._ask_for(self._key(body.get("serviceName") or name, body, query_namespace), replicas)

    def _ask_for(self, key: str, replicas: int) -> None:
        def next_record(record: FunctionRecord | None) -> FunctionRecord:
            if record is None:
                raise _missing(key)
            return replace(record, replicas_requested=min(replicas, record.scaling.maximum))

        self._write(_path(key), next_record)
        self._scaled_at[key] = time.monotonic()

    def alert(self, body: Mapping[str, Any]) -> None:
        """Scale what Alertmanager says is busy, or is no longer; BadRequest.

        A function that is gone meanwhile is passed over: its alert would come again for ever.
        """
        for alert in alerts_of(body):
            snapshot = self._view.snapshot()
            function = snapshot.functions.get(alert.function)
            if function is None:
                _log.warning("alert_without_function", function=alert.function)
                continue
            present = len(snapshot.assignments_of(function.key))
            if (wanted := replicas_after(function, present, firing=alert.firing)) is not None:
                with contextlib.suppress(FunctionNotFound):  # it was just removed
                    self._ask_for(function.key, wanted)

    def evict(self, name: str, body: Mapping[str, Any], query_namespace: str) -> None:
        """Drop the weights of a function from the nodes' memory and, if asked, from their disks.

        FunctionNotFound, BadRequest for a function without a model, Conflict while it runs.
        """
        key = self._key(body.get("serviceName") or name, body, query_namespace)
        function = self._view.snapshot().functions.get(key)
        disk = body.get("disk", False)
        if function is None:
            raise _missing(key)
        if function.checkpoint is None or not isinstance(disk, bool):
            found = (
                "a function without a model" if function.checkpoint is None else f"disk {disk!r}"
            )
            raise BadRequest(
                f"Expected a model function, and true or false as disk, found {found:.80}.",
                "Name a function that has stoker/model.",
            )
        self._evict(EvictRequest(function.checkpoint.digest, disk))

    def remove(self, body: Mapping[str, Any], query_namespace: str) -> None:
        key = self._key(body.get("functionName"), body, query_namespace)
        path = _path(key)
        if not self._store.delete(path):
            raise _missing(key)
        self._view.apply(Change(path, None))
        self._scaled_at.pop(key, None)

    def list_all(self, namespace: str) -> list[dict[str, Any]]:
        """The status of every function of a namespace, by name."""
        wanted = valid_namespace(namespace or DEFAULT_NAMESPACE)
        snapshot = self._view.snapshot()
        chosen = (f for f in snapshot.functions.values() if f.namespace == wanted)
        return [self._status(snapshot, f) for f in sorted(chosen, key=lambda f: f.name)]

    def describe(self, name: str, query_namespace: str) -> dict[str, Any]:
        key = self._key(name, {}, query_namespace)
        snapshot = self._view.snapshot()
        function = snapshot.functions.get(key)
        if function is None:
            raise _missing(key)
        return self._status(snapshot, function)

    def _status(self, snapshot: Snapshot, function: FunctionRecord) -> dict[str, Any]:
        available, assigned = snapshot.replicas_of(function.key)
        requested = function.replicas_requested
        recent = time.monotonic() - self._scaled_at.get(function.key, -SCALED_SECONDS)
        # Who asked for zero gets it below the minimum too, until somebody calls.
        replicas = assigned if requested == 0 else max(assigned, function.scaling.minimum)
        if requested is not None and recent < SCALED_SECONDS:
            replicas = requested
        count = self._metrics.invocation_count(function.key)
        status = status_of(function, replicas, available, count)
        failure = snapshot.failures.get(function.key)
        return status | {"failure": _failure(failure)} if failure else status

    def renew(self, namespace: str, secret: str) -> None:
        """A secret has another value: who uses it gets instances that have it, and no others.

        Those that have the old one finish what they do.
        """
        for function in self._view.snapshot().functions.values():
            if function.namespace == namespace and secret in function.secrets:
                with contextlib.suppress(FunctionNotFound):  # it was just removed
                    self._write(function.path, _renewed)

    def _check_secrets(self, draft: FunctionDraft) -> None:
        for name in draft.secrets:
            if self._store.get(secret_path(draft.namespace, name)) is None:
                raise BadSpec(
                    f"unable to find secret: {name}.",
                    f"Create it in the namespace {draft.namespace} first.",
                )

    def _code_digest(self, draft: FunctionDraft) -> str:
        image = self._view.snapshot().images.get(draft.image)
        if image is None and (made := builtin_image(draft.image)) is not None:
            image = publish(made, self._bundles, self._store, self._view)
        if image is None:
            raise BadSpec(
                f"The image {draft.image!r:.200} was never built here.",
                "Deploy with `stoker deploy`, or build it with a remote builder first.",
            )
        kind = stated_kind(draft.annotations) or image.kind
        if draft.model_uri and kind != "openfaas":
            raise BadSpec(
                f"Expected handler.py beside stoker/model in the code of {draft.image!r:.200}, "
                f"found a function of the kind {kind}.",
                "Write handle(event, context); context.model is the model.",
            )
        if image.kind == "process" and not draft.env_process:
            raise BadSpec(
                f"Expected handler.py, main.py or func.py in the code of {draft.image!r:.200}, or "
                "an fprocess, found neither.",
                "Add one of these files, or set fprocess to the command that answers a request.",
            )
        return image.code_digest

    def _key(self, name: object, body: Mapping[str, Any], query_namespace: str) -> str:
        """The function key: a namespace in the body wins over the query, and it over the name."""
        text = name if isinstance(name, str) else ""
        plain, namespace = split_function_name(text)
        namespace = valid_namespace(body.get("namespace") or query_namespace or namespace)
        return f"{plain}.{namespace}"

    def _write(
        self,
        path: str,
        next_record: Callable[[FunctionRecord | None], FunctionRecord],
        fence: Fence | None = None,
    ) -> None:
        """Compare and set, again if somebody else wrote in between."""
        for left in reversed(range(WRITE_TRIES_MAXIMUM)):
            entry = self._store.get(path)
            value = encode(next_record(decode(FunctionRecord, entry.value) if entry else None))
            expected = entry.version if entry else ABSENT
            try:
                version = self._store.put(path, value, version=expected, fence=fence)
            except VersionConflict:
                if not left:
                    raise
                continue
            self._view.apply(Change(path, Entry(path, value, version)))
            return


def _renewed(function: FunctionRecord | None) -> FunctionRecord:
    if function is None:
        raise FunctionNotFound("It was removed.")
    generation = function.generation + 1
    return replace(function, generation=generation, generation_minimum=generation)


def _failure(failure: FailureRecord) -> dict[str, Any]:
    """Starts that failed in a row; without `retryAt` there will be no other by itself."""
    retry_at = None if failure.retry_at is None else timestamp(failure.retry_at)
    return {"failedStarts": failure.count, "retryAt": retry_at, **failure.error}


def _replicas(value: object) -> int:
    if type(value) is not int or not 0 <= value <= REPLICAS_MAXIMUM:
        raise BadRequest(
            f"Expected a whole number of at least 0 as replicas, found {value!r:.80}.",
            "Correct replicas.",
        )
    return value


def _path(key: str) -> str:
    name, _, namespace = key.rpartition(".")
    return f"/functions/{namespace}/{name}"


def _missing(key: str) -> FunctionNotFound:
    return FunctionNotFound(
        f"Expected a deployed function, found none called {key!r:.140}.",
        "Deploy it first; `stoker ls` lists what is deployed.",
    )
