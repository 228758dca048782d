"""The leader's loop: observe, plan, commit. Every write is fenced by the leader's epoch.

One lock covers snapshot, plan and commit, and every write is seen in the view before the lock is
released; so two decisions never use the same address, and what is starting is never started twice.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from threading import Event, RLock, Thread

import structlog

from stoker.placement.capacity import no_capacity
from stoker.placement.commits import Commits, ControlStore
from stoker.placement.errors import (
    CoordinationLost,
    Fenced,
    FunctionNotFound,
    NotFound,
    StokerError,
    Unavailable,
)
from stoker.placement.failures import refusal
from stoker.placement.histogram import BIN_SECONDS
from stoker.placement.metrics import PlacementMetrics
from stoker.placement.names import split_function_name
from stoker.placement.picture import Picture
from stoker.placement.plan import Plan, plan, usable
from stoker.placement.prefetch import Prefetching
from stoker.placement.records import (
    DemandReport,
    FunctionRecord,
    PlaceAnswer,
    PlaceRequest,
)
from stoker.placement.scale import startable
from stoker.placement.scale_requests import ScaleRequests
from stoker.placement.store import Change, Fence
from stoker.placement.view import View
from stoker.placement.why import WhyAnswer

TICK_SECONDS = 1.0
CLOSE_SECONDS = 10.0
# What a client is told to wait for an election.
ELECTION_RETRY_SECONDS = 1.0
# So many functions are looked at in one piece, so that who asks for a place hardly waits for it.
SWEEP_FUNCTIONS = 32

_log = structlog.get_logger()


@dataclass
class _Term:
    """One time of leading: `begun` by taking over what there was, `paused` while the store does not
    answer.
    """

    epoch: int
    fence: Fence
    next_number: int = 0
    begun: bool = False
    paused: bool = True


class Controller:
    """Decides while elected. `clock` gives seconds since the epoch, `identity` names us in logs.

    `bin_seconds` is the grain at which idle times are learnt, and what is idle is looked at. With
    `prefetches`, nodes are told what to bring before anybody calls it.
    """

    def __init__(
        self,
        store: ControlStore,
        view: View,
        identity: str,
        clock: Callable[[], float],
        bin_seconds: float = BIN_SECONDS,
        *,
        prefetches: bool = True,
    ) -> None:
        self._store = store
        self._view = view
        self._clock = clock
        self._log = _log.bind(leader=identity)
        # Guards the term, the picture and what is touched, and makes decisions one by one.
        self._lock = RLock()
        self._term: _Term | None = None
        self._picture = Picture(view, bin_seconds)
        self._requests = ScaleRequests(store)
        self._commits = Commits(store, view, self._picture, identity)
        self._prefetching = Prefetching() if prefetches else None
        self._metrics = PlacementMetrics()
        self._tick_seconds = min(TICK_SECONDS, bin_seconds)
        # Functions that lack something: those that changed, and those for which there was no room.
        self._touched: set[str] = set()
        self._short: set[str] = set()
        self._wake = Event()
        self._closed = Event()
        self._thread = Thread(target=self._run, name="placement-controller", daemon=True)
        view.on_change(self._wake.set)

    def start(self) -> None:
        """Begin to follow changes and time in a thread."""
        self._thread.start()

    def close(self) -> None:
        self._closed.set()
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join(CLOSE_SECONDS)

    @property
    def leading(self) -> bool:
        term = self._term
        return term is not None and not term.paused

    def on_elected(self, epoch: int, fence: Fence) -> None:
        """Lead from now on: read the store anew, then decide."""
        with self._lock:
            self._term = term = _Term(epoch, fence)
            self._log.info("leading_started", epoch=epoch)
            self._resume(term)
        self._wake.set()

    def on_lost(self) -> None:
        """Stop deciding: at once, for a decision under way may hold the lock, and is fenced."""
        term, self._term = self._term, None
        if term is not None:
            self._log.info("leading_ended", epoch=term.epoch)

    def place(self, request: PlaceRequest) -> PlaceAnswer:
        """Where `request.function` is or will be served, starting instances as demand needs.

        Unavailable on a non-leader, FunctionNotFound, NoCapacity, or the error that the last
        start failed with while it is too early for the next.
        """
        self._leading_term()  # who does not lead says so without waiting for the lock
        with self._lock:
            term = self._leading_term()
            function = self._function(request.function)
            now = self._clock()
            asked = request.demand
            if asked.in_flight + asked.queued == 0:
                asked = replace(asked, queued=1, idle_seconds=0.0)
            self._follow(now)
            self._picture.ledger.hear_one(request.gateway_id, function, asked, now)
            made = None
            if not self._picture.ledger.given_up(function.key) and self._lacks(function, now):
                keys = {function.key} | self._before(function.priority)
                made = self._decide(term, keys, now, request)
            found = usable(self._view.snapshot(), function.key, now)
            if found:
                self._picture.decisions.name(found[0].instance_id, request.call_ids)
                return PlaceAnswer(found)
            raise self._refusal(function, made, now)

    def report(self, report: DemandReport) -> None:
        """Take a gateway's demand; Unavailable on a non-leader."""
        self._leading_term()
        with self._lock:
            self._leading_term()
            now = self._clock()
            self._follow(now)
            picture = self._picture
            functions = picture.fleet.functions
            turned = picture.ledger.hear(report.gateway_id, report.functions, functions, now)
            picture.note_spares(turned, now)
            self._touched |= {
                key
                for key, asked in report.functions.items()
                if asked.in_flight + asked.queued > 0
                and key in functions
                and self._lacks(functions[key], now)
            }
        self._wake.set()

    def why(self, name: str) -> WhyAnswer:
        """What was decided for a call or an instance; NotFound, or Unavailable on a non-leader."""
        self._leading_term()
        with self._lock:
            answer = self._picture.decisions.find(name)
        if answer is None:
            raise NotFound(
                f"Expected a call or an instance that waited for a start, found none named {name}.",
                "A call that found an instance free was not decided on; old decisions are gone.",
            )
        return answer

    def metrics(self) -> bytes:
        """What Prometheus reads."""
        with self._lock:
            errors = self._picture.decisions.errors()
        return self._metrics.render(errors)

    def reconcile(self) -> bool:
        """Bring all assignments to what demand and nodes call for; False if not leading."""
        with self._lock:
            term = self._term
            if term is None or (term.paused and not self._resume(term)):
                return False
            self._react(term)
            keys = sorted(self._picture.fleet.functions.keys() | self._requests.known())
        for first in range(0, len(keys), SWEEP_FUNCTIONS):
            with self._lock:
                if self._term is not term or term.paused:
                    return False
                self._follow(self._clock())
                self._decide(term, keys[first : first + SWEEP_FUNCTIONS], self._clock())
        if self._prefetching is not None:
            for _ in range(self._prefetching.pieces(self._picture.fleet)):
                with self._lock:
                    if self._term is not term or term.paused:
                        return False
                    self._prefetch(self._prefetching, term)
        return True

    def react(self) -> None:
        """Decide for what changed since the last decision, and for what found no room then."""
        with self._lock:
            term = self._term
            if term is not None and not term.paused:
                self._react(term)

    def _react(self, term: _Term) -> None:
        now = self._clock()
        self._follow(now)
        self._decide(term, self._touched, now)

    def _run(self) -> None:
        swept_at = -math.inf
        while not self._closed.is_set():
            # The tick is for what no change tells: that time has passed.
            self._wake.wait(max(0.0, swept_at + self._tick_seconds - time.monotonic()))
            self._wake.clear()
            if self._closed.is_set():
                return
            try:
                if time.monotonic() - swept_at >= self._tick_seconds:
                    swept_at = time.monotonic()
                    self.reconcile()
                else:
                    self.react()
            except StokerError as error:
                self._log.warning("reconcile_failed", code=error.code, cause=error.cause)
            except Exception:  # noqa: BLE001 - the loop outlives a bug in one decision
                self._log.exception("reconcile_broken")

    def _resume(self, term: _Term) -> bool:
        """Read the store anew and decide again; says whether the store answered."""
        try:
            self._view.refresh()
            if not term.begun:
                self._take_over(term)
        except (CoordinationLost, Fenced) as error:
            self._log.warning("leading_delayed", epoch=term.epoch, cause=error.cause)
            return False
        # What was decided and not carried out is in the columns, but not in the store.
        self._touched = set(self._picture.draw_anew(self._clock()).functions)
        self._short = set()
        term.begun, term.paused = True, False
        return True

    def _take_over(self, term: _Term) -> None:
        """Go on from what the last leader left; its clock may be another than ours."""
        snapshot, now = self._view.snapshot(), self._clock()
        self._picture.begin(snapshot, self._requests.take_over(snapshot), now)
        for order in snapshot.assignments.values():
            # Not announced yet: the agent has its whole time from now on, and an order of ours.
            if order.instance_id not in snapshot.instances and order.epoch != term.epoch:
                ours = replace(order, epoch=term.epoch, created_at=now)
                self._commits.order(ours, term.fence, expected=None)

    def _leading_term(self) -> _Term:
        term = self._term
        if term is not None and not term.paused:
            return term
        raise self._not_leading()

    def _not_leading(self) -> Unavailable:
        leader = self._view.snapshot().leader
        known = leader is not None and self._term is None
        return Unavailable(
            f"This placement does not lead; the leader listens at {leader.address}."
            if leader is not None and known
            else "No placement leads at this moment.",
            "Ask the leader." if known else "Try again after the election.",
            retry_after_seconds=ELECTION_RETRY_SECONDS,
        )

    def _function(self, key: str) -> FunctionRecord:
        """The function, looked up in the store itself if the view has not heard of it yet."""
        found = self._view.snapshot().functions.get(key)
        if found is not None:
            return found
        name, namespace = split_function_name(key)
        path = f"/functions/{namespace}/{name}"
        entry = self._store.get(path)
        if entry is not None:
            self._view.apply(Change(path, entry))
            found = self._view.snapshot().functions.get(key)
        if found is None:
            raise FunctionNotFound(
                f"Expected a deployed function, found none called {name} in {namespace}.",
                "Deploy it first.",
            )
        return found

    def _before(self, priority: int) -> set[str]:
        """What is to be decided anew for a higher priority: room that has come is theirs first."""
        functions = self._picture.fleet.functions
        return {k for k in self._touched if k in functions and functions[k].priority > priority}

    def _lacks(self, function: FunctionRecord, now: float) -> bool:
        """Whether there is less than the demand calls for: only then is a plan worth making."""
        found = usable(self._view.snapshot(), function.key, now)
        current = [a for a in found if a.generation == function.generation]
        demand = self._picture.ledger.demand_of(function.key, now)
        return len(current) < startable(function, demand, now)

    def _follow(self, now: float) -> None:
        touched, more_room = self._picture.follow(now)
        self._touched |= touched
        if more_room:
            self._touched |= self._short

    def _decide(
        self, term: _Term, keys: Iterable[str], now: float, asked: PlaceRequest | None = None
    ) -> Plan:
        """Decide for these functions, and commit; `asked` is the request that waits."""
        picture, keys = self._picture, tuple(keys)
        began = time.perf_counter()
        made = plan(
            picture.fleet,
            picture.demands(now),
            now,
            epoch=term.epoch,
            first_number=term.next_number,
            only=[key for key in keys if key in picture.fleet.functions],
        )
        self._metrics.decided(made, time.perf_counter() - began)
        for decision, started in made.decisions:
            calls = asked.call_ids if asked and asked.function == decision.function else ()
            picture.decisions.add(decision, started, calls)
        with self._writing(term):
            # A number is used up even if its write fails: it may have arrived all the same.
            term.next_number += len(made.starts)
            self._commits.failures(picture.ledger.failures(), term.fence)
            self._commits.plan(made, now, term.fence)
            self._requests.note(picture.requests(keys), term.fence)
        self._touched.difference_update(keys)
        self._short.difference_update(keys)
        self._short.update(shortage.function for shortage in made.shortages)
        return made

    def _prefetch(self, prefetching: Prefetching, term: _Term) -> None:
        """Renew what some of the nodes bring before anybody calls it."""
        now, picture = self._clock(), self._picture
        before = self._view.snapshot().prefetches
        told = {node_id: order.checkpoints for node_id, order in before.items()}
        demands = picture.demands(now)
        orders = prefetching.renew(picture.fleet, demands.__getitem__, told, now)
        with self._writing(term):
            self._commits.prefetches(orders, term.epoch, term.fence)

    @contextmanager
    def _writing(self, term: _Term) -> Iterator[None]:
        """Stop leading where a write is fenced, and pause where it is not known what arrived."""
        try:
            yield
        except Fenced as error:
            self._log.warning("leading_ended_by_fence", epoch=term.epoch)
            self._term = None
            raise self._not_leading() from error
        except StokerError as error:
            # Writes may or may not have happened: decide no more before the store was read anew.
            self._log.warning("leading_paused", epoch=term.epoch, cause=error.cause)
            term.paused = True
            raise

    def _refusal(self, function: FunctionRecord, made: Plan | None, now: float) -> StokerError:
        failure = self._picture.ledger.failure_of(function.key, now)
        if failure is not None:
            return refusal(failure, now)
        return no_capacity(function.key, made)
