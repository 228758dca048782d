"""What the planner makes of requests that are only expected, and of instances nobody calls."""

import dataclasses

from harness.plans import (
    GB,
    IDLE,
    MODEL,
    NOW,
    QUEUED,
    assignment,
    decide,
    function,
    node,
    snapshot,
    stopped,
)
from stoker.placement.histogram import Window
from stoker.placement.records import ResidentRecord
from stoker.placement.retention import Retention
from stoker.placement.scale import Demand

REGULAR = Demand(last_needed=(NOW - 3500.0,), retention=Retention(60.0, Window(3240.0, 4026.0)))


def test_what_is_only_expected_starts_where_there_is_room_and_takes_nobodys_place() -> None:
    f, other = function(), function("other", maximum=1)
    assert len(decide(snapshot([f], [node()]), {"f.ns": REGULAR}).starts) == 1
    taken = snapshot(
        [f, other], [node(instances_maximum=1)], [(assignment("1-0", other), "serving")]
    )
    assert decide(taken, {"f.ns": REGULAR, "other.ns": IDLE}).starts == ()
    assert decide(taken, {"f.ns": REGULAR, "other.ns": IDLE}).stops == ()
    assert stopped(decide(taken, {"f.ns": QUEUED, "other.ns": IDLE})) != {}


def test_what_was_started_ahead_gives_way_to_who_really_calls() -> None:
    f, other = function(), function("other")
    seen = snapshot([f, other], [node(instances_maximum=1)], [(assignment("1-0", f), "serving")])
    made = decide(seen, {"f.ns": REGULAR, "other.ns": QUEUED})
    assert list(stopped(made)) == ["1-0"]


def test_a_load_from_afar_begins_early_enough_to_be_done_when_the_request_is_due() -> None:
    """3 GB at 2 MB/s take 1,500 s, and 5 % of the requests have come after 3,600 s."""
    f = function(checkpoint=dataclasses.replace(MODEL, weight_bytes=3 * GB))
    demand = dataclasses.replace(REGULAR, last_needed=(NOW - 2200.0,))
    afar = snapshot([f], [node(remote_bandwidth=0.002 * GB)])
    here = snapshot([f], [node()], residents=[ResidentRecord("n", MODEL.digest, 0, 3 * GB)])
    assert len(decide(afar, {"f.ns": demand}).starts) == 1
    assert decide(here, {"f.ns": demand}).starts == ()


def test_the_least_worth_goes_first_although_it_was_used_last() -> None:
    """Both are idle: `often` is called every minute, `once` was called 20 s later."""
    f, often, once = function(), function("often"), function("once")
    seen = snapshot(
        [f, often, once],
        [node(instances_maximum=2)],
        [(assignment("1-0", often), "serving"), (assignment("1-1", once), "serving")],
    )
    demand = {
        "f.ns": QUEUED,
        "often.ns": Demand(last_needed=(NOW - 40.0,), calls=24, calls_since=NOW - 1440.0),
        "once.ns": Demand(last_needed=(NOW - 20.0,), calls=1, calls_since=NOW - 1500.0),
    }
    assert list(stopped(decide(seen, demand))) == ["1-1"]
    # Unless its start takes so much longer.
    slow = dataclasses.replace(demand["once.ns"], start_seconds=60.0)
    assert list(stopped(decide(seen, {**demand, "once.ns": slow}))) == ["1-0"]
