import dataclasses
import math

import pytest

from stoker.placement.demand import GATEWAYS_MAXIMUM, REPORT_SECONDS, DemandLedger
from stoker.placement.errors import StartFailed
from stoker.placement.histogram import Window
from stoker.placement.records import (
    Assignment,
    FunctionDemand,
    FunctionRecord,
    InstanceRecord,
    Scaling,
)
from stoker.placement.retention import Retention
from stoker.placement.scale import Demand, desired

FUNCTION = FunctionRecord("f", "ns", "img", scaling=Scaling(maximum=4, concurrency=2))
FUNCTIONS = {"f.ns": FUNCTION}
BUSY = {"f.ns": FunctionDemand(in_flight=2, queued=1, idle_seconds=0.0)}


def test_the_demand_of_all_gateways_is_added_up() -> None:
    ledger = DemandLedger()
    ledger.hear("a", BUSY, FUNCTIONS, 10.0)
    ledger.hear("b", BUSY, FUNCTIONS, 11.0)
    found = ledger.demand_of("f.ns", 11.0)
    assert (found.in_flight, found.queued) == (4, 2)
    assert found.last_needed == (11.0, 11.0, 11.0)


def test_a_report_replaces_the_gateways_last_one() -> None:
    ledger = DemandLedger()
    ledger.hear("a", BUSY, FUNCTIONS, 10.0)
    ledger.hear("a", {}, FUNCTIONS, 11.0)
    found = ledger.demand_of("f.ns", 11.0)
    assert (found.busy, found.last_active) == (False, 10.0)


def test_who_waits_longest_counts_from_its_arrival_at_its_gateway() -> None:
    ledger = DemandLedger()
    assert ledger.demand_of("f.ns", 10.0).waiting_since is None
    for gateway, waited_seconds, at in (("a", 0.5, 10.0), ("b", 3.0, 11.0), ("c", 0.1, 12.0)):
        asked = dataclasses.replace(BUSY["f.ns"], waited_seconds=waited_seconds)
        ledger.hear(gateway, {"f.ns": asked}, FUNCTIONS, at)
    assert ledger.demand_of("f.ns", 12.0).waiting_since == 8.0
    nobody = dataclasses.replace(BUSY["f.ns"], queued=0)
    ledger.hear("b", {"f.ns": nobody}, FUNCTIONS, 12.0)
    assert ledger.demand_of("f.ns", 12.0).waiting_since == 9.5


def test_an_old_report_counts_no_requests_but_its_last_use_stays() -> None:
    ledger = DemandLedger()
    ledger.hear("a", BUSY, FUNCTIONS, 10.0)
    assert ledger.demand_of("f.ns", 10.0 + REPORT_SECONDS).busy
    found = ledger.demand_of("f.ns", 10.1 + REPORT_SECONDS)
    assert (found.busy, found.last_active) == (False, 10.0)


def test_the_idle_time_that_a_gateway_tells_moves_the_last_use_forward_only() -> None:
    ledger = DemandLedger()
    for idle_seconds, expected in ((3.0, 97.0), (50.0, 97.0), (1.0, 99.0), (math.inf, 99.0)):
        ledger.hear("a", {"f.ns": FunctionDemand(0, 0, idle_seconds)}, FUNCTIONS, 100.0)
        assert ledger.demand_of("f.ns", 100.0).last_active == expected


def test_unknown_functions_and_too_many_gateways_are_not_remembered() -> None:
    ledger = DemandLedger()
    ledger.hear("a", {"x.ns": BUSY["f.ns"]}, FUNCTIONS, 10.0)
    assert not ledger.demand_of("x.ns", 10.0).busy
    for number in range(GATEWAYS_MAXIMUM + 50):
        ledger.hear(f"g{number}", BUSY, FUNCTIONS, 10.0)
    assert ledger.demand_of("f.ns", 10.0).in_flight == 2 * GATEWAYS_MAXIMUM


def test_all_gateways_together_say_which_instances_work() -> None:
    ledger = DemandLedger()
    for gateway, working in (("a", ("1-0", "1-1")), ("b", ("1-1", "1-2"))):
        demand = FunctionDemand(2, 0, 0.0, working=working)
        ledger.hear(gateway, {"f.ns": demand}, FUNCTIONS, 10.0)
    assert ledger.demand_of("f.ns", 10.0).working == {"1-0", "1-1", "1-2"}
    assert ledger.demand_of("f.ns", 10.0 + 2 * REPORT_SECONDS).working == frozenset()


def test_a_deleted_function_is_forgotten() -> None:
    ledger = DemandLedger()
    ledger.hear("a", BUSY, FUNCTIONS, 10.0)
    ledger.follow({}, {}, 11.0)
    assert ledger.demand_of("f.ns", 20.0).last_needed == ()


