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
6. OFFLOAD and RELOAD take no time on the rank. Its copies run one after another, each on the link to or from the rank
   that keeps them. F waits for the offloads before it, whose memory it uses; B and I wait for their reload.
7. The optimizer step of a stage that several ranks hold starts when all of them have reduced what it applies.
"""

from __future__ import annotations

import heapq
from collections import defaultdict, deque
from typing import NamedTuple

from penstock.cluster import Cluster
from penstock.costs import StageCosts
from penstock.errors import UserError, VerificationError
from penstock.ir.dependencies import Value, carried, consumed, produced
from penstock.ir.ops import COMPUTE, RECEIVES, Channel, Op, OpKind, Transfer
from penstock.ir.program import Program
from penstock.ir.schedule import Schedule
from penstock.ir.steps import awaited_gradients, contributed
from penstock.lowering import lower
from penstock.simulator.durations import durations
from penstock.simulator.memory import memory_curves
from penstock.timeline import Span, Timeline, Transmission, Wait


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
    program = lower(subject) if isinstance(subject, Schedule) else subject
    cluster = cluster or Cluster.uniform(program.num_ranks)
    if len(cluster.devices) != program.num_ranks:
        raise UserError(
            f"the cluster has {len(cluster.devices)} devices for {program.num_ranks} ranks; give one a rank"
        )
    return _Run(program, costs, cluster).timeline()


_COPIES = frozenset({OpKind.OFFLOAD, OpKind.RELOAD})
_TAKEN_BY = {OpKind.RECV_F: OpKind.F, OpKind.RECV_B: OpKind.B}


class _Message(NamedTuple):
    """A message that may start at `ready`; ties are served by channel, and in order on each."""

    ready: float
    channel: Channel
    number: int
    taker: Transfer | Op


class _Arrival(NamedTuple):
    ready: float
    transmission: Transmission


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
        self.unmatched_sends: dict[Channel, deque[float]] = defaultdict(deque)
        self.unmatched_receives: dict[Channel, deque[tuple[float, Transfer]]] = defaultdict(deque)
        self.link_free: dict[tuple[int, int], float] = defaultdict(int)
        self.matched: dict[Channel, int] = defaultdict(int)
        self.arrived: dict[Value, _Arrival] = {}
        self.posted: list[set[Value]] = [set() for _ in range(program.num_ranks)]
        self.made: list[set[Value]] = [set() for _ in range(program.num_ranks)]
        self.awaited = awaited_gradients(schedule)
        for step, values in self.awaited.items():
            self.posted[schedule.placement.rank_of(step.stage, step.replica)].update(values)
        self.copies: list[deque[tuple[float, Op]]] = [deque() for _ in range(program.num_ranks)]
        self.leaving: list[list[Value]] = [[] for _ in range(program.num_ranks)]
        self.ready: list[_Message] = []
        self.spans: list[list[Span]] = [[] for _ in range(program.num_ranks)]
        self.waits: list[Wait] = []
        self.transmissions: list[Transmission] = []

    def timeline(self) -> Timeline:
        for rank in range(self.program.num_ranks):
            self.advance(rank)
        while self.ready:
            self.advance(self.transmit(heapq.heappop(self.ready)))
        if any(at < len(entries) for at, entries in zip(self.at, self.program.ranks, strict=True)):
            name = self.program.schedule.name
            raise VerificationError(f"{name} cannot run to its end; penstock.verify shows why")
        spans = tuple(span for row in self.spans for span in row)
        return Timeline(
            self.program.num_ranks,
            spans,
            tuple(sorted(self.waits, key=lambda wait: (wait.rank, wait.start))),
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
        entries = self.program.ranks[rank]
        while self.at[rank] < len(entries):
            entry = entries[self.at[rank]]
            done = 1
            if isinstance(entry, Transfer):
                self.post(rank, entry)
            elif entry.kind in _COPIES:
                self.copy(rank, entry)
            else:
                done = self.compute(rank, entry)
                if not done:
                    return
            self.at[rank] += done

    def post(self, rank: int, entry: Transfer) -> None:
        """Posts one end of a message; once both ends are there it is ready to start."""
        channel = entry.channel
        sends, receives = self.unmatched_sends[channel], self.unmatched_receives[channel]
        if entry.kind in RECEIVES:
            receives.append((self.clock[rank], entry))
            self.posted[rank].add(carried(entry))
        else:
            sends.append(self.clock[rank])
        if sends and receives:
            posted, receive = receives.popleft()
            ready = max(sends.popleft(), posted)
            heapq.heappush(self.ready, _Message(ready, channel, self.matched[channel], receive))
            self.matched[channel] += 1

    def transmit(self, message: _Message) -> int:
        """Lets a ready message or copy travel; returns the rank that may wait for it."""
        channel, taker = message.channel, message.taker
        link = self.cluster.link(channel.source, channel.target)
        pair = (channel.source, channel.target)
        if isinstance(taker, Transfer):
            value, op = carried(taker), Op(_TAKEN_BY[taker.kind], *taker[1:4])
            num_bytes = self.bytes[min(value.stage, taker.stage)]
        else:
            value, op, num_bytes = produced(taker)[0], taker, self.copied_bytes[taker.stage]
        start = max(message.ready, self.link_free[pair])
        free = start + link.busy_seconds(num_bytes)
        self.link_free[pair] = free
        transmission = Transmission(channel, op, start, free + link.latency_seconds)
        self.arrived[value] = _Arrival(message.ready, transmission)
        self.transmissions.append(transmission)
        if isinstance(taker, Transfer):
            return channel.target
        rank = channel.source if op.kind == OpKind.OFFLOAD else channel.target
        self.copies[rank].popleft()
        self.start_copy(rank, transmission.end)
        return rank

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
        heapq.heappush(self.ready, _Message(max(issued, free), channel, self.matched[channel], op))
        self.matched[channel] += 1

    def compute(self, rank: int, op: Op) -> int:
        """Runs `op`, or the pair that starts with it, once its messages have arrived and its rank has made the rest.

        Returns how many ops ran: 0 where something is not there yet.
        """
        ops = self.together(rank, op)
        clock = start = self.clock[rank]
        last: tuple[Op, _Arrival] | None = None
        for each in ops:
            for value in self.needs(rank, each):
                if value not in self.posted[rank]:
                    if value not in self.made[rank]:
                        return 0
                    continue
                arrival = self.arrived.get(value)
                if arrival is None:
                    return 0
                if arrival.transmission.end > start:
                    start, last = arrival.transmission.end, (each, arrival)
        if last is not None:
            self.wait(rank, last, clock, start)
        self.run(rank, ops, start)
        return len(ops)

    def together(self, rank: int, op: Op) -> tuple[Op, ...]:
        """Returns `op`, at which `rank` stands, with the op that overlaps it, if there is one."""
        at = self.at[rank]
        if at not in self.pairs[rank]:
            return (op,)
        after = self.program.ranks[rank][at + 1 : at + 2]
        return (op, *(other for other in after if isinstance(other, Op)))

    def needs(self, rank: int, op: Op) -> list[Value]:
        needs = consumed(op, self.program.schedule.num_stages) if op.kind in COMPUTE else []
        if self.awaited:
            needs.extend(self.awaited.get(op, ()))
        if op.kind == OpKind.F and self.leaving[rank]:
            needs.extend(self.leaving[rank])
        return needs

    def wait(self, rank: int, last: tuple[Op, _Arrival], clock: float, start: float) -> None:
        op, arrival = last
        source, target, _ = arrival.transmission.channel
        self.waits.append(Wait(rank, op, clock, start, target if source == rank else source, arrival.ready))

    def run(self, rank: int, ops: tuple[Op, ...], start: float) -> None:
        speed = self.cluster.devices[rank].speed
        for op, seconds in zip(ops, durations(ops, self.seconds, saved=self.saved), strict=True):
            if op.kind in COMPUTE:
                self.made[rank].update(produced(op))
            if op.kind == OpKind.F:
                self.leaving[rank].clear()
            end = start + (seconds if speed == 1 else seconds / speed)
            self.spans[rank].append(Span(rank, op, start, end))
            if op.kind == OpKind.REDUCE_GRAD:
                given = Transmission(Channel(rank, rank, op.kind), op, end, end)
                self.arrived[contributed(op)] = _Arrival(end, given)
            self.clock[rank] = start = end
