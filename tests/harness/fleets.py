"""Random small clusters, and what the planner does with columns, done node by node instead."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hypothesis import strategies as st

from harness.plans import GB, NOW, assignment, function, instance, node
from stoker.placement.choice import Ask, _Choice, _drawn
from stoker.placement.estimate import (
    CONTROL_SECONDS,
    PEER_BANDWIDTH_DEFAULT,
    PREFILL_SECONDS,
    PROCESS_SECONDS,
    ZYGOTE_SECONDS,
    pool_bytes,
)
from stoker.placement.fleet import Fleet, Placed, Work
from stoker.placement.placing import EVERY_ABILITY, Placing
from stoker.placement.records import (
    Assignment,
    CheckpointRef,
    DeviceNeed,
    FunctionRecord,
    NodeRecord,
    Record,
    ResidentRecord,
)

SMALL = CheckpointRef("s3://b/small", "a" * 64, GB, packed=True)
LARGE = CheckpointRef("s3://b/large", "b" * 64, 3 * GB, packed=True)
FUNCTIONS = [
    function("code"),
    function("small", SMALL),
    function("large", LARGE, priority=1),
    function("gpu", SMALL, devices=(DeviceNeed("h100", 1), DeviceNeed("a100", 2))),
    function("wide", LARGE, devices=(DeviceNeed("h100", 2),), slo_ttft_seconds=9.0),
    function("either", LARGE, devices=(DeviceNeed("h100", 1), DeviceNeed("cpu", 1))),
]


@dataclass(frozen=True)
class Case:
    """A cluster as records, and what its instances are busy with."""

    nodes: list[NodeRecord]
    residents: list[ResidentRecord]
    running: list[tuple[Assignment, bool]]
    work: dict[str, Work]

    def records(self) -> list[Record]:
        instances = [instance(made) for made, serving in self.running if serving]
        assignments = [made for made, _ in self.running]
        return [*FUNCTIONS, *self.nodes, *self.residents, *instances, *assignments]

    def fleet(self, records: list[Record] | None = None) -> Fleet:
        fleet = Fleet(self.records() if records is None else records, NOW)
        for owner in FUNCTIONS:
            fleet.note_spare(owner.key, given_seconds(owner.key))
        for instance_id, work in self.work.items():
            fleet.note_work(instance_id, work)
        return fleet


@st.composite
def cases(draw: st.DrawFn) -> Case:
    speeds = st.sampled_from([0.25 * GB, 0.5 * GB, 1.0 * GB])
    nodes = [
        node(
            node_id,
            sockets=draw(st.integers(0, 3)),
            instances_maximum=draw(st.integers(0, 4)),
            dram_bytes=draw(st.sampled_from([0, int(1.1 * GB), 8 * GB])),
            ssd_bandwidth=draw(speeds),
            remote_bandwidth=draw(speeds),
            peer_bandwidth=draw(st.sampled_from([0.0, 0.5 * GB, 2.0 * GB])),
            device_kind=draw(st.sampled_from(["cpu", "h100", "a100"])),
            device_count=draw(st.integers(0, 3)),
            device_bytes=draw(st.sampled_from([0, GB // 2, 4 * GB])),
            device_bandwidth=draw(st.sampled_from([0.0, 4.0 * GB])),
            zone=draw(st.sampled_from(["", "x", "y"])),
            zygote_ready=draw(st.booleans()),
            init_seconds=draw(st.sampled_from([0.0, 0.2])),
        )
        for node_id in "abcd"[: draw(st.integers(1, 4))]
    ]
    residents = [
        ResidentRecord(on.node_id, ref.digest, draw(bytes_of(ref)), draw(bytes_of(ref)))
        for on in nodes
        for ref in (SMALL, LARGE)
        if draw(st.booleans())
    ]
    running, work = [], {}
    for number in range(draw(st.integers(0, 6))):
        owner, on = draw(st.sampled_from(FUNCTIONS)), draw(st.sampled_from(nodes))
        made = assignment(f"1-{number}", owner, on.node_id, created_at=NOW - number)
        taken = {device for a, _ in running if a.node_id == on.node_id for device in a.devices}
        left = [n for n in range(on.device_count) if n not in taken]
        wanted = max((n.count for n in owner.devices if n.kind == on.device_kind), default=0)
        made = replace(made, devices=tuple(left[:wanted]))
        running.append((made, draw(st.booleans())))
        if draw(st.booleans()):
            ends_at = NOW + draw(st.sampled_from([0.5, 2.0, 30.0]))
            resumable = draw(st.booleans())
            work[made.instance_id] = Work(draw(st.integers(1, 900)), ends_at, resumable)
    return Case(nodes, residents, running, work)


def bytes_of(ref: CheckpointRef) -> st.SearchStrategy[int]:
    return st.sampled_from([0, ref.weight_bytes // 2, ref.weight_bytes])


def given(placed: Placed) -> tuple[float, tuple[float, ...]]:
    """Every idle instance may go; what that costs follows from its function's name."""
    number = int(placed.instance_id[2:])
    return given_seconds(placed.assignment.function), (float(number % 3), -float(number))


def given_seconds(function_key: str) -> float:
    return 0.25 * (len(function_key) % 4)


