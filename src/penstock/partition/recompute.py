"""Which layers of a stage run their forward again: the fewest seconds that bring it within its memory.

A knapsack. Each layer has two choices, to keep its activations or to take the seconds of its forward once more; per
microbatch in flight the latter saves bytes. Layer by layer the sets of choices are extended, and a set goes when
another one saves as much in as little time (Nemhauser & Ullmann 1969). Equal layers leave few sets.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

_MOST = 4096
"""Sets that are kept; more come up only where no two layers are alike. Then of neighbours every other is dropped."""


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


_NOTHING = Choice(0, 0, ())


def choices(layers: Iterable[tuple[int, float, float]]) -> Iterator[list[Choice]]:
    """Yields after each layer the sets among the layers so far that none beats, the quickest first.

    Args:
        layers: (index, seconds of running it again, bytes that this saves).
    """
    kept = [_NOTHING]
    for layer, seconds, saved in layers:
        if saved > 0:
            more = [Choice(one.seconds + seconds, one.saved + saved, (*one.layers, layer)) for one in kept]
            kept = _undominated(kept + more)
        yield kept


def cheapest(sets: list[Choice], saving: float) -> Choice | None:
    """Returns the quickest of these sets that saves so many bytes a microbatch; None where none does."""
    if saving <= 0:
        return _NOTHING
    low, high = 0, len(sets)
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if sets[middle].saved < saving * (1 - 1e-12) else (low, middle)
    return sets[low] if low < len(sets) else None


def _undominated(sets: list[Choice]) -> list[Choice]:
    kept: list[Choice] = []
    for one in sorted(sets, key=lambda one: (one.seconds, -one.saved)):
        if not kept or one.saved > kept[-1].saved:
            kept.append(one)
    while len(kept) > _MOST:
        kept = [*kept[:-1:2], kept[-1]]
    return kept
