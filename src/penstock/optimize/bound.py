"""A lower bound: seconds that no order of these stages beats under this memory.

For every rank the time from 0 to its last op is cut into pieces that cannot overlap, and each is bounded by itself.

    0 ── head ──┬── work, and what it cannot fill ──┬── rise ── end
                first F                             last op

1. *head*. Before a rank's first F microbatch 0 has to come through all stages before its lowest one.
2. *busy*. It runs F, I and W of all its stages m times.
3. *opening*. Until its first backward the rank runs forwards only, as many as its memory holds (a fractional
   knapsack: the most seconds of F a byte). That backward, of its highest stage, cannot start before a microbatch has
   been to the last stage and back. What its forwards do not fill is idle.
4. *closing*. After the start of its last F, of whichever stage, the rank waits until that microbatch has been to the
   last stage and back to the rank's lowest stage. Meanwhile it has only this F, the backwards of what it holds and
   the W of what it has put off, and both lie in its memory at that moment. What they do not fill is idle.
5. *rise*. A step does not end with the last backward of a rank: that gradient goes up to stage 0 and is followed by
   a W there. Until its last backward the rank has run all F, I, and all W but those that its memory can hold back.

Opening and closing are disjoint where the memory does not hold all m microbatches, because then the first backward
precedes the last F; else the longer one counts.

The span of a rank is bounded likewise, from its first F: busy, opening and closing. The rise of every rank behind it
ends on it too, and is measured from the start of its first F, which is known where each rank on the way there begins
with its own lowest stage.

Where a full backward is cheaper than I and W, or overlapped pairs save time, the cheaper number is taken.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from penstock.ir.ops import OpKind
from penstock.optimize.problem import Problem
from penstock.simulator.orders import Floats


class _Terms(NamedTuple):
    """Seconds of each stage, and the way of a microbatch.

    Attributes:
        forward: of F.
        backward: of what passes the gradient on.
        weight: of what is left of the backward.
        deferred: what is kept for that.
        reached: the earliest start of F of microbatch 0.
        returned: seconds from the start of a stage's F to the start of its backward.
        rise: seconds from the end of a stage's backward to the end of W of stage 0.
    """

    forward: Floats
    backward: Floats
    weight: Floats
    deferred: Floats
    reached: Floats
    returned: Floats
    rise: Floats


_NOTHING = 1e-250
"""A size that is as good as none: what is divided by it stays a number."""


def lower_bound(problem: Problem) -> float:
    """Returns the largest of the bounds of all ranks, by the reasoning at the top of this file."""
    if problem.costs.overlapped is not None:
        return _busiest(problem)
    terms = _terms(problem)
    ranks = [_rank_bound(problem, terms, rank) for rank in range(problem.num_ranks)]
    starts = [terms.reached[bound.lowest] for bound in ranks]
    if problem.objective == "makespan":
        ends = [bound.last_backward + terms.rise[bound.lowest] for bound in ranks]
        return float(max(start + max(ranks[i].own, ends[i]) for i, start in enumerate(starts)))
    longest = max(bound.own for bound in ranks)
    for rank, here in enumerate(ranks):
        if _begins_at_once(problem, here.lowest):
            for bound, start in zip(ranks, starts, strict=True):
                if bound.lowest >= here.lowest:
                    rise = terms.rise[bound.lowest] - terms.rise[here.lowest] + terms.weight[here.lowest]
                    longest = max(longest, start + bound.last_backward + rise - starts[rank])
    return float(longest)


def _begins_at_once(problem: Problem, stage: int) -> bool:
    """Whether microbatch 0 reaches `stage` without a rank on its way that might run something else first."""
    ranks = problem.placement.table[0][: stage + 1]
    return len(set(ranks)) == len(ranks)


def _terms(problem: Problem) -> _Terms:
    of_kind = {kind: problem.seconds[int(kind) :: 4] for kind in (OpKind.F, OpKind.B, OpKind.I, OpKind.W)}
    forward = of_kind[OpKind.F]
    split = of_kind[OpKind.I] + of_kind[OpKind.W]
    whole = np.minimum(of_kind[OpKind.B], split) if problem.splits else of_kind[OpKind.B]
    backward = np.minimum(of_kind[OpKind.I], whole) if problem.splits else whole
    reached, returned, rise = (np.zeros(problem.num_stages) for _ in range(3))
    rise[0] = (whole - backward)[0]
    for stage in range(1, problem.num_stages):
        reached[stage] = reached[stage - 1] + forward[stage - 1] + problem.down[stage - 1]
        rise[stage] = problem.up[stage] + backward[stage - 1] + rise[stage - 1]
    returned[-1] = forward[-1]
    for stage in range(problem.num_stages - 2, -1, -1):
        away = problem.down[stage] + returned[stage + 1] + backward[stage + 1] + problem.up[stage + 1]
        returned[stage] = forward[stage] + away
    deferred = np.minimum(problem.deferred, problem.activation)
    return _Terms(forward, backward, whole - backward, deferred, reached, returned, rise)


def _busiest(problem: Problem) -> float:
    """Returns the seconds of the busiest rank if all that can overlap does."""
    cheapest = np.array(problem.costs.per_stage("overlapped", problem.num_stages), float)
    speeds = np.array([problem.cluster.devices[rank].speed for rank in problem.rank_of])
    return float(np.bincount(problem.rank_of, problem.num_microbatches * cheapest / speeds).max())


class _Rank(NamedTuple):
    """The bounds of one rank, in seconds from its first F.

    Attributes:
        lowest: its lowest stage.
        own: until its last op, by itself.
        last_backward: until the end of its last backward.
    """

    lowest: int
    own: float
    last_backward: float


def _rank_bound(problem: Problem, terms: _Terms, rank: int) -> _Rank:
    stages = np.array(problem.placement.stages_of(rank))
    count, limit = problem.num_microbatches, float(problem.limit[rank])
    forward, backward, weight = terms.forward[stages], terms.backward[stages], terms.weight[stages]
    activation, deferred = problem.activation[stages], terms.deferred[stages]
    lowest, highest = stages[0], stages[-1]

    filled = _most(forward, activation, limit, count)
    first_backward = terms.reached[highest] + terms.returned[highest] - terms.reached[lowest]
    opening = max(first_backward - filled, 0)
    leftover = _most(np.concatenate([backward + weight, weight]), np.concatenate([activation, deferred]), limit, count)
    closing = min(max(_way_back(terms, stages, last) - terms.forward[last] - leftover, 0) for last in stages)
    holds_all = limit >= count * activation.sum()
    idle = max(opening, closing) if holds_all else opening + closing

    put_off = _most(weight, deferred, limit, count)
    before = count * (forward + backward).sum() + max(count * weight.sum() - put_off, 0) + opening
    return _Rank(int(lowest), float(count * (forward + backward + weight).sum() + idle), float(before))


def _way_back(terms: _Terms, stages: Floats, last: int) -> float:
    """Returns the seconds from the start of F of stage `last` to the end of W of the rank's lowest stage."""
    lowest = stages[0]
    to_backward = terms.returned[last] + terms.backward[last]
    return float(to_backward + (terms.rise[last] - terms.rise[lowest]) + terms.weight[lowest])


def _most(seconds: Floats, size: Floats, limit: float, count: int) -> float:
    """Returns the most seconds of ops that fit into `limit`, each of `count` alike; the last may be a fraction.

    Of a single sort only whole ones count.
    """
    if len(size) == 1 and size[0] * count > limit:
        return float(seconds[0] * np.floor(limit * (1 + 1e-12) / size[0]))
    total, room, sizes = 0.0, limit, np.maximum(size, _NOTHING)
    for index in np.argsort(-seconds / sizes, kind="stable"):
        taken = min(count, room / sizes[index])
        total += taken * seconds[index]
        room -= taken * size[index]
    return total
