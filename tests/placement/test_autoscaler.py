import dataclasses

import pytest

from harness.cluster import FUNCTION, Cluster
from harness.specs import scaling
from stoker.placement.autoscaler import Autoscaled, Autoscaler
from stoker.placement.kpa import Kpa
from stoker.placement.records import DemandReport, FunctionDemand, Scaling

ONE = Kpa(target=1.0, initial=0)
PER_SECOND = Kpa(metric="rps", target=10.0, utilization=1.0, initial=0)


def scaled(kpa: Kpa, maximum: int = 20) -> Scaling:
    return Scaling(minimum=0, maximum=maximum, concurrency=1, kpa=kpa)


def test_decisions_come_every_two_seconds() -> None:
    autoscaler = Autoscaler()
    autoscaler.follow("f", ONE, deployed=True)
    found = []
    for now in (0.0, 1.0, 1.9, 2.0):
        autoscaler.hear("f", 5.0 if now == 0.0 else 50.0, now)
        autoscaler.tick("f", 8 if now else 0, 8, now)
        found.append(autoscaler.decision("f"))
    assert found[:3] == [Autoscaled(8)] * 3
    last = found[3]
    assert last is not None
    assert (last.desired or 0) > 8


def test_at_zero_the_first_request_is_decided_at_once() -> None:
    autoscaler = Autoscaler()
    autoscaler.follow("f", ONE, deployed=True)
    for now, load in ((0.0, 0.0), (0.5, 3.0)):
        autoscaler.hear("f", load, now)
        autoscaler.tick("f", 0, 0, now)
    found = autoscaler.decision("f")
    assert found is not None
    assert found.desired == 5  # 3 / 0.7


def test_requests_per_second_are_the_growth_of_what_gateways_count() -> None:
    autoscaler = Autoscaler()
    autoscaler.follow("f", PER_SECOND, deployed=True)
    for second in range(20):
        autoscaler.count("f", "a", 1000 + 12 * second, float(second))
        autoscaler.count("f", "b", 14 * second, float(second))
        autoscaler.tick("f", 3, 3, float(second))
    found = autoscaler.decision("f")
    assert found is not None
    assert found.desired == 3
    autoscaler.count("f", "a", 5, 20.0)  # it began anew
    autoscaler.tick("f", 3, 3, 20.0)
    found = autoscaler.decision("f")
    assert found is not None
    assert found.desired == 3


def test_the_initial_scale_holds_until_it_was_reached() -> None:
    autoscaler = Autoscaler()
    autoscaler.follow("f", dataclasses.replace(ONE, initial=3), deployed=True)
    for existing, expected in ((0, 3), (2, 3), (3, 0), (0, 0)):
        autoscaler.hear("f", 0.0, float(existing))
        autoscaler.tick("f", existing, existing, 10.0)
        found = autoscaler.decision("f")
        assert found is not None
        assert (found.desired or 0) == expected
    autoscaler.follow("g", dataclasses.replace(ONE, initial=3), deployed=False)
    assert autoscaler.decision("g") == Autoscaled()


def test_a_function_without_settings_is_not_followed() -> None:
    autoscaler = Autoscaler()
    autoscaler.follow("f", ONE, deployed=True)
    autoscaler.follow("f", None, deployed=False)
    assert (autoscaler.decision("f"), autoscaler.followed()) == (None, ())


class TestCluster:
    """A controller with a function that averages scale, on one node of twenty places."""

    def setup_method(self) -> None:
        self.cluster = Cluster()
        self.cluster.join(sockets=20, instances_maximum=20)
        self.cluster.elect()

    def tell(self, in_flight: int = 0, queued: int = 0, requests: int = 0) -> int:
        cluster = self.cluster
        demand = FunctionDemand(in_flight, queued, 0.0, cluster.version(), requests)
        cluster.controller.report(DemandReport("g", {"f.ns": demand}))
        cluster.controller.reconcile()
        cluster.serve()
        return len(cluster.assigned())

    def test_five_that_wait_start_eight_which_leave_by_halves(self) -> None:
        self.cluster.deploy(dataclasses.replace(FUNCTION, scaling=scaled(ONE)))
        self.cluster.place(queued=5)
        assert len(self.cluster.assigned()) == 8
        self.cluster.serve()
        seen = []
        for _ in range(110):
            self.cluster.now += 1.0
            seen.append(self.tell())
        moves = [(at, n) for at, n in enumerate(seen, 1) if n != ([8, *seen])[at - 1]]
        assert [n for _, n in moves] == [4, 2, 1, 0]
        assert 60 <= moves[0][0] <= 64
        # From one, it waits for the grace of 30 s.
        assert moves[3][0] - moves[2][0] == pytest.approx(32, abs=3)

    def test_requests_per_second_scale_too(self) -> None:
        self.cluster.deploy(dataclasses.replace(FUNCTION, scaling=scaled(PER_SECOND)))
        self.cluster.place()
        for second in range(1, 90):
            self.cluster.now += 1.0
            found = self.tell(in_flight=1, requests=35 * second)
        assert found == 4

    def test_an_instance_is_there_after_the_deployment(self) -> None:
        kpa = dataclasses.replace(ONE, initial=2)
        self.cluster.deploy(dataclasses.replace(FUNCTION, scaling=scaled(kpa)))
        self.cluster.controller.reconcile()
        assert len(self.cluster.assigned()) == 2


def test_ten_calls_per_second_ask_for_two_and_a_minute_of_rest_for_no_second_one() -> None:
    autoscaler = Autoscaler()
    bounds = {"com.openfaas.scale.min": "1", "com.openfaas.scale.max": "2"}
    autoscaler.follow("f", scaling(bounds).kpa, deployed=True)
    wanted = []
    for second in range(90):
        autoscaler.count("f", "a", 10 * min(second, 30), float(second))
        autoscaler.tick("f", 1 + (second > 5), 1 + (second > 5), float(second))
        found = autoscaler.decision("f")
        assert found is not None
        wanted.append(min(2, found.desired or 0))  # its maximum
    assert wanted[5:30] == [2] * 25
    assert max(wanted[80:]) <= 1
