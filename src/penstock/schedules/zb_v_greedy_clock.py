"""The clock of zb_v_greedy's search: places F, I and W of a V one by one and knows when each ends.

It is asked a hundred thousand times a schedule, so that what does not change is looked up in tables by kind and stage.
"""

from __future__ import annotations

from collections import deque

from penstock.ir.ops import Op, OpKind
from penstock.schedules.zb_v_greedy_terms import Terms

_KINDS = (OpKind.F, OpKind.I, OpKind.W)
_ALONE = -1


class Clock:
    """How far every rank has come.

    Attributes:
        free: when each rank has run what is placed on it.
        idle: how long each rank has stood still since its first op.
        pending: stages whose I wait for their W, by rank, oldest first.
        worst: the largest sum of a rank's idle time and all its work.
    """

    def __init__(self, terms: Terms) -> None:
        self.terms = terms
        ranks, stages = range(terms.num_ranks), range(2 * terms.num_ranks)
        self._placed: list[list[tuple[OpKind, int, int]]] = [[] for _ in ranks]
        self.free: list[float] = [0 for _ in ranks]
        self.idle: list[float] = [0 for _ in ranks]
        self.pending: list[deque[int]] = [deque() for _ in ranks]
        self._ends: list[list[list[float]]] = [[[] for _ in stages] for _ in range(1 + max(_KINDS))]
        self._rank = [terms.rank_of(stage) for stage in stages]
        self._seconds = [terms.seconds.get(kind, ()) for kind in OpKind if kind <= max(_KINDS)]
        self._sources = [[_source(kind, stage, terms.num_ranks) for stage in stages] for kind in range(1 + max(_KINDS))]
        self._work = [
            terms.num_microbatches
            * sum(seconds[stage] for seconds in terms.seconds.values() for stage in terms.stages(rank))
            for rank in ranks
        ]
        self.worst: float = max(self._work)

    @property
    def orders(self) -> list[tuple[Op, ...]]:
        """The ops placed on each rank."""
        return [tuple(Op(*op) for op in placed) for placed in self._placed]

    def count(self, kind: OpKind, stage: int) -> int:
        """Returns how many ops of `kind` are placed for `stage`."""
        return len(self._ends[kind][stage])

    def is_fed(self, kind: OpKind, stage: int) -> bool:
        """Whether the op that feeds the next F or I of `stage` from another stage is placed."""
        source = self._sources[kind][stage]
        return source == _ALONE or len(self._ends[kind][source]) > len(self._ends[kind][stage])

    def arrival(self, kind: OpKind, stage: int) -> float:
        """Returns when the input of the next op is there; 0 where the rank makes it itself."""
        source = self._sources[kind][stage]
        if source == _ALONE or self._rank[source] == self._rank[stage]:
            return 0
        ends = self._ends[kind]
        return ends[source][len(ends[stage])] + self.terms.transfer[min(source, stage)]

    def exceeds(self, kind: OpKind, stage: int) -> bool:
        """Whether the stage's rank would hold more than its limit after one more op of `kind`."""
        # counted anew each time: a running sum of floats would drift over the limit
        rank = self._rank[stage]
        live, waiting = [], []
        forward, backward, weight = (self._ends[one] for one in _KINDS)
        for other in self.terms.stages(rank):
            done = len(backward[other]) + (kind is OpKind.I and other == stage)
            live.append(len(forward[other]) + (kind is OpKind.F and other == stage) - done)
            waiting.append(done - len(weight[other]))
        return self.terms.held(rank, live, waiting) > self.terms.limit[rank]

    def lateness(self, rank: int) -> float:
        """Returns the rank's idle time so far and all its work: what its span would be without more idling."""
        return self._work[rank] + self.idle[rank]

    def put(self, kind: OpKind, stage: int) -> None:
        """Places the next op of `kind` for `stage`, as early as its input allows."""
        rank = self._rank[stage]
        free, placed, ends = self.free[rank], self._placed[rank], self._ends[kind][stage]
        arrival = self.arrival(kind, stage)
        start = free
        if arrival > free:
            start = arrival
            if placed:
                self.idle[rank] += arrival - free
                self.worst = max(self.worst, self.lateness(rank))
        end = start + self._seconds[kind][stage]
        self.free[rank] = end
        placed.append((kind, stage, len(ends)))
        ends.append(end)
        if kind is OpKind.I:
            self.pending[rank].append(stage)

    def put_weight(self, rank: int) -> None:
        """Places the W that has waited longest."""
        self.put(OpKind.W, self.pending[rank].popleft())


def _source(kind: int, stage: int, num_ranks: int) -> int:
    """Returns the stage that feeds an op of `kind` on `stage`; `_ALONE` where none does."""
    source = stage - 1 if kind == OpKind.F else stage + 1
    return source if kind != OpKind.W and 0 <= source < 2 * num_ranks else _ALONE
