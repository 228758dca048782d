"""The leader's picture of the cluster after an interruption."""

from __future__ import annotations

import numpy as np

from harness.cluster import Cluster
from stoker.placement.picture import Picture
from stoker.placement.plan import plan
from stoker.placement.records import FunctionDemand
from stoker.placement.view import View


def picture_of(cluster: Cluster) -> Picture:
    made = Picture(View(cluster.store.session()), bin_seconds=1.0)
    made.draw_anew(cluster.now)
    return made


def decide(picture: Picture, cluster: Cluster) -> None:
    """Make a plan that is written nowhere."""
    plan(picture.fleet, picture.demands(cluster.now), cluster.now, epoch=9)


def test_a_start_that_was_decided_and_not_written_is_taken_back(cluster: Cluster) -> None:
    picture = picture_of(cluster)
    function = picture.fleet.functions["f.ns"]
    picture.ledger.hear_one("g", function, FunctionDemand(0, 1, 0.0), cluster.now)
    decide(picture, cluster)
    assert list(picture.fleet.assignments) == ["9-0"]
    assert next(picture.fleet.free_addresses("n")) == "n:1"

    picture.draw_anew(cluster.now)
    assert dict(picture.fleet.assignments) == {}
    assert next(picture.fleet.free_addresses("n")) == "n:0"


def test_a_stop_that_was_decided_and_not_written_is_taken_back(cluster: Cluster) -> None:
    cluster.place()
    cluster.serve()
    picture = picture_of(cluster)
    decide(picture, cluster)
    assert dict(picture.fleet.assignments) == {}

    picture.draw_anew(cluster.now)
    assert list(picture.fleet.assignments.values()) == cluster.assigned()


def test_what_was_learnt_outlasts_an_interruption(cluster: Cluster) -> None:
    picture = picture_of(cluster)
    picture.fleet.learnt.note_process("f.ns", "n", rung=0, seconds=0.125)

    picture.draw_anew(cluster.now)
    rows = np.zeros(picture.fleet.rows.size, dtype=np.int64)
    assert picture.fleet.learnt.process_seconds("f.ns", rows).tolist() == [0.125]
