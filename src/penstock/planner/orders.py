"""Orders of ops as the planner uses them: made once for each shape, with what ranks keep at their fullest moments."""

from __future__ import annotations

from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np

from penstock.ir.placement import Placement
from penstock.ir.schedule import Schedule
from penstock.schedules import named_schedule
from penstock.simulator.orders import Floats, Ints, words_of


class Moments(NamedTuple):
    """What a rank keeps at moments of which none is emptier than another for certain; [moments, its stages]."""

    stages: tuple[int, ...]
    live: Floats
    deferred: Floats

    def most(self, kept: Floats, deferred: Floats) -> float:
        """Returns the most bytes that microbatches in flight take, if one of a stage takes so many."""
        at = list(self.stages)
        return float((self.live @ kept[at] + self.deferred @ deferred[at]).max(initial=0))


class Order:
    """A schedule with its words and moments."""

    def __init__(self, schedule: Schedule, words: Ints, lengths: Ints) -> None:
        self.schedule, self.words, self.lengths = schedule, words, lengths

    @property
    def placement(self) -> Placement:
        """Where stages lie."""
        return self.schedule.placement

    @cached_property
    def ranks(self) -> Ints:
        """Of each stage its rank."""
        return np.array(self.placement.table[0])

    @cached_property
    def moments(self) -> tuple[Moments, ...]:
        """Of each rank."""
        words = (row[:length] for row, length in zip(self.words, self.lengths, strict=True))
        return tuple(_moments(word, self.placement.stages_of(rank)) for rank, word in enumerate(words))


@lru_cache(maxsize=512)
def order_of(name: str, num_ranks: int, num_microbatches: int, num_chunks: int) -> Order:
    """Returns the order of a schedule's ops.

    Raises:
        ScheduleError: sizes that the schedule is not defined for.
    """
    schedule = named_schedule(name, num_ranks=num_ranks, num_microbatches=num_microbatches, num_chunks=num_chunks)
    spelled = words_of(schedule)
    if spelled is None:
        raise AssertionError(f"{name} takes microbatches out of turn")
    return Order(schedule, *spelled)


_LIVE, _DEFERRED = np.array([1, -1, -1, 0]), np.array([0, 0, 1, -1])
"""How F, B, I and W change what is kept from F to B or I, and from I to W."""


def _moments(word: Ints, stages: tuple[int, ...]) -> Moments:
    stage, kind = word // 4, word % 4
    own = stage[:, None] == np.array(stages)
    rows = np.concatenate([_LIVE[kind, None] * own, _DEFERRED[kind, None] * own], axis=1).cumsum(axis=0)
    rows = np.ascontiguousarray(rows[(kind == 0) | (kind == 2)].astype(np.int32))
    if len(rows):
        # Rows as single values, of which equal ones are found faster; the steady phase repeats a few.
        single = rows.view([("", np.int32)] * rows.shape[1])[:, 0]
        rows = rows[np.unique(single.view(f"V{rows.itemsize * rows.shape[1]}"), return_index=True)[1]]
    return Moments(stages, rows[:, : len(stages)].astype(float), rows[:, len(stages) :].astype(float))
