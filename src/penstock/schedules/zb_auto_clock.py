"""The clock of zb_auto's search: places F, I and W one by one and knows when each ends and what it holds."""

from __future__ import annotations

from typing import NamedTuple

from penstock.ir.ops import Op, OpKind


class Terms(NamedTuple):
    """What a search is about; every tuple holds one number a rank.

    Attributes:
        num_microbatches: m.
        seconds: of F, I and W.
        transfer: seconds of a boundary between the rank and the next.
        activation: what F keeps.
        deferred: what I keeps for W.
        limit: the most a rank may hold.
    """

    num_microbatches: int
    seconds: dict[OpKind, tuple[float, ...]]
    transfer: tuple[float, ...]
    activation: tuple[float, ...]
    deferred: tuple[float, ...]
    limit: tuple[float, ...]


class Clock:
    """How far every rank has come.

    Attributes:
        orders: the ops placed on each rank.
        free: when each rank has run them.
        idle: how long each rank has stood still since its first op.
        worst_idle: the largest of these.
    """

    def __init__(self, terms: Terms) -> None:
        self.terms = terms
        self.num_ranks = len(terms.limit)
        self.orders: list[list[Op]] = [[] for _ in terms.limit]
        self.free: list[float] = [0] * self.num_ranks
        self.idle: list[float] = [0] * self.num_ranks
        self.worst_idle: float = 0
        self._ends: dict[OpKind, list[list[float]]] = {kind: [[] for _ in terms.limit] for kind in terms.seconds}

    def count(self, kind: OpKind, rank: int) -> int:
        """Returns how many ops of `kind` are placed on `rank`."""
        return len(self._ends[kind][rank])

    def forwards_left(self, rank: int) -> int:
        """Returns how many F are not placed yet."""
        return self.terms.num_microbatches - self.count(OpKind.F, rank)

    def weights_left(self, rank: int) -> int:
        """Returns how many I wait for their W."""
        return self.count(OpKind.I, rank) - self.count(OpKind.W, rank)

    def arrival(self, kind: OpKind, rank: int) -> float:
        """Returns when the input of the next op of `kind` is there; 0 where it comes from the rank itself."""
        number = self.count(kind, rank)
        if kind == OpKind.F and rank > 0:
            return self._ends[kind][rank - 1][number] + self.terms.transfer[rank - 1]
        if kind == OpKind.I and rank + 1 < self.num_ranks:
            return self._ends[kind][rank + 1][number] + self.terms.transfer[rank]
        return 0

    def exceeds(self, rank: int, *, forwards: int = 0, backwards: int = 0, weights: int = 0) -> bool:
        """Whether `rank` would hold more than its limit after so many more F, I and W."""
        # counted anew each time: a running sum of floats would drift over the limit
        live = self.count(OpKind.F, rank) + forwards - self.count(OpKind.I, rank) - backwards
        waiting = self.weights_left(rank) + backwards - weights
        held = live * self.terms.activation[rank] + waiting * self.terms.deferred[rank]
        return held > self.terms.limit[rank]

    def put(self, kind: OpKind, rank: int) -> None:
        """Places the next op of `kind` on `rank`, as early as its input allows."""
        start = max(self.free[rank], self.arrival(kind, rank))
        if self.orders[rank]:
            self.idle[rank] += start - self.free[rank]
            self.worst_idle = max(self.worst_idle, self.idle[rank])
        self.free[rank] = start + self.terms.seconds[kind][rank]
        self.orders[rank].append(Op(kind, rank, self.count(kind, rank)))
        self._ends[kind][rank].append(self.free[rank])

    def longest_span(self) -> float:
        """Returns the longest time from a rank's first start to its last end."""
        forward = self.terms.seconds[OpKind.F]
        return max(
            free - ends[0] + seconds
            for free, ends, seconds in zip(self.free, self._ends[OpKind.F], forward, strict=True)
        )