def start_seconds(case: Case, owner: FunctionRecord, on: NodeRecord) -> float:
    """The overlapped estimate of one start on one node, with peers, worked out from records."""
    process = (on.init_seconds or PROCESS_SECONDS) + (0.0 if on.zygote_ready else ZYGOTE_SECONDS)
    own = owner.checkpoint
    if own is None:
        return CONTROL_SECONDS + process
    held = {(r.node_id, r.digest): (r.dram_bytes, r.ssd_bytes) for r in case.residents}

    def missing(ref: CheckpointRef) -> tuple[int, int]:
        dram, ssd = held.get((on.node_id, ref.digest), (0, 0))
        from_ssd = max(0, ssd - dram)
        return from_ssd, ref.weight_bytes - dram - from_ssd

    owners = {f.key: f for f in FUNCTIONS}
    loads = [
        owners[made.function].checkpoint
        for made, serving in case.running
        if made.node_id == on.node_id and not serving
    ]
    known = [ref for ref in loads if ref is not None]
    others = {ref.digest: ref for ref in known if ref.digest != own.digest}.values()
    ssd_wait = sum(missing(ref)[0] for ref in others) / on.ssd_bandwidth
    net_wait = sum(missing(ref)[1] for ref in others) / on.remote_bandwidth
    from_ssd, afar = missing(own)
    net = net_wait + afar / on.remote_bandwidth
    if own.digest not in {ref.digest for ref in known}:
        for peer in case.nodes:
            dram, ssd = held.get((peer.node_id, own.digest), (0, 0))
            if peer is on or max(dram, ssd) < own.weight_bytes:
                continue
            rates = [n.peer_bandwidth or PEER_BANDWIDTH_DEFAULT for n in (on, peer)]
            if dram < own.weight_bytes:
                rates.append(peer.ssd_bandwidth)
            net = min(net, net_wait + afar / min(rates))
    device = 0.0
    if on.device_bandwidth:
        device = sum(r.weight_bytes for r in [*known, own]) / on.device_bandwidth
    stages = [process, device]
    stages += [ssd_wait + from_ssd / on.ssd_bandwidth] if from_ssd else []
    stages += [net] if afar else []
    return CONTROL_SECONDS + max(stages) + PREFILL_SECONDS


def has_room(case: Case, owner: FunctionRecord, on: NodeRecord) -> bool:
    """Whether one more instance fits on the node as it is."""
    here = [made for made, _ in case.running if made.node_id == on.node_id]
    owners = {f.key: f for f in FUNCTIONS}
    used = {a.address for a in here}
    pinned = {ref.digest: ref for a in here if (ref := owners[a.function].checkpoint)}
    if owner.checkpoint is not None:
        pinned[owner.checkpoint.digest] = owner.checkpoint
        if sum(map(pool_bytes, pinned.values())) > on.dram_bytes:
            return False
    needed = devices_of(owner, on)
    free_devices = on.device_count - sum(len(a.devices) for a in here)
    return (
        needed is not None
        and needed <= free_devices
        and len(here) < on.instances_maximum
        and any(address not in used for address in on.spare_addresses)
    )


def devices_of(owner: FunctionRecord, on: NodeRecord) -> int | None:
    """How many of the node's devices an instance takes; None where it cannot run."""
    if not owner.devices:
        return 0
    on_cpu = 0 if any(need.kind == "cpu" for need in owner.devices) else None
    for need in owner.devices:
        if need.kind == on.device_kind and need.kind != "cpu":
            weight_bytes = owner.checkpoint.weight_bytes if owner.checkpoint else 0
            fits = not on.device_bytes or weight_bytes // need.count <= on.device_bytes
            return need.count if need.count <= on.device_count and fits else on_cpu
    return on_cpu


def exhaustive(fleet: Fleet, ask: Ask, placing: Placing) -> tuple[str, float] | None:
    """(node, cost) of the best way to start, with the room of every node worked out in full."""
    choice = _Choice(fleet, ask, NOW, placing, EVERY_ABILITY, given)
    survey, predicted, rows = choice._survey, choice._forecast, fleet.rows
    ways = []
    for row in range(rows.size):
        room = None
        if not survey.free[row]:
            if not (survey.able[row] and rows.spares[row] > 0 and ask.waited):
                continue
            room = choice._room(row)
            if room is None:
                continue
        cost = float(predicted.after(room.seconds if room else 0.0, row))
        cost += room.loss_seconds if room else 0.0
        ways.append((row, cost, room is not None))
    if not ways:
        return None
    avoided = {row for row, _, _ in ways if rows.ids[row] in ask.avoid}
    drawn = _drawn(rows.rank[: rows.size], ask.number)

    def rank(way: tuple[int, float, bool]) -> tuple[object, ...]:
        row, cost, makes_room = way
        first: tuple[object, ...] = ()
        match placing.order:
            case "random":
                first = makes_room, int(drawn[row])
            case "room":
                free = -int(rows.devices_free[row]), int(rows.slots_used[row])
                first = makes_room, *free, int(drawn[row])
            case "tier":
                first = (int(predicted.tier[row]),)
        last = cost, makes_room, int(rows.slots_used[row]), rows.ids[row]
        return row in avoided, *first, *last

    row, cost, _ = min(ways, key=rank)
    return rows.ids[row], cost
