import math

from stoker.placement.demand import GATEWAYS_MAXIMUM, REPORT_SECONDS, DemandLedger
from stoker.placement.errors import StartFailed
from stoker.placement.records import FunctionDemand, FunctionRecord, Scaling

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


def test_a_deleted_function_is_forgotten() -> None:
    ledger = DemandLedger()
    ledger.hear("a", BUSY, FUNCTIONS, 10.0)
    ledger.follow({}, {}, 11.0)
    assert ledger.demand_of("f.ns", 20.0).last_needed == ()


def test_a_failure_is_counted_once_and_ends_with_success() -> None:
    ledger = DemandLedger()
    error = StartFailed("It broke.")
    assert ledger.failed(FUNCTION, "1-0", "n", error, 10.0)
    assert not ledger.failed(FUNCTION, "1-0", "n", error, 10.5)
    failure = ledger.failure_of("f.ns", 10.5)
    assert failure is not None
    assert failure.not_before == 11.0
    assert ledger.demand_of("f.ns", 10.5).avoid == {"n"}
    assert ledger.failure_of("f.ns", 11.0) is None
    ledger.succeeded(["f.ns"])
    assert ledger.demand_of("f.ns", 10.5).not_before == -math.inf
