"""A small deterministic event kernel that runs a program on costs.

The model:
1. A rank runs its instructions in order. Sending and posting a receive take no time on the rank.
2. A compute op starts when the rank is free and its messages have arrived, and takes its seconds divided
   by the device's speed.
3. A message is ready when its send and its receive are posted, and starts when the directed link is free.
   Messages between the same two ranks share that link, first ready first served. It arrives
   bytes/bandwidth + latency later.
4. A rank that stands still for a message waits for its sender until the message is ready; the rest, a busy
   link included, is transfer.
5. An overlapped pair starts when the messages of both its ops have arrived. What it takes is split between its ops in
   proportion to what they take alone, so that a rank's spans never overlap.
6. OFFLOAD and RELOAD take no time on the rank, nor HOST and RETURN on the one that keeps its activations. A rank's
   copies run one after another, each on the link to or from its keeper. F waits for the offloads before it, whose
   memory it uses; B and I wait for their reload.
7. The optimizer step of a stage that several ranks hold starts when all of them have reduced what it applies.
"""

from __future__ import annotations

import heapq
from collections import defaultdict, deque
from operator import itemgetter

from penstock.cluster import Cluster
from penstock.costs import StageCosts
from penstock.errors import UserError, VerificationError, check_type
from penstock.ir.collector import collector_paused
from penstock.ir.dependencies import CONSUMES, MESSAGE, Key, produced
from penstock.ir.ops import COMPUTE, GUESTS, RECEIVES, Channel, Op, OpKind, Transfer
from penstock.ir.program import Program
from penstock.ir.schedule import Schedule
from penstock.ir.steps import awaited_gradients, contributed, useful_products
from penstock.lowering import lower
from penstock.simulator.durations import durations
from penstock.simulator.links import Lane, Wire
from penstock.simulator.memory import memory_curves
from penstock.timeline import Span, Timeline, Transmission, Wait


@collector_paused
def simulate(subject: Schedule | Program, costs: StageCosts, cluster: Cluster | None = None) -> Timeline:
    """Returns when everything runs if every op takes its stated time.

    Args:
        subject: a program, or a schedule, which is lowered first.
        costs: seconds and bytes per stage and microbatch.
        cluster: devices and links; None means that messages take no time.

    Raises:
        UserError: costs or a cluster of another size than the schedule.
        VerificationError: the program cannot run to its end; `penstock.verify` shows why. What that proves
            beyond (every op once, matching messages) is not looked at here.
    """
    check_type("subject", subject, Schedule, Program, example="e.g. penstock.gpipe(4, 8)")
    check_type("costs", costs, StageCosts, example="e.g. penstock.StageCosts(forward=1, input_grad=1, weight_grad=1)")
    program = lower(subject) if isinstance(subject, Schedule) else subject
    cluster = Cluster.uniform(program.num_ranks) if cluster is None else cluster
    check_type("cluster", cluster, Cluster, example=f"e.g. penstock.Cluster.uniform({program.num_ranks})")
    if len(cluster.devices) != program.num_ranks:
        raise UserError(
            f"the cluster has {len(cluster.devices)} devices for {program.num_ranks} ranks; give one a rank"
        )
    return _Run(program, costs, cluster).timeline()


_COPIES = frozenset({OpKind.OFFLOAD, OpKind.RELOAD})
_TAKEN_BY = {OpKind.RECV_F: OpKind.F, OpKind.RECV_B: OpKind.B}


_Message = tuple[float, Channel, int, Transfer | Op]
"""When a message may start, then channel and number, by which ties are served, and what takes it."""

_Arrival = tuple[float, Transmission]
"""When a message was ready, and how it travelled."""

_rank_and_start_of = itemgetter(Wait._fields.index("rank"), Wait._fields.index("start"))


