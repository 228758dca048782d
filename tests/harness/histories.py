"""Random concurrent histories of a store, and whether one order of their calls explains them.

The check is Wing and Gong's search: take, of the calls that may come next, any whose answer is what
the model gives, until none is left. A call may come next if no call that is still left had ended
before it began. Where reads may lag behind (an ensemble answers them from any server), a read is
bound by the order of its own session alone; writes are always bound by time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import inf
from random import Random
from typing import Any

from stoker.placement.errors import CoordinationLost, Fenced, VersionConflict
from stoker.placement.store import ABSENT, Fence, Store

PATHS = ("/a/x", "/a/y", "/b")
CONFLICT, FENCED, UNKNOWN = "conflict", "fenced", "unknown"
# Of an entry: its version, its value and the session that owns it, if it is ephemeral.
State = tuple[tuple[int, bytes, int | None] | None, ...]


@dataclass(frozen=True)
class Call:
    """One call of one session. `version` as in Store; `fence` is (path, version)."""

    session: int
    kind: str
    path: str
    value: bytes = b""
    version: int | None = None
    ephemeral: bool = False
    fence: tuple[str, int] | None = None
    begun_at: float = 0.0
    ended_at: float = inf
    answer: Any = UNKNOWN

    @property
    def reads(self) -> bool:
        return self.kind == "get"


def apply(state: State, call: Call) -> tuple[State, Any]:
    """The state after the call, and its answer."""
    found = state[PATHS.index(call.path)]
    if call.kind == "get":
        return state, None if found is None else found[:2]
    if call.fence is not None:
        held = state[PATHS.index(call.fence[0])]
        if held is None or held[0] != call.fence[1]:
            return state, FENCED
    if call.kind == "delete" and found is None:
        return state, False
    present = ABSENT if found is None else found[0]
    if call.version is not None and call.version != present:
        return state, CONFLICT
    if call.kind == "delete":
        return _with(state, call.path, None), True
    owner = call.session if call.ephemeral else None
    version = found[0] + 1 if found is not None and found[2] == owner else 0
    return _with(state, call.path, (version, call.value, owner)), version


def _with(state: State, path: str, entry: tuple[int, bytes, int | None] | None) -> State:
    index = PATHS.index(path)
    return (*state[:index], entry, *state[index + 1 :])


def record(
    stores: Sequence[Store], seed: int, calls_each: int, disturb: Callable[[], None] | None = None
) -> list[list[Call]]:
    """What each of the sessions called and was answered, in its own order."""
    histories: list[list[Call]] = [[] for _ in stores]
    broken: list[BaseException] = []

    def run(session: int) -> None:
        random = Random(seed * 1000 + session)
        seen = dict.fromkeys(PATHS, 0)
        try:
            for number in range(calls_each):
                call = _draw(random, session, number, seen)
                answered = _make(stores[session], call)
                histories[session].append(answered)
                if call.kind == "get" and isinstance(answered.answer, tuple):
                    seen[call.path] = answered.answer[0]
                elif call.kind == "put" and type(answered.answer) is int:
                    seen[call.path] = answered.answer
        except BaseException as error:  # noqa: BLE001 - told by the test's own thread
            broken.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(stores))]
    for thread in threads:
        thread.start()
    if disturb is not None:
        disturb()
    for thread in threads:
        thread.join()
    if broken:
        raise broken[0]
    return histories


def _draw(random: Random, session: int, number: int, seen: dict[str, int]) -> Call:
    path, fence_path = random.choice(PATHS), random.choice(PATHS)
    kind = random.choices(("get", "put", "delete"), (4, 5, 2))[0]
    call = Call(session, kind, path, f"{session}.{number}".encode())
    if kind == "get":
        return call
    fence = (fence_path, seen[fence_path]) if random.random() < 0.3 else None
    versions = [None, seen[path], seen[path] + 1, *([ABSENT] if kind == "put" else [])]
    ephemeral = kind == "put" and random.random() < 0.3
    return replace(call, version=random.choice(versions), ephemeral=ephemeral, fence=fence)


def _make(store: Store, call: Call) -> Call:
    fence = Fence(*call.fence) if call.fence else None
    begun_at = time.monotonic()
    answer: Any
    try:
        if call.kind == "get":
            entry = store.get(call.path)
            answer = None if entry is None else (entry.version, entry.value)
        elif call.kind == "delete":
            answer = store.delete(call.path, version=call.version, fence=fence)
        else:
            answer = store.put(
                call.path, call.value, version=call.version, ephemeral=call.ephemeral, fence=fence
            )
    except VersionConflict:
        answer = CONFLICT
    except Fenced:
        answer = FENCED
    except CoordinationLost:
        # It may have been done, may still be done, or never.
        return replace(call, begun_at=begun_at)
    return replace(call, begun_at=begun_at, ended_at=time.monotonic(), answer=answer)


def explained(
    histories: Sequence[Sequence[Call]],
    *,
    reads_may_lag: bool = False,
    owners_may_race: bool = False,
) -> bool:
    """Whether some order of all calls gives every answer.

    With `owners_may_race`, a write that races with one of another owner may begin anew at 0.
    """
    calls = [call for history in histories for call in history]
    raced = [call for call in calls if owners_may_race and _races(call, calls)]
    lines = [[c for c in history if c.answer != UNKNOWN] for history in histories]
    # What nobody knows the end of is bound to nothing but its beginning.
    lines += [[c] for h in histories for c in h if c.answer == UNKNOWN and not c.reads]
    empty: State = (None,) * len(PATHS)
    # How far each line is taken, the state, and the lines whose next call is half done.
    start: tuple[tuple[int, ...], State, frozenset[int]] = ((0,) * len(lines), empty, frozenset())
    visited = {start}
    stack = [start]
    while stack:
        at, state, halves = stack.pop()
        heads = [line[i] for line, i in zip(lines, at, strict=True) if i < len(line)]
        if all(call.answer == UNKNOWN for call in heads):
            return True
        ends = [_earliest_end(line[i:], reads_may_lag) for line, i in zip(lines, at, strict=True)]
        for number, line in enumerate(lines):
            if at[number] == len(line):
                continue
            call = line[at[number]]
            others = min((end for n, end in enumerate(ends) if n != number), default=inf)
            if others < call.begun_at and not (call.reads and reads_may_lag):
                continue
            taken = (*at[:number], at[number] + 1, *at[number + 1 :])
            after, answer = apply(state, call)
            found = []
            if number in halves:
                found = [(taken, s, halves - {number}) for s in _second_half(state, call)]
            elif call.answer in (UNKNOWN, answer):
                found = [(taken, after, halves)]
            if call in raced and type(answer) is int and number not in halves:
                found += [(taken, s, halves) for s, a in _anew(state, call) if a == call.answer]
                found += [(at, s, halves | {number}) for s in _first_half(state, call)]
            for step in found:
                if step not in visited:
                    visited.add(step)
                    stack.append(step)
    return False


def _anew(state: State, call: Call) -> list[tuple[State, int]]:
    """A write that lost a race of owners: begun anew, or left with the other owner."""
    found = state[PATHS.index(call.path)]
    own = call.session if call.ephemeral else None
    made = [(_with(state, call.path, (0, call.value, own)), 0)]
    if found is not None:
        other = (found[0] + 1, call.value, found[2])
        made.append((_with(state, call.path, other), found[0] + 1))
    return made


def _first_half(state: State, call: Call) -> list[State]:
    """The write as it is seen while it still has the other owner."""
    found = state[PATHS.index(call.path)]
    if found is None:
        return []
    return [_with(state, call.path, (found[0] + 1, call.value, found[2]))]


def _second_half(state: State, call: Call) -> list[State]:
    """Then it is its own; or another write came between, or took it away."""
    own = call.session if call.ephemeral else None
    made = [_with(state, call.path, (0, call.value, own))] if call.answer in (UNKNOWN, 0) else []
    return made if call.answer == 0 else [*made, state]


def _races(call: Call, calls: Sequence[Call]) -> bool:
    """Whether another writes the entry at the same time, and it had, or gets, an owner."""
    puts = [c for c in calls if (call.kind, c.kind, c.path) == ("put", "put", call.path)]
    owned = any(c.ephemeral and c.begun_at < call.ended_at for c in puts)
    return owned and any(
        c is not call and c.begun_at < call.ended_at and call.begun_at < c.ended_at for c in puts
    )


def _earliest_end(left: Sequence[Call], reads_may_lag: bool) -> float:
    binding = (call.ended_at for call in left if not (reads_may_lag and call.reads))
    return next(binding, inf)
