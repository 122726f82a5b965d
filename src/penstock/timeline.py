"""Timeline: what ran when. One type for simulated and for measured runs, so that they can be compared."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple

from penstock.ir.ops import Channel, Op, OpKind


class Span(NamedTuple):
    """An op that ran on `rank` from `start` to `end`, in seconds."""

    rank: int
    op: Op
    start: float
    end: float


class Wait(NamedTuple):
    """`rank` stood still before `op` from `start` to `end`, because of a message from rank `source`.

    The message left at `sent`: until then the rank waited for its neighbour, after that for the transfer.
    """

    rank: int
    op: Op
    start: float
    end: float
    source: int
    sent: float


class Transmission(NamedTuple):
    """A message under way on `channel` from `start` to `end`; `op` is the op that takes it."""

    channel: Channel
    op: Op
    start: float
    end: float


class Shares(NamedTuple):
    """Where one rank's time went, in seconds; they add up to the makespan."""

    compute: float
    waiting: float
    transfer: float
    other: float


@dataclass(frozen=True)
class Timeline:
    """Spans of compute with waits and transfers apart.

    The step is measured from time 0 to the last end: the *flush makespan*. `per_rank_span` is the other
    measure in use (Qi et al. 2024): the longest time from a rank's first start to its last end, which presumes
    that no barrier precedes the optimizer.

    Attributes:
        num_ranks: p.
        spans: every op that took time on a rank, by rank and start.
        waits: where a rank stood still for a message.
        transmissions: messages under way.
        memory: per rank `(seconds, bytes)` steps, empty where no bytes are known.
    """

    num_ranks: int
    spans: tuple[Span, ...]
    waits: tuple[Wait, ...] = ()
    transmissions: tuple[Transmission, ...] = ()
    memory: tuple[tuple[tuple[float, float], ...], ...] = ()

    @cached_property
    def by_rank(self) -> tuple[tuple[Span, ...], ...]:
        """The spans of each rank in order."""
        rows: list[list[Span]] = [[] for _ in range(self.num_ranks)]
        for span in self.spans:
            rows[span.rank].append(span)
        return tuple(tuple(row) for row in rows)

    @cached_property
    def makespan(self) -> float:
        """Seconds from 0 to the end of the last op."""
        return max((span.end for span in self.spans), default=0)

    @cached_property
    def per_rank_span(self) -> float:
        """Seconds from a rank's first start to its last end, on the rank where that is longest."""
        return max((row[-1].end - row[0].start for row in self.by_rank if row), default=0)

    @cached_property
    def busy(self) -> tuple[float, ...]:
        """Seconds of compute on each rank."""
        return tuple(sum(span.end - span.start for span in row) for row in self.by_rank)

    @property
    def bubble_fraction(self) -> float:
        """Idle / total over all ranks: 0 for a pipeline that never stands still."""
        total = self.num_ranks * self.makespan
        return (total - sum(self.busy)) / total if total else 0.0

    @property
    def bubble_ratio(self) -> float:
        """Idle / ideal over all ranks: idle seconds for each second of compute."""
        busy = sum(self.busy)
        return (self.num_ranks * self.makespan - busy) / busy if busy else 0.0

    @cached_property
    def peak_activations(self) -> tuple[int, ...]:
        """The most microbatches of one stage chunk that each rank held between F and B or I.

        Offloaded ones count on the rank that keeps them, and on both while they are under way.
        """
        copies = [message for message in self.transmissions if message.channel.kind in _COPIES]
        if copies:
            return _peaks_with_copies(self.by_rank, copies)
        return tuple(_peak(row) for row in self.by_rank)

    @property
    def peak_memory(self) -> tuple[float, ...]:
        """The most bytes each rank held; empty where no bytes are known."""
        return tuple(max((held for _, held in curve), default=0) for curve in self.memory)

    def shares(self, rank: int) -> Shares:
        """Returns where the makespan went on `rank`: compute, waiting for a peer, transfer, all other."""
        waits = [wait for wait in self.waits if wait.rank == rank]
        transfer = sum(wait.end - min(max(wait.sent, wait.start), wait.end) for wait in waits)
        waiting = sum(wait.end - wait.start for wait in waits) - transfer
        compute = self.busy[rank]
        return Shares(compute, waiting, transfer, self.makespan - compute - waiting - transfer)


_HELD = {OpKind.F: +1, OpKind.B: -1, OpKind.I: -1}
_COPIES = frozenset({OpKind.OFFLOAD, OpKind.RELOAD})


def _peaks_with_copies(rows: tuple[tuple[Span, ...], ...], copies: list[Transmission]) -> tuple[int, ...]:
    steps: list[list[tuple[float, int]]] = [[] for _ in rows]
    for rank, row in enumerate(rows):
        steps[rank] += ((span.start, +1) for span in row if span.op.kind == OpKind.F)
        steps[rank] += ((span.end, -1) for span in row if span.op.kind in (OpKind.B, OpKind.I))
    for (source, target, kind), _, start, end in copies:
        if source != target or kind == OpKind.OFFLOAD:
            steps[source].append((end, -1))
        if source != target or kind == OpKind.RELOAD:  # the host's memory is nobody's device
            steps[target].append((start, +1))
    # At equal times what leaves comes first: it made room for what arrives.
    return tuple(max(accumulate((step for _, step in sorted(each)), initial=0)) for each in steps)


def _peak(row: tuple[Span, ...]) -> int:
    if not any(span.op.kind in (OpKind.B, OpKind.I) for span in row):
        return 0
    held = peak = 0
    for span in row:
        held += _HELD.get(span.op.kind, 0)
        peak = max(peak, held)
    return peak
