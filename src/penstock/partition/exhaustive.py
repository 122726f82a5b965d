"""All partitions of few layers, in the order of what none of them can take less than: most need no timing."""

from __future__ import annotations

from itertools import combinations
from math import comb

import numpy as np

from penstock.ir.ops import OpKind
from penstock.partition.bench import EVALUATION_OPS, Bench
from penstock.simulator.orders import Floats, Ints

_MOST = 200_000
"""Partitions that are looked at."""

_ALL_OPS = 16_000_000
"""Ops that are timed."""

_ROUNDING = 1e-9


def all_timed(bench: Bench, timed: dict[tuple[int, ...], float]) -> bool:
    """Adds to `timed` all partitions that could be the best; returns whether these are all, within the ops allowed."""
    num_layers, num_stages = bench.costs.num_layers, bench.schedule.num_stages
    count = comb(num_layers - 1, num_stages - 1)
    # Where timing is slow, only what is sure to come to an end is begun.
    if count > _MOST or (bench.words is None and count * bench.ops > _ALL_OPS):
        return False
    inner = np.array(list(combinations(range(1, num_layers), num_stages - 1)), np.int64).reshape(-1, num_stages - 1)
    ends = np.zeros((len(inner), 1), np.int64)
    every = np.hstack([ends, inner, ends + num_layers])
    bounds = least_seconds(bench, every)
    best, left = min(timed.values(), default=np.inf), _ALL_OPS
    for at in np.argsort(bounds, kind="stable").tolist():
        if bounds[at] * (1 - _ROUNDING) > best:
            return True
        if left <= 0:
            return False
        cuts = tuple(every[at].tolist())
        if cuts not in timed:
            timed[cuts] = bench.seconds(cuts)
            left -= bench.ops + EVALUATION_OPS
        best = min(best, timed[cuts])
    return True


def least_seconds(bench: Bench, every: Ints) -> Floats:
    """Returns for each row of cuts seconds that a step under them takes at least.

    A rank does all of its work one after another. Its first op is a forward of its lowest stage, which waits for those
    of all stages before; if backwards are whole, its last op is one of the same stage, and theirs come behind it.
    """
    schedule, (forward, backward, _, _) = bench.schedule, bench.prefixes
    kinds = {op.kind for ops in schedule.ranks for op in ops}
    trained = bool(kinds & {OpKind.B, OpKind.I})
    ahead = (forward[every[:, 1:]] - forward[every[:, :-1]]) / bench.speeds
    back = (backward[every[:, 1:]] - backward[every[:, :-1]]) / bench.speeds * trained
    around = ahead + back * (OpKind.W not in kinds)
    before = np.cumsum(around, axis=1) - around
    ranks = np.array(schedule.placement.table[0])
    least = [
        schedule.num_microbatches * (ahead + back)[:, ranks == rank].sum(axis=1)
        + before[:, int(np.flatnonzero(ranks == rank)[0])]
        for rank in range(schedule.num_ranks)
    ]
    bounds: Floats = np.max(least, axis=0)
    return bounds