class _Run:
    def __init__(self, program: Program, costs: StageCosts, cluster: Cluster) -> None:
        schedule = program.schedule
        self.program, self.costs, self.cluster = program, costs, cluster
        self.seconds = costs.seconds(schedule.num_stages)
        self.bytes = costs.per_stage("boundary_bytes", schedule.num_stages)
        self.copied_bytes = costs.per_stage("activation_bytes", schedule.num_stages)
        self.pairs = program.pairs
        self.saved = costs.overlap_saves(schedule.num_stages)
        self.keepers = schedule.keepers or range(program.num_ranks)
        self.at = [0] * program.num_ranks
        self.clock: list[float] = [0] * program.num_ranks
        self.num_stages = schedule.num_stages
        self.speeds = [device.speed for device in cluster.devices]
        self.made_by = useful_products(schedule)
        self.lanes: dict[Channel, Lane] = defaultdict(Lane)
        self.wires: dict[tuple[int, int], Wire] = {}
        self.arrived: dict[Key, _Arrival] = {}
        self.posted: list[set[Key]] = [set() for _ in range(program.num_ranks)]
        self.made: list[set[Key]] = [set() for _ in range(program.num_ranks)]
        self.blocked_by: list[Key | None] = [None] * program.num_ranks
        self.awaited = awaited_gradients(schedule)
        for step, values in self.awaited.items():
            self.posted[schedule.placement.rank_of(step.stage, step.replica)].update(values)
        self.copies: list[deque[tuple[float, Op]]] = [deque() for _ in range(program.num_ranks)]
        self.leaving: list[list[Key]] = [[] for _ in range(program.num_ranks)]
        self.ready: list[_Message] = []
        self.spans: list[list[Span]] = [[] for _ in range(program.num_ranks)]
        self.waits: list[Wait] = []
        self.transmissions: list[Transmission] = []

    def timeline(self) -> Timeline:
        for rank in range(self.program.num_ranks):
            self.advance(rank)
        while self.ready:
            rank, value = self.transmit(heapq.heappop(self.ready))
            if self.blocked_by[rank] == value:
                self.advance(rank)
        if any(at < len(entries) for at, entries in zip(self.at, self.program.ranks, strict=True)):
            name = self.program.schedule.name
            raise VerificationError(f"{name} cannot run to its end; penstock.verify shows why")
        spans = tuple(span for row in self.spans for span in row)
        return Timeline(
            self.program.num_ranks,
            spans,
            tuple(sorted(self.waits, key=_rank_and_start_of)),
            tuple(self.transmissions),
            memory_curves(self.program, self.costs, self.spans, self.transmissions),
        )

    def advance(self, rank: int) -> None:
        """Runs `rank`, and the ranks whose steps wait for its reductions, until they need what is not there yet."""
        awake = [rank]
        while awake:
            rank = awake.pop()
            before = self.at[rank]
            self.run_on(rank)
            for entry in self.program.ranks[rank][before : self.at[rank]] if self.awaited else ():
                if entry.kind == OpKind.REDUCE_GRAD:
                    awake.extend(set(self.program.schedule.placement.owners(entry.stage)) - {rank})

    def run_on(self, rank: int) -> None:
        """Runs `rank` until it needs a message that has not arrived."""
        entries, pairs = self.program.ranks[rank], self.pairs[rank]
        at = self.at[rank]
        while at < len(entries):
            entry = entries[at]
            done = 1
            if isinstance(entry, Transfer):
                self.post(rank, entry)
            elif entry[0] in _COPIES:
                self.copy(rank, entry)
            elif entry[0] in GUESTS:
                pass  # rule 6
            else:
                done = self.compute(rank, self.together(rank, at) if at in pairs else (entry,))
                if not done:
                    break
            at += done
        self.at[rank] = at

    def post(self, rank: int, entry: Transfer) -> None:
        """Posts one end of a message; once both ends are there it is ready to start."""
        kind, stage, microbatch, replica, channel = entry
        lane = self.lanes[channel]
        if kind in RECEIVES:
            lane.receives.append((self.clock[rank], entry))
            value, offset = MESSAGE[kind]
            self.posted[rank].add((value, stage + offset, microbatch, replica))
        else:
            lane.sends.append(self.clock[rank])
        if lane.sends and lane.receives:
            posted, receive = lane.receives.popleft()
            ready = max(lane.sends.popleft(), posted)
            heapq.heappush(self.ready, (ready, channel, lane.matched, receive))
            lane.matched += 1

    def transmit(self, message: _Message) -> tuple[int, Key]:
        """Lets a ready message or copy travel; returns the rank that may wait for it, and what arrives."""
        ready, channel, _, taker = message
        source, target, _ = channel
        wire = self.wires.get((source, target))
        if wire is None:
            wire = self.wires[source, target] = Wire(self.cluster.link(source, target))
        value: Key
        if isinstance(taker, Transfer):
            kind, stage, microbatch, replica, _ = taker
            made, offset = MESSAGE[kind]
            value = (made, stage + offset, microbatch, replica)
            op, num_bytes = Op(_TAKEN_BY[kind], stage, microbatch, replica), self.bytes[min(stage + offset, stage)]
        else:
            value, op, num_bytes = produced(taker)[0], taker, self.copied_bytes[taker.stage]
        start = max(ready, wire.free)
        wire.free = start + wire.link.busy_seconds(num_bytes)
        transmission = Transmission(channel, op, start, wire.free + wire.link.latency_seconds)
        self.arrived[value] = (ready, transmission)
        self.transmissions.append(transmission)
        if isinstance(taker, Transfer):
            return target, value
        rank = source if op.kind == OpKind.OFFLOAD else target
        self.copies[rank].popleft()
        self.start_copy(rank, transmission.end)
        return rank, value

    def copy(self, rank: int, op: Op) -> None:
        """Queues an OFFLOAD or RELOAD behind the rank's copies."""
        (value,) = produced(op)
        self.posted[rank].add(value)
        if op.kind == OpKind.OFFLOAD:
            self.leaving[rank].append(value)
        self.copies[rank].append((self.clock[rank], op))
        if len(self.copies[rank]) == 1:
            self.start_copy(rank, self.clock[rank])

    def start_copy(self, rank: int, free: float) -> None:
        """Makes the next copy of `rank`, if there is one, ready to start at `free` or when it was issued."""
        if not self.copies[rank]:
            return
        issued, op = self.copies[rank][0]
        away = op.kind == OpKind.OFFLOAD
        ends = (rank, self.keepers[rank]) if away else (self.keepers[rank], rank)
        channel = Channel(*ends, op.kind)
        lane = self.lanes[channel]
        heapq.heappush(self.ready, (max(issued, free), channel, lane.matched, op))
        lane.matched += 1

    def compute(self, rank: int, ops: tuple[Op, ...]) -> int:
        """Runs an op, or a pair, once its messages have arrived and its rank has made the rest.

        Returns how many ops ran: 0 where something is not there yet.
        """
        clock = start = self.clock[rank]
        posted, made = self.posted[rank], self.made[rank]
        last: tuple[Op, _Arrival] | None = None
        for op in ops:
            for value in self.needs(rank, op):
                arrival = None
                if value in posted:
                    arrival = self.arrived.get(value)
                elif value in made:
                    continue
                if arrival is None:
                    self.blocked_by[rank] = value
                    return 0
                end = arrival[1].end
                if end > start:
                    start, last = end, (op, arrival)
        if last is not None:
            self.wait(rank, last, clock, start)
        self.run(rank, ops, start)
        return len(ops)

    def together(self, rank: int, at: int) -> tuple[Op, ...]:
        """Returns the pair that starts at position `at`; one op where the program ends there."""
        return tuple(op for op in self.program.ranks[rank][at : at + 2] if isinstance(op, Op))

    def needs(self, rank: int, op: Op) -> list[Key]:
        kind, stage, microbatch, replica = op
        needs: list[Key] = []
        for value, offset in CONSUMES[kind] if kind in COMPUTE else ():
            maker = stage + offset
            if 0 <= maker < self.num_stages:
                needs.append((value, maker, microbatch, replica))
        if self.awaited:
            needs.extend(self.awaited.get(op, ()))
        if self.leaving[rank] and kind == OpKind.F:
            needs.extend(self.leaving[rank])
        return needs

    def wait(self, rank: int, last: tuple[Op, _Arrival], clock: float, start: float) -> None:
        op, arrival = last
        ready, transmission = arrival
        source, target, _ = transmission.channel
        self.waits.append(Wait(rank, op, clock, start, target if source == rank else source, ready))

    def run(self, rank: int, ops: tuple[Op, ...], start: float) -> None:
        speed, made, spans = self.speeds[rank], self.made[rank], self.spans[rank]
        for op, seconds in zip(ops, self.taken(ops), strict=True):
            kind, stage, microbatch, replica = op
            end = start + (seconds if speed == 1 else seconds / speed)
            spans.append(Span(rank, op, start, end))
            for value in self.made_by[kind]:
                made.add((value, stage, microbatch, replica))
            if self.leaving[rank] and kind == OpKind.F:
                self.leaving[rank].clear()
            if self.awaited and kind == OpKind.REDUCE_GRAD:
                given = Transmission(Channel(rank, rank, kind), op, end, end)
                self.arrived[contributed(op)] = (end, given)
            start = end
        self.clock[rank] = start

    def taken(self, ops: tuple[Op, ...]) -> tuple[float, ...]:
        """Returns the seconds of each op on a device of speed 1."""
        if len(ops) > 1:
            return durations(ops, self.seconds, saved=self.saved)
        kind, stage, *_ = ops[0]
        return (self.seconds[kind][stage] if kind in self.seconds else 0,)
