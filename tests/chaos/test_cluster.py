"""Faults of a cluster on a real ensemble: short in every run, long and by many seeds with --full.

What ZooKeeper wrote down is judged after each (harness.judge); no client is taken at its word.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from harness import web
from harness.hand_cluster import HandCluster
from harness.load import Load, Stream
from harness.stack import wait_until
from stoker.placement.records import FunctionDemand, PlaceRequest, encode
from stoker.placement.zookeeper_store import SESSION_SECONDS

COLD = ("cold0", "cold1", "cold2")
Rounds = Callable[[int, int], int]

pytestmark = pytest.mark.timeout(3600)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HandCluster]:
    made = HandCluster(tmp_path_factory.mktemp("cluster"))
    try:
        made.start()
        for name in ("warm", "stream"):
            made.deploy(name, name, **{"com.openfaas.scale.min": "2"})
        for name in COLD:
            made.deploy(name, "warm", **{"com.openfaas.scale.max": "1"})
        yield made
    finally:
        made.stop()


@pytest.fixture(autouse=True)
def _settled(cluster: HandCluster) -> Iterator[None]:
    """Each fault meets a cluster that is whole; nothing that was written by its end is amiss."""
    settle(cluster)
    yield
    assert cluster.verdict().violations == []


def settle(cluster: HandCluster) -> None:
    """Wait until both gateways know of both nodes and of two instances of what takes the load."""

    def whole(gateway: int) -> bool:
        listed = cluster.system("GET", "/system/nodes", gateway=gateway).json()
        serving = [
            [i["state"] for i in cluster.instances(name, gateway)] for name in ("warm", "stream")
        ]
        return len(listed) == 2 and serving == [["serving"] * 2] * 2

    wait_until(lambda: whole(0) and whole(1), "the cluster is whole", 60)


def node_of(cluster: HandCluster, function: str) -> int:
    """A node on which it serves."""
    return int(cluster.instances(function)[0]["node_id"].removeprefix("node"))


def urls(cluster: HandCluster, function: str) -> list[str]:
    return [f"{cluster.url(gateway)}/function/{function}" for gateway in range(2)]


def all_at_zero(cluster: HandCluster, known_to: Sequence[int] = (0, 1)) -> None:
    for name in COLD:
        cluster.scale_to_zero(name, known_to)


def call_all(cluster: HandCluster, threads: ThreadPoolExecutor) -> Callable[[], list[int]]:
    """Call every cold function at once; the statuses."""
    pending = [
        threads.submit(cluster.call, name, b"", number % 2) for number, name in enumerate(COLD)
    ]
    return lambda: [each.result().status for each in pending]


def say(sentence: str) -> None:
    print(f"\n{sentence}")  # shown by -rP


def test_after_kill_9_of_the_leader_under_load_another_decides_and_goes_on_with_what_was_begun(
    cluster: HandCluster, rounds: Rounds
) -> None:
    elected: list[float] = []
    warm: list[float] = []
    for seed in range(rounds(1, 20)):
        all_at_zero(cluster)
        leader, before = cluster.leading(), cluster.leader()
        assert before is not None
        with ThreadPoolExecutor() as threads, Load(urls(cluster, "warm")) as load:
            statuses = call_all(cluster, threads)
            time.sleep(random.Random(seed).uniform(0.0, 0.4))
            leader.kill()
            elected.append(cluster.wait_for_leader(before.epoch)[1])
            assert statuses() == [200, 200, 200], f"seed {seed}"
        leader.start()
        assert load.failed == [], f"seed {seed}"
        warm.append(load.percentile_seconds(99))
    verdict = cluster.verdict()
    assert verdict.violations == []
    assert max(elected) <= SESSION_SECONDS + 2
    say(
        f"kill -9 of the leader, {len(elected)} times: a new leader after at most "
        f"{max(elected):.2f} s, warm p99 {max(warm) * 1000:.0f} ms, "
        f"{len(verdict.ordered)} orders, {verdict.fenced_writes} fenced writes, 0 violations"
    )


@pytest.mark.parametrize("how", ["stopped", "cut off"])
def test_a_leader_whose_session_ended_writes_nothing_when_it_goes_on(
    cluster: HandCluster, rounds: Rounds, how: str
) -> None:
    asked = 0
    for seed in range(rounds(1, 10)):
        all_at_zero(cluster)
        leader, before = cluster.leading(), cluster.leader()
        assert before is not None
        url = f"http://{before.address}/place"
        with ThreadPoolExecutor(32) as threads, Load(urls(cluster, "warm")) as load:
            leader.suspend() if how == "stopped" else leader.cut()
            if how == "cut off":
                time.sleep(0.3)
                begun_at = time.monotonic()
                assert place(url, cluster.token, COLD[0]) == 503
                assert time.monotonic() - begun_at < 0.1
            after, seconds = cluster.wait_for_leader(before.epoch)
            assert seconds <= SESSION_SECONDS + 2
            statuses = call_all(cluster, threads)()
            all_at_zero(cluster)
            time.sleep(random.Random(seed).uniform(0.0, 1.0))
            # If it was stopped, they are what it finds first, before it hears from ZooKeeper.
            late = [threads.submit(place, url, cluster.token, COLD[n % 3]) for n in range(18)]
            time.sleep(0.2)
            leader.resume() if how == "stopped" else leader.restore()
            refused = [each.result() for each in late]
        assert set(refused) <= {503}, f"seed {seed}: {refused}"
        assert statuses == [200, 200, 200], f"seed {seed}"
        assert load.failed == [], f"seed {seed}"
        assert cluster.leader() == after
        asked += len(refused)
    verdict = cluster.verdict()
    assert verdict.violations == []
    say(
        f"leader {how} past its session: {asked} demands on it, 0 of {verdict.fenced_writes} "
        "writes of an old epoch"
    )


def place(url: str, token: str, function: str) -> int:
    """Ask this placement process itself where to start the function; the status."""
    demand = FunctionDemand(0, 1, 0.0)
    request = encode(PlaceRequest("nobody", f"{function}.openfaas-fn", demand))
    headers = web.signed(token, "POST", url, request)
    return web.call("POST", url, request, headers).status


@pytest.mark.parametrize("how", ["cut off", "stopped"])
def test_a_node_whose_session_expired_is_back_at_once_and_drops_no_stream(
    cluster: HandCluster, rounds: Rounds, how: str
) -> None:
    back: list[float] = []
    lines = rounds(100, 500)  # ten a second: with all, longer than a drain lasts
    for seed in range(rounds(1, 5)):
        settle(cluster)
        node = cluster.nodes[node_of(cluster, "stream")]
        assert cluster.store is not None
        store, path = cluster.store, f"/nodes/{node.name}"
        with Load(urls(cluster, "warm")) as load:
            streams = [Stream(url, lines) for url in urls(cluster, "stream") * 2]
            wait_until(lambda: all(s.lines for s in streams), "the streams began")  # noqa: B023
            node.cut() if how == "cut off" else node.suspend()
            wait_until(lambda: not store.get(path), "it is gone", SESSION_SECONDS + 3)  # noqa: B023
            time.sleep(random.Random(seed).uniform(0.0, 1.0))
            restored_at = time.monotonic()
            node.restore() if how == "cut off" else node.resume()
            wait_until(lambda: store.get(path), "the node is back", 10)  # noqa: B023
            back.append(time.monotonic() - restored_at)
            for stream in streams:
                stream.join(120)
        assert [s.error or len(s.lines) for s in streams if not s.complete] == []
        assert load.failed == []
    assert max(back) <= 2.0
    say(f"session of a node {how}: back after at most {max(back):.2f} s, 0 streams dropped")


def test_with_all_of_zookeeper_down_warm_calls_go_on_and_cold_ones_are_refused_at_once(
    cluster: HandCluster, rounds: Rounds
) -> None:
    for _ in range(rounds(1, 3)):
        all_at_zero(cluster)
        refused: list[float] = []
        with Load(urls(cluster, "warm")) as load:
            cluster.ensemble.kill()
            end = time.monotonic() + rounds(6, 60)
            while time.monotonic() < end:
                begun_at = time.monotonic()
                answer = cluster.call(COLD[len(refused) % 3], gateway=len(refused) % 2)
                refused.append(time.monotonic() - begun_at)
                assert answer.json()["error"]["code"] == "coordination_unavailable"
                assert (answer.status, "retry-after" in answer.headers) == (503, True)
                time.sleep(0.2)
            cluster.ensemble.start()
            returned_at = time.monotonic()
            wait_until(
                lambda: {cluster.call("cold0", gateway=g).status for g in (0, 1)} == {200},
                "cold calls succeed again",
            )
            normal = time.monotonic() - returned_at
        assert load.failed == []
        at_once = sum(seconds <= 0.1 for seconds in refused) / len(refused)
        # A neighbour on the machine may take the processor away for once.
        assert at_once >= 0.95
        assert normal <= 10.0
        say(
            f"ZooKeeper down: {len(load.calls)} warm calls, all answered; {len(refused)} cold ones "
            f"refused, {at_once:.1%} within 100 ms and all within {max(refused) * 1000:.0f} ms; "
            f"normal {normal:.1f} s after its return"
        )


def test_a_node_whose_link_is_down_is_replaced_and_comes_back(
    cluster: HandCluster, rounds: Rounds
) -> None:
    if cluster.namespaces is None:
        pytest.skip(cluster.loopback)
    for _ in range(rounds(1, 5)):
        settle(cluster)
        number = node_of(cluster, "warm")
        other = f"node{1 - number}"
        cluster.namespaces.unplug(number)
        wait_until(
            lambda: [i["node_id"] for i in cluster.instances("warm")] == [other] * 2,  # noqa: B023
            "the other node runs what is due",
            SESSION_SECONDS + 15,
        )
        answers = [cluster.call("warm", gateway=n % 2).status for n in range(20)]
        cluster.namespaces.plug_in(number)
        assert answers == [200] * 20


def test_no_secret_is_in_a_log_or_a_list_of_processes(cluster: HandCluster) -> None:
    lists = [
        (path / file).read_bytes()
        for path in Path("/proc").iterdir()
        if path.name.isdigit()
        for file in ("cmdline",)
        if (path / file).exists()
    ]
    logs = [process.log.read_bytes() for process in cluster.processes]
    assert all(logs)
    assert cluster.store is not None
    shown = [secret.partition(":")[2] for _, secret in cluster.store._client.auth_data]
    for secret in (cluster.token, cluster.password, *shown):
        assert not any(secret.encode() in text for text in (*lists, *logs))


def test_a_gateway_that_is_cut_off_from_zookeeper_alone_serves_on(
    cluster: HandCluster, rounds: Rounds
) -> None:
    for _ in range(rounds(1, 5)):
        assert cluster.call("cold0", gateway=1).status == 200
        with Load(urls(cluster, "warm"), per_second=rounds(40, 80)) as load:
            cluster.gateways[1].cut()
            time.sleep(0.5)
            # It still believes in instances that are gone, and has never heard of others.
            all_at_zero(cluster, known_to=(0,))
            assert [cluster.call(name, gateway=1).status for name in COLD] == [200, 200, 200]
            time.sleep(rounds(3, 30))
            cluster.gateways[1].restore()
            time.sleep(1)
        cut_off = [call for call in load.calls if call.url.startswith(cluster.url(1))]
        answered = sum(call.status == 200 for call in cut_off) / len(cut_off)
        assert answered >= 0.999
        say(
            f"a gateway cut off from ZooKeeper: {answered:.2%} of {len(cut_off)} warm calls "
            "answered"
        )


def test_a_clock_that_is_moved_by_an_hour_ends_nothing(
    cluster: HandCluster, rounds: Rounds
) -> None:
    before, began_at = cluster.verdict(), time.time()
    with Load(urls(cluster, "warm")) as load:
        for process in (cluster.leading(), cluster.nodes[0], cluster.gateways[0]):
            for seconds in (3600.0, -3600.0):
                process.shift_clock(seconds)
                time.sleep(rounds(1, 20))
            process.shift_clock(0.0)
        after = cluster.verdict()
        assert [e for e in after.elections if e not in before.elections] == []
        assert [o for at, o in after.revoked if at > began_at] == []
        assert after.registered == before.registered

        for seconds in (3600.0, -3600.0)[: rounds(1, 2)]:
            take_over_by_clock(cluster, seconds)
    assert load.failed == []
    say(f"clocks moved by an hour: {len(load.calls)} warm calls, all answered, nothing ended")


def take_over_by_clock(cluster: HandCluster, seconds: float) -> None:
    """The leader dies, and who takes over lives in another hour."""
    leader, before = cluster.leading(), cluster.leader()
    assert before is not None
    for standby in (p for p in cluster.placements if p is not leader):
        standby.shift_clock(seconds)
        standby.stop()
        standby.start()
    wait_until(lambda: all(answers(p.arguments[-1]) for p in cluster.placements), "they stand by")
    revoked = len(cluster.verdict().revoked)
    leader.kill()
    cluster.wait_for_leader(before.epoch)
    time.sleep(2.5)  # two rounds of the new leader's decisions
    assert cluster.verdict().revoked[revoked:] == []
    for process in cluster.placements:
        process.shift_clock(0.0)
    leader.start()


def answers(address: str) -> bool:
    try:
        return web.call("GET", f"http://{address}/healthz").status == 200
    except OSError:
        return False
