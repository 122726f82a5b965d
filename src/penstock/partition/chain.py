"""Exact dynamic programming over cuts of a chain of layers, one stage a rank.

A stage of layers i to j-1 on the rank of stage s takes t(s, i, j) a microbatch; cut j costs c(s, j), a boundary down
and a gradient up. Under an order that keeps the slowest stage busy a step takes about

    sum of t and c over all stages        a microbatch on its way down and up: fill and drain
    + (m - 1) · the largest t             and the slowest stage for each of the others

(Zheng et al. 2022, Alpa, section 5.2). For each bound on the largest t the least sum is found by dynamic programming
over (stage, last layer); bounds are stepped down from one Pareto point to the next, and those are left out that cannot
win even with the least sum of all.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from penstock.simulator.jit import jit
from penstock.simulator.orders import Floats, Ints

_POINTS = 200
"""Pareto points at most."""


class Chain(NamedTuple):
    """What is cut.

    Attributes:
        seconds: [L + 1], of all layers before.
        speeds: [s], of the rank of each stage.
        cuts: [s, L + 1], seconds of the boundary before a stage that begins there.
        extra: [s, L, w], seconds that the stage of layers i to i + w spends on running forwards again; infinite where
            it does not fit its rank. [0, 0, 0] where all fit as they are.
    """

    seconds: Floats
    speeds: Floats
    cuts: Floats
    extra: Floats


def cut_candidates(chain: Chain, num_microbatches: int) -> Iterator[tuple[int, ...]]:
    """Yields the boundaries of Pareto points, the one of the smallest largest stage first.

    The point that minimises fill, drain and (m - 1) · bottleneck is among them. Nothing where no cuts fit.
    """
    first = _first(chain, num_microbatches)
    if first is None:
        return
    yield first.cuts
    best, bound = first.best, first.bound
    for _ in range(_POINTS):
        if not bound > first.least * (1 + 1e-12):
            return
        total, cuts = _solved(chain, bound, False)
        if cuts is None or total >= best:
            return
        yield cuts
        largest = _largest(chain, cuts)
        best = min(best, total + (num_microbatches - 1) * largest)
        bound = min(largest * (1 - 1e-12), (best - first.fewest) / max(num_microbatches - 1, 1))


def longest_stage(chain: Chain, num_microbatches: int) -> float:
    """Returns the seconds above which no stage of the best cuts is; infinite where that is not known."""
    first = _first(chain, num_microbatches)
    return np.inf if first is None else first.bound


class _First(NamedTuple):
    """The cuts of the smallest largest stage.

    Attributes:
        cuts: their boundaries.
        least: that stage.
        best: the step under them.
        fewest: the least sum over any cuts.
        bound: on the largest stage of cuts that take less.
    """

    cuts: tuple[int, ...]
    least: float
    best: float
    fewest: float
    bound: float


def _first(chain: Chain, num_microbatches: int) -> _First | None:
    least, cuts = _solved(chain, np.inf, True)
    if cuts is None:
        return None
    total, cuts = _solved(chain, least, False)
    if cuts is None:
        return None
    best = total + (num_microbatches - 1) * least
    fewest, _ = _solved(chain, np.inf, False)
    bound = (best - fewest) / (num_microbatches - 1) if num_microbatches > 1 else np.inf
    return _First(cuts, least, best, fewest, bound)


def _largest(chain: Chain, cuts: tuple[int, ...]) -> float:
    return max(
        _stage_seconds(chain, stage, first, last) for stage, (first, last) in enumerate(itertools.pairwise(cuts))
    )


def _stage_seconds(chain: Chain, stage: int, first: int, last: int) -> float:
    extra = chain.extra[stage, first, last - first - 1] if chain.extra.size > 1 else 0.0
    return float((chain.seconds[last] - chain.seconds[first]) / chain.speeds[stage] + extra)


def _solved(chain: Chain, bound: float, largest: bool) -> tuple[float, tuple[int, ...] | None]:
    """Returns the least sum, or the least largest stage, over cuts with no stage above `bound`, and the cuts."""
    num_stages, num_layers = len(chain.speeds), len(chain.seconds) - 1
    before = np.zeros((num_stages + 1, num_layers + 1), np.int64)
    value = _tabled(chain.seconds, chain.speeds, chain.cuts, chain.extra, bound * (1 + 1e-12), largest, before)
    if value == np.inf:
        return value, None
    cuts = [num_layers]
    for stage in range(num_stages, 0, -1):
        cuts.append(int(before[stage, cuts[-1]]))
    return value, tuple(reversed(cuts))


@jit
def _tabled(seconds: Any, speeds: Any, cuts: Any, extra: Any, bound: float, largest: bool, before: Ints) -> float:
    """Fills `before` with the best cut before each (stages, layers); returns the best value for all of them."""
    num_stages, num_layers = len(speeds), len(seconds) - 1
    best = np.full(num_layers + 1, np.inf)
    best[0] = 0.0
    for stage in range(num_stages):
        following = np.full(num_layers + 1, np.inf)
        for last in range(stage + 1, num_layers - (num_stages - 1 - stage) + 1):
            for first in range(last - 1, stage - 1, -1):
                own = (seconds[last] - seconds[first]) / speeds[stage]
                if own > bound or (largest and own >= following[last]):
                    break
                if extra.size > 1:
                    own += extra[stage, first, last - first - 1]
                    if own > bound:
                        continue
                value = max(best[first], own) if largest else best[first] + own + cuts[stage, first]
                if value < following[last]:
                    following[last] = value
                    before[stage + 1, last] = first
        best = following
    return float(best[num_layers])
