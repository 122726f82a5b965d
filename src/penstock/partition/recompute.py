"""Which layers of a stage run their forward again: the fewest seconds that bring it within its memory.

A knapsack. Each layer has two choices, to keep its activations or to take the seconds of its forward once more; per
microbatch in flight the latter saves bytes. Layer by layer the sets of choices are extended, and a set goes when
another one saves as much in as little time (Nemhauser & Ullmann 1969). Equal layers leave few sets.

    from layer 3:    {}, {3}    ->    {}, {4}, {3, 4}    ->    …

Stages that begin at one layer share the sets, wherever they end and whatever rank they are on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from penstock.simulator.orders import Floats, Ints

_MOST = 512
"""Sets that are kept; more come up only where many layers differ. Then of neighbours every other is dropped."""

_ROUNDING = 1e-12


class Choice(NamedTuple):
    """A set of layers that run their forward again.

    Attributes:
        seconds: what that takes.
        saved: bytes saved for one microbatch.
        layers: the layers.
    """

    seconds: float
    saved: float
    layers: tuple[int, ...]


NOTHING = Choice(0, 0, ())


class Sets(NamedTuple):
    """The sets among some layers that none beats; the quickest, which saves least, first.

    Attributes:
        seconds: of each set.
        saved: bytes of each set.
        origin: of each its number among the sets without the last layer.
        taken: of each whether the last layer is in it.
    """

    seconds: Floats
    saved: Floats
    origin: Ints
    taken: npt.NDArray[np.bool_]

    def saving(self, needed: Floats | float) -> Ints:
        """Returns the numbers of the quickest sets that save so many bytes; one too many where none does."""
        found: Ints = np.searchsorted(self.saved, np.asarray(needed) * (1 - _ROUNDING))
        return found


class Knapsack:
    """The sets of layers worth running again, made as far as they are asked for.

    Args:
        seconds: of running each layer again.
        saved: bytes that this saves, for one microbatch.
    """

    def __init__(self, seconds: Sequence[float], saved: Sequence[float]) -> None:
        self._layers = list(zip(seconds, saved, strict=True))
        self._from: dict[int, list[Sets]] = {}

    def sets(self, first: int, last: int) -> Sets:
        """Returns the sets among layers `first` to `last - 1`."""
        made = self._from.setdefault(first, [_EMPTY])
        while len(made) <= last - first:
            made.append(_extended(made[-1], *self._layers[first + len(made) - 1]))
        return made[last - first]

    def cheapest(self, first: int, last: int, needed: float) -> Choice | None:
        """Returns the quickest set among these layers that saves `needed` bytes; None where none does."""
        if needed <= 0:
            return NOTHING
        sets = self.sets(first, last)
        at = int(sets.saving(needed))
        if at == len(sets.saved):
            return None
        return Choice(float(sets.seconds[at]), float(sets.saved[at]), self._members(first, last, at))

    def _members(self, first: int, last: int, at: int) -> tuple[int, ...]:
        layers = []
        for layer in range(last - 1, first - 1, -1):
            sets = self.sets(first, layer + 1)
            if sets.taken[at]:
                layers.append(layer)
            at = int(sets.origin[at])
        return tuple(reversed(layers))


_EMPTY = Sets(np.zeros(1), np.zeros(1), np.zeros(1, np.int64), np.zeros(1, bool))


def _extended(sets: Sets, seconds: float, saved: float) -> Sets:
    """Returns the sets with one layer more to choose."""
    count = len(sets.saved)
    if saved <= 0:
        return Sets(sets.seconds, sets.saved, np.arange(count), np.zeros(count, bool))
    both = np.concatenate([sets.seconds, sets.seconds + seconds]), np.concatenate([sets.saved, sets.saved + saved])
    order = np.lexsort((-both[1], both[0]))
    before = np.maximum.accumulate(both[1][order])
    kept = order[np.concatenate([[True], before[1:] > before[:-1]])]
    while len(kept) > _MOST:
        kept = np.concatenate([kept[:-1:2], kept[-1:]])
    return Sets(both[0][kept], both[1][kept], kept % count, kept >= count)