class TestIdleTimes:
    """One function, called by hand: its ledger counts idle times by the second."""

    def setup_method(self) -> None:
        self.ledger = DemandLedger(bin_seconds=1.0)
        self.ledger.follow(FUNCTIONS, {"f.ns": 1}, 0.0)

    def hear(self, now: float, in_flight: int = 0, idle: float = 0.0, gateway: str = "a") -> None:
        demand = FunctionDemand(in_flight, 0, idle)
        self.ledger.hear(gateway, {"f.ns": demand}, FUNCTIONS, now)

    def call(self, now: float, seconds: float = 0.2) -> None:
        """A request that finds no instance, so that placement is asked."""
        self.ledger.hear_one("a", FUNCTION, FunctionDemand(0, 1, 0.0), now)
        self.hear(now + 1.0, idle=1.0 - seconds)

    def test_regular_calls_are_expected_from_the_tenth_idle_time_on(self) -> None:
        for number in range(10):
            self.call(30.7 * number)
            assert self.ledger.demand_of("f.ns", 30.7 * number).retention.due is None
        self.call(307.0)
        found = self.ledger.demand_of("f.ns", 310.0)
        assert found.retention == Retention(1.0, Window(27.0, pytest.approx(34.1)))
        assert (found.calls, found.calls_since) == (11, pytest.approx(0.0))
        assert desired(FUNCTION, found, 0, 307.2 + 20.0) == 0
        assert desired(FUNCTION, found, 0, 307.2 + 28.0) == 1
        assert desired(FUNCTION, found, 1, 307.2 + 35.0) == 0

    def test_a_call_between_two_reports_is_seen_by_its_end(self) -> None:
        self.call(0.0)
        for second in range(2, 30):
            self.hear(float(second), idle=second - 0.2)
        self.hear(30.0, idle=0.3)  # ended at 29.7
        self.hear(31.0, idle=1.29)  # the same one, told with another error
        found = self.ledger.demand_of("f.ns", 31.0)
        assert (found.calls, found.last_active) == (2, pytest.approx(29.71))
        self.call(40.0)
        assert self.ledger.demand_of("f.ns", 41.0).calls == 3

    def test_a_long_request_is_no_idle_time(self) -> None:
        self.call(0.0)
        for second in range(100, 160):
            self.hear(float(second), in_flight=1)
        self.hear(160.0, idle=0.5)
        found = self.ledger.demand_of("f.ns", 161.0)
        # Busy all the time counts like calls: the last 24 reports.
        assert (found.calls, found.calls_since) == (24, pytest.approx(136.0))
        assert found.last_active == 159.5

    def test_while_one_gateway_is_busy_the_others_idle_times_say_nothing(self) -> None:
        self.hear(10.0, in_flight=1, gateway="a")
        self.hear(10.0, idle=500.0, gateway="b")
        self.hear(11.0, in_flight=1, gateway="a")
        self.hear(11.0, idle=501.0, gateway="b")
        found = self.ledger.demand_of("f.ns", 11.0)
        assert (found.busy, found.last_active, found.calls) == (True, 11.0, 2)

    def test_a_deleted_function_leaves_nothing_behind(self) -> None:
        for number in range(12):
            self.call(30.2 * number)
        self.ledger.follow({}, {}, 400.0)
        self.ledger.follow(FUNCTIONS, {"f.ns": 9}, 401.0)
        assert self.ledger.demand_of("f.ns", 402.0) == Demand(retention=Retention(5.0))


def failing(instance_id: str, node_id: str = "n") -> InstanceRecord:
    return InstanceRecord(instance_id, "f.ns", 1, node_id, "n:1", "failed", 1, 0.0)


def ordered(instance_id: str, created_at: float) -> Assignment:
    return Assignment(instance_id, "f.ns", 1, "n", "n:1", 1, created_at)


class TestFailures:
    def setup_method(self) -> None:
        self.ledger = DemandLedger()
        self.ledger.follow(FUNCTIONS, {"f.ns": 3}, 0.0)

    def test_a_failure_is_counted_once(self) -> None:
        error = StartFailed("It broke.")
        assert self.ledger.failed(failing("1-0"), error, 10.0)
        assert not self.ledger.failed(failing("1-0"), error, 10.5)
        failure = self.ledger.failure_of("f.ns", 10.5)
        assert failure is not None
        assert (failure.count, failure.retry_at, failure.function_version) == (1, 11.0, 3)
        assert self.ledger.demand_of("f.ns", 10.5).avoid == {"n"}
        assert self.ledger.failure_of("f.ns", 11.0) is None

    def test_only_a_later_start_that_lasts_makes_it_forgotten(self) -> None:
        self.ledger.failed(failing("1-1"), StartFailed("It broke."), 10.0)
        good = dataclasses.replace(failing("x"), state="serving", init_seconds=0.25)
        earlier, later = ordered("1-0", 5.0), ordered("1-2", 12.0)
        self.ledger.serves(earlier, dataclasses.replace(good, instance_id="1-0"), 11.0)
        self.ledger.settle(25.0)
        assert self.ledger.failures()
        self.ledger.serves(later, dataclasses.replace(good, instance_id="1-2"), 30.0)
        self.ledger.settle(39.9)
        assert self.ledger.failures()
        self.ledger.settle(40.0)
        assert self.ledger.failures() == {}
        assert self.ledger.demand_of("f.ns", 40.0).not_before == -math.inf
        assert self.ledger.demand_of("f.ns", 40.0).start_seconds == 0.25

    def test_after_the_fifth_nothing_starts_until_somebody_writes_the_function(self) -> None:
        for number in range(5):
            assert not self.ledger.given_up("f.ns")
            self.ledger.failed(failing(f"1-{number}"), StartFailed("It broke."), 10.0 * number)
        assert self.ledger.given_up("f.ns")
        assert self.ledger.demand_of("f.ns", 1e9).not_before == math.inf
        self.ledger.follow(FUNCTIONS, {"f.ns": 4}, 100.0)
        assert not self.ledger.given_up("f.ns")
        assert self.ledger.failures() == {}

    def test_a_new_leader_goes_on_counting_for_the_same_version(self) -> None:
        self.ledger.failed(failing("1-0"), StartFailed("It broke."), 10.0)
        kept = self.ledger.failures()
        for version, expected in ((3, kept), (4, {})):
            other = DemandLedger()
            other.begin({"f.ns": 0}, {"f.ns": version}, kept, 20.0)
            assert other.failures() == expected
