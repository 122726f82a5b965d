"""The clock of zb_v_greedy's search: places F, I and W of a V one by one and knows when each ends."""

from __future__ import annotations

from collections import deque

from penstock.ir.ops import Op, OpKind
from penstock.schedules.zb_v_greedy_terms import Terms


class Clock:
    """How far every rank has come.

    Attributes:
        orders: the ops placed on each rank.
        free: when each rank has run them.
        idle: how long each rank has stood still since its first op.
        pending: stages whose I wait for their W, by rank, oldest first.
        worst: the largest sum of a rank's idle time and all its work.
    """

    def __init__(self, terms: Terms) -> None:
        self.terms = terms
        ranks = range(terms.num_ranks)
        self.orders: list[list[Op]] = [[] for _ in ranks]
        self.free: list[float] = [0 for _ in ranks]
        self.idle: list[float] = [0 for _ in ranks]
        self.pending: list[deque[int]] = [deque() for _ in ranks]
        self._ends: dict[OpKind, list[list[float]]] = {
            kind: [[] for _ in range(2 * terms.num_ranks)] for kind in terms.seconds
        }
        self._work = [
            terms.num_microbatches
            * sum(seconds[stage] for seconds in terms.seconds.values() for stage in terms.stages(rank))
            for rank in ranks
        ]
        self.worst: float = max(self._work)

    def count(self, kind: OpKind, stage: int) -> int:
        """Returns how many ops of `kind` are placed for `stage`."""
        return len(self._ends[kind][stage])

    def is_fed(self, kind: OpKind, stage: int) -> bool:
        """Whether the op that feeds the next F or I of `stage` from another stage is placed."""
        source = stage - 1 if kind == OpKind.F else stage + 1
        outside = not 0 <= source < 2 * self.terms.num_ranks
        return outside or self.count(kind, source) > self.count(kind, stage)

    def arrival(self, kind: OpKind, stage: int) -> float:
        """Returns when the input of the next op is there; 0 where the rank makes it itself."""
        source = stage - 1 if kind == OpKind.F else stage + 1
        alone = kind == OpKind.W or not 0 <= source < 2 * self.terms.num_ranks
        if alone or self.terms.rank_of(source) == self.terms.rank_of(stage):
            return 0
        return self._ends[kind][source][self.count(kind, stage)] + self.terms.transfer[min(source, stage)]

    def exceeds(self, kind: OpKind, stage: int) -> bool:
        """Whether the stage's rank would hold more than its limit after one more op of `kind`."""
        # counted anew each time: a running sum of floats would drift over the limit
        rank = self.terms.rank_of(stage)
        f, i, w = (
            [self.count(one, other) + (one == kind and other == stage) for other in self.terms.stages(rank)]
            for one in (OpKind.F, OpKind.I, OpKind.W)
        )
        held = self.terms.held(rank, (f[0] - i[0], f[1] - i[1]), (i[0] - w[0], i[1] - w[1]))
        return held > self.terms.limit[rank]

    def lateness(self, rank: int) -> float:
        """Returns the rank's idle time so far and all its work: what its span would be without more idling."""
        return self._work[rank] + self.idle[rank]

    def put(self, kind: OpKind, stage: int) -> None:
        """Places the next op of `kind` for `stage`, as early as its input allows."""
        rank = self.terms.rank_of(stage)
        start = max(self.free[rank], self.arrival(kind, stage))
        if self.orders[rank]:
            self.idle[rank] += start - self.free[rank]
            self.worst = max(self.worst, self.lateness(rank))
        self.free[rank] = start + self.terms.seconds[kind][stage]
        self.orders[rank].append(Op(kind, stage, self.count(kind, stage)))
        self._ends[kind][stage].append(self.free[rank])
        if kind == OpKind.I:
            self.pending[rank].append(stage)

    def put_weight(self, rank: int) -> None:
        """Places the W that has waited longest."""
        self.put(OpKind.W, self.pending[rank].popleft())
