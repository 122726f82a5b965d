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
from penstock.lowering import lower
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


class _Message(NamedTuple):
    """A message that may start at `ready`; ties are served by channel, and in order on each."""

    ready: float
    channel: Channel
    number: int
    receive: Transfer


class _Arrival(NamedTuple):
    ready: float
    transmission: Transmission


class _Run:
    def __init__(self, program: Program, costs: StageCosts, cluster: Cluster) -> None:
        schedule = program.schedule
        self.program, self.costs, self.cluster = program, costs, cluster
        self.seconds = costs.seconds(schedule.num_stages)
        self.bytes = costs.per_stage("boundary_bytes", schedule.num_stages)
        self.at = [0] * program.num_ranks
        self.clock: list[float] = [0] * program.num_ranks
        self.unmatched_sends: dict[Channel, deque[float]] = defaultdict(deque)
        self.unmatched_receives: dict[Channel, deque[tuple[float, Transfer]]] = defaultdict(deque)
        self.link_free: dict[tuple[int, int], float] = defaultdict(int)
        self.matched: dict[Channel, int] = defaultdict(int)
        self.arrived: dict[Value, _Arrival] = {}
        self.posted: list[set[Value]] = [set() for _ in range(program.num_ranks)]
        self.made: list[set[Value]] = [set() for _ in range(program.num_ranks)]
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
            memory_curves(self.program.schedule, self.costs, self.spans),
        )

    def advance(self, rank: int) -> None:
        """Runs `rank` until it needs a message that has not arrived."""
        entries = self.program.ranks[rank]
        while self.at[rank] < len(entries):
            entry = entries[self.at[rank]]
            if isinstance(entry, Transfer):
                self.post(rank, entry)
            elif not self.compute(rank, entry):
                return
            self.at[rank] += 1

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
        """Lets a ready message travel; returns the rank that receives it."""
        channel = message.channel
        link = self.cluster.link(channel.source, channel.target)
        pair = (channel.source, channel.target)
        value = carried(message.receive)
        start = max(message.ready, self.link_free[pair])
        free = start + link.busy_seconds(self.bytes[min(value.stage, message.receive.stage)])
        self.link_free[pair] = free
        kind = OpKind.F if message.receive.kind == OpKind.RECV_F else OpKind.B
        op = Op(kind, *message.receive[1:4])
        transmission = Transmission(channel, op, start, free + link.latency_seconds)
        self.arrived[value] = _Arrival(message.ready, transmission)
        self.transmissions.append(transmission)
        return channel.target

    def compute(self, rank: int, op: Op) -> bool:
        """Runs `op` if its messages have arrived and its rank has made the rest; returns whether it ran."""
        clock = start = self.clock[rank]
        last: _Arrival | None = None
        for value in consumed(op, self.program.schedule.num_stages) if op.kind in COMPUTE else ():
            if value not in self.posted[rank]:
                if value not in self.made[rank]:
                    return False
                continue
            arrival = self.arrived.get(value)
            if arrival is None:
                return False
            if arrival.transmission.end > start:
                start, last = arrival.transmission.end, arrival
        if last is not None:
            self.waits.append(Wait(rank, op, clock, start, last.transmission.channel.source, last.ready))
        if op.kind in COMPUTE:
            self.made[rank].update(produced(op))
        speed = self.cluster.devices[rank].speed
        seconds = self.seconds[op.kind][op.stage] if op.kind in self.seconds else 0
        end = start + (seconds if speed == 1 else seconds / speed)
        self.spans[rank].append(Span(rank, op, start, end))
        self.clock[rank] = end
        return True
