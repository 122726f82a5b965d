"""A small deterministic event kernel that runs a program on costs.

The model:
1. A rank runs its instructions in order. Sending and posting a receive take no time on the rank.
2. A compute op starts when the rank is free and its messages have arrived, and takes its seconds divided
   by the device's speed. If the rank stood still before it, it takes longer by what the device takes to wake.
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
7. UNSHARD takes no time on the rank; its gathers run one after another, and the first op that needs one waits for it.
8. On a cluster without overlap a rank stands still from a send until its message has arrived, and UNSHARD takes its
   time on the rank like an op. A receive needs nothing but its posted buffer.
9. The optimizer step of a stage that several ranks hold starts when all of them have reduced what it applies.
"""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import replace
from itertools import compress
from operator import itemgetter
from typing import cast

from penstock.cluster import Cluster
from penstock.costs import StageCosts
from penstock.errors import UserError, VerificationError, check_type
from penstock.ir.collector import collector_paused
from penstock.ir.columns import rows_of
from penstock.ir.ops import Op, OpKind
from penstock.ir.program import Program
from penstock.ir.schedule import Schedule
from penstock.lowering import lower
from penstock.simulator.memory import memory_curves
from penstock.simulator.wires import wires_of
from penstock.simulator.work import COMPUTES, COPIES, GATHERS, PASSES, POSTS, SENDS_ALONE, Work
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
    return _ran(subject, costs, cluster).timeline()


@collector_paused
def simulated_seconds(subject: Schedule | Program, costs: StageCosts, cluster: Cluster | None = None) -> float:
    """Returns the makespan of the timeline that `simulate` would return, in about half the time.

    Raises:
        UserError: as `simulate`.
        VerificationError: likewise.
    """
    run = _ran(subject, costs, cluster)
    return max(compress(run.ended, [does == COMPUTES for does in run.work.role]), default=0)


def _ran(subject: Schedule | Program, costs: StageCosts, cluster: Cluster | None) -> _Run:
    check_type("subject", subject, Schedule, Program, example="e.g. penstock.gpipe(4, 8)")
    check_type("costs", costs, StageCosts, example="e.g. penstock.StageCosts(forward=1, input_grad=1, weight_grad=1)")
    program = lower(subject) if isinstance(subject, Schedule) else subject
    cluster = Cluster.uniform(program.num_ranks) if cluster is None else cluster
    check_type("cluster", cluster, Cluster, example=f"e.g. penstock.Cluster.uniform({program.num_ranks})")
    if len(cluster.devices) != program.num_ranks:
        raise UserError(
            f"the cluster has {len(cluster.devices)} devices for {program.num_ranks} ranks; give one a rank"
        )
    run = _Run(program, costs, cluster)
    run.go()
    return run


_TAKEN_BY = {OpKind.RECV_F: OpKind.F, OpKind.RECV_B: OpKind.B}


