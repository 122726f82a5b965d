"""Cuts moved while that helps, and shaken where it no longer does: for more partitions than can be timed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from random import Random

import numpy as np

from penstock.partition.bench import EVALUATION_OPS, Bench
from penstock.partition.ranges import shifted

_OPS = 8_000_000
"""Ops that are timed by moving cuts."""

_STARTS = 8
"""Partitions from which cuts are moved until they fit, at most."""

_FEW_STAGES = 16
"""Of so many stages a layer may move from any to any other, of more between those near one another."""

_COVERING = 20_000
"""What choosing the layers of ranks with several stages that run again counts as, in ops."""

_IDLE = 50
"""Times that shaking leads in turn to nothing that has not been timed: then all there is has been."""

Cuts = tuple[int, ...]
Worth = tuple[float, float]
"""Bytes lacking, seconds: less is better."""


class Moves:
    """Moves cuts of partitions within a number of timed ops.

    Args:
        bench: what times them.
        timed: what has been timed; it is added to.
    """

    def __init__(self, bench: Bench, timed: dict[Cuts, float]) -> None:
        self._bench, self._timed = bench, timed
        self._lacking: dict[Cuts, float] = {}
        self._price = bench.ops + EVALUATION_OPS + _COVERING * (bench.shared is not None and bench.recompute)
        self._reach = len(bench.speeds) - 1 if len(bench.speeds) <= _FEW_STAGES else 3
        # A start may need a look at all of its neighbours whatever their price.
        self._left = max(_OPS, 2 * len(bench.speeds) * self._price)

    def best(self) -> Cuts:
        """Returns the best partition that was found from those timed; of those that do not fit, what lacks least."""
        ranked = sorted(self._timed, key=lambda cuts: (self._timed[cuts], cuts))
        if self._timed[ranked[0]] == np.inf:
            ranked.sort(key=lambda cuts: (self._worth(cuts), cuts))
        found = ranked[0]
        for start in ranked[: _STARTS if self._worth(found)[0] else 1]:
            found = min(found, self._descended(start), key=self._worth)
            if not self._worth(found)[0]:
                break
        found = self._descended(found)
        return self._shaken(found) if len(found) - 2 <= _FEW_STAGES else found

    def _worth(self, cuts: Cuts) -> Worth:
        known = self._timed.get(cuts)
        if known is not None and known < np.inf:
            return (0.0, known)
        if cuts not in self._lacking:
            self._left -= self._price
            self._lacking[cuts] = lacking = self._bench.lacking(cuts)
            self._timed[cuts] = np.inf if lacking else self._bench.seconds(cuts)
        return (self._lacking[cuts], self._timed[cuts])

    def _descended(self, start: Cuts) -> Cuts:
        """Returns the partition at which moving a layer helps no more."""
        best, improved = start, True
        while improved and self._left > 0:
            improved = False
            lacking, seconds = self._worth(best)
            for cuts in neighbours(best, self._reach):
                if self._left <= 0:
                    break
                if self._worth(cuts) < (lacking * (1 - 1e-12), seconds * (1 - 1e-12)):
                    best, improved = cuts, True
                    break
        return best

    def _shaken(self, best: Cuts) -> Cuts:
        """Returns the best that is found by moving some layers at random, and from there as long as it helps."""
        random, idle = Random(0), 0
        while self._left > 0 and idle < _IDLE:
            left, shaken = self._left, best
            for _ in range(random.randint(2, 6)):
                shaken = _picked(neighbours(shaken, self._reach), random) or shaken
            best = min(best, self._descended(shaken), key=self._worth)
            idle = idle + 1 if self._left == left else 0
        return best


def _picked(moved: Iterable[Cuts], random: Random) -> Cuts | None:
    some = list(islice(moved, _FEW_STAGES * _FEW_STAGES))
    return random.choice(some) if some else None


def neighbours(cuts: Cuts, reach: int) -> Iterator[Cuts]:
    """Yields the partitions with one layer less in a stage and one more in another, `reach` stages away at most."""
    for width in range(1, reach + 1):
        for at in range(1, len(cuts) - width):
            for step in (-1, 1):
                moved = shifted(cuts, at, at + width, step)
                if moved is not None:
                    yield moved