class _Run:
    """How far the ranks, the messages and the links have come."""

    def __init__(self, program: Program, costs: StageCosts, cluster: Cluster) -> None:
        self.program, self.costs = program, costs
        self.work = Work(program, costs, cluster)
        self.wires = wires_of(program, self.work, costs, cluster)
        num_arrivals, num_ranks = self.work.never + 1, program.num_ranks
        self.at: list[int] = program.columns.first[:-1].tolist()
        self.ends: list[int] = program.columns.first[1:].tolist()
        self.clock: list[float] = [0] * num_ranks
        self.devices = [device if device.waking else None for device in cluster.devices]
        self.blocked_by = [-1] * num_ranks
        self.begun: list[float] = [0] * len(self.work.entries)
        self.ended: list[float] = [0] * len(self.work.entries)
        self.posted: list[float | None] = [None] * num_arrivals  # when the first end of a message was posted
        self.ready_at: list[float] = [0] * num_arrivals
        self.arrived: list[float | None] = [None] * num_arrivals
        self.free: list[float] = [0] * self.wires.num_wires  # when each link is free again
        self.ready: list[tuple[float, int]] = []
        self.sending = [-1] * num_ranks  # the send at which each rank stands
        self.copies: list[deque[tuple[float, int]]] = [deque() for _ in range(num_ranks)]
        self.waits: list[tuple[int, int, float, float, int]] = []
        self.travelled: list[tuple[int, float, float]] = []

    def go(self) -> None:
        """Runs everything to its end.

        Raises:
            VerificationError: some rank does not get there.
        """
        for rank in range(self.program.num_ranks):
            self.advance(rank)
        targets = [channel.target for channel in self.work.channels]
        stands = SENDS_ALONE in self.work.role
        while self.ready:
            ready, arrival = heapq.heappop(self.ready)
            end = self.transmit(ready, arrival)
            rank = targets[arrival]
            if self.work.role[self.work.travels[arrival]] == COPIES:
                rank = self.next_copy(arrival, end)
            for end_rank in (rank, self.work.channels[arrival].source) if stands else (rank,):
                if self.blocked_by[end_rank] == arrival:
                    self.advance(end_rank)
        if self.at != self.ends:
            name = self.program.schedule.name
            raise VerificationError(f"{name} cannot run to its end; penstock.verify shows why")

    def advance(self, rank: int) -> None:
        """Runs `rank`, and the ranks whose steps wait for its reductions, until they need what is not there yet."""
        role, brings, needs, seconds = self.work.role, self.work.brings, self.work.needs, self.work.seconds
        arrived, posted, begun, ended = self.arrived, self.posted, self.begun, self.ended
        clock, device = self.clock[rank], self.devices[rank]
        at, end = self.at[rank], self.ends[rank]
        self.blocked_by[rank] = -1
        while at < end:
            does = role[at]
            if does == COMPUTES:
                start = clock
                last = -1
                for arrival in needs[at]:
                    there = arrived[arrival]
                    if there is None:
                        self.blocked_by[rank] = arrival
                        self.at[rank], self.clock[rank] = at, clock
                        return
                    if there > start:
                        start, last = there, arrival
                if last >= 0:
                    self.waits.append((rank, at, clock, start, last))
                begun[at] = start
                late = device.waking_seconds(start - clock) if device and last >= 0 else 0
                ended[at] = clock = start + seconds[at] + late
                if brings[at] >= 0:
                    self.give(brings[at], clock)
            elif does == POSTS:
                arrival = brings[at]
                other = posted[arrival]
                if other is None:
                    posted[arrival] = clock
                else:
                    heapq.heappush(self.ready, (max(other, clock), arrival))
            elif does != PASSES:
                after = self.beside(rank, at, clock)
                if after is None:
                    self.at[rank], self.clock[rank] = at, clock
                    return
                clock = after
            at += 1
        self.at[rank], self.clock[rank] = at, clock

    def beside(self, rank: int, at: int, clock: float) -> float | None:
        """Starts a copy, a gather, or a send that holds its rank; returns when the rank goes on, if that is known."""
        does, arrival = self.work.role[at], self.work.brings[at]
        if does == COPIES:
            self.copy(rank, clock, arrival)
        elif does == GATHERS:
            heapq.heappush(self.ready, (clock, arrival))
        elif does == SENDS_ALONE:
            if self.sending[rank] != at:
                self.sending[rank] = at
                other = self.posted[arrival]
                if other is None:
                    self.posted[arrival] = clock
                else:
                    heapq.heappush(self.ready, (max(other, clock), arrival))
            there = self.arrived[arrival]
            if there is None:
                self.blocked_by[rank] = arrival
                return None
            if there > clock:
                self.waits.append((rank, at, clock, there, arrival))
            return max(clock, there)
        return clock

    def give(self, arrival: int, clock: float) -> None:
        """Lets a reduction be known at once to the ranks whose steps wait for it."""
        self.ready_at[arrival] = self.arrived[arrival] = clock
        for rank, awaited in enumerate(self.blocked_by):
            if awaited == arrival:
                self.advance(rank)

    def transmit(self, ready: float, arrival: int) -> float:
        """Lets a ready message or copy travel; returns when it arrives."""
        wire = self.wires.wire[arrival]
        start = max(ready, self.free[wire])
        self.free[wire] = free = start + self.wires.busy[arrival]
        self.ready_at[arrival] = ready
        self.arrived[arrival] = end = free + self.wires.latency[arrival]
        self.travelled.append((arrival, start, end))
        return end

    def copy(self, rank: int, clock: float, arrival: int) -> None:
        """Queues an OFFLOAD or RELOAD behind the rank's copies."""
        copies = self.copies[rank]
        copies.append((clock, arrival))
        if len(copies) == 1:
            heapq.heappush(self.ready, copies[0])

    def next_copy(self, arrival: int, end: float) -> int:
        """Makes the copy behind `arrival` ready; returns the rank whose copies they are."""
        source, target, kind = self.work.channels[arrival]
        rank = source if kind == OpKind.OFFLOAD else target
        copies = self.copies[rank]
        copies.popleft()
        if copies:
            issued, following = copies[0]
            heapq.heappush(self.ready, (max(issued, end), following))
        return rank

    def timeline(self) -> Timeline:
        """Returns what ran when."""
        program, entries = self.program, self.work.entries
        computes = [does == COMPUTES for does in self.work.role]
        columns = (program.columns.rank.tolist(), entries, self.begun, self.ended)
        spans = tuple(rows_of(Span, *(compress(column, computes) for column in columns)))
        transmissions = self.transmissions()
        waits = sorted(map(self.wait, self.waits), key=itemgetter(0, 2))
        timeline = Timeline(program.num_ranks, spans, tuple(waits), transmissions)
        return replace(timeline, memory=memory_curves(program, self.costs, timeline.by_rank, transmissions))

    def transmissions(self) -> tuple[Transmission, ...]:
        if not self.travelled:
            return ()
        arrivals, starts, ends = zip(*self.travelled, strict=True)
        entries = map(self.work.entries.__getitem__, map(self.work.travels.__getitem__, arrivals))
        kinds, *numbers = zip(*(entry[:4] for entry in entries), strict=True)
        takers = rows_of(Op, [_TAKEN_BY.get(kind, kind) for kind in kinds], *numbers)
        channels = map(self.work.channels.__getitem__, arrivals)
        return tuple(rows_of(Transmission, channels, takers, starts, ends))

    def wait(self, waited: tuple[int, int, float, float, int]) -> Wait:
        rank, at, start, end, arrival = waited
        source = self.work.source(arrival, rank)
        while self.work.role[at] != COMPUTES:  # a send: the op that made what it sends
            at -= 1
        second = arrival in self.work.of_second
        return Wait(rank, cast(Op, self.work.entries[at + second]), start, end, source, self.ready_at[arrival])
