"""A walk over all ranks decides who ever waits for good: ranks run straight lines, and some entries wait for others.

What is waited for lies on another rank, at or before some entry of it. Which rank moves first changes nothing about
where all of them end up, so one walk decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from penstock.ir.columns import Ints

NEVER = np.iinfo(np.int64).max
"""What no rank ever reaches."""


class Waits(NamedTuple):
    """Entry `entry` runs once rank `peer` has reached entry `until`: all entries before it have run there."""

    entry: Ints
    peer: Ints
    until: Ints

    @staticmethod
    def joined(waits: Sequence[Waits]) -> Waits:
        """Returns all of `waits`."""
        return Waits(*(np.concatenate(columns) for columns in zip(*waits, strict=True)))


class Walk:
    """How far the ranks have come.

    Attributes:
        reached: per rank the entry at which it stands, or its end.
    """

    def __init__(self, first: Ints, waits: Waits) -> None:
        """Stands at the start of ranks whose entries begin at `first`, with the end of the last behind them."""
        order = np.argsort(waits.entry, kind="stable")
        bounds = np.searchsorted(waits.entry[order], first)
        entries, peers, needed = (column[order].tolist() for column in waits)
        self._order: list[int] = order.tolist()
        self.reached: list[int] = first[:-1].tolist()
        self._bounds: list[int] = bounds.tolist()
        self._next = self._bounds[:-1]
        self._ends: list[int] = first[1:].tolist()
        self._entries: list[int] = entries
        self._peers: list[int] = peers
        self._needed: list[int] = needed
        self._waiting: list[list[int]] = [[] for _ in self._ends]

    def run(self) -> dict[int, int]:
        """Moves all ranks on until nobody can go on; returns rank -> index of the wait at which it stands for good."""
        reached, needed, peers, waiting, bounds = self.reached, self._needed, self._peers, self._waiting, self._bounds
        for ranks in waiting:
            ranks.clear()
        awake = list(range(len(reached)))
        while awake:
            rank = awake.pop()
            at, end = self._next[rank], bounds[rank + 1]
            while at < end and reached[peers[at]] >= needed[at]:
                at += 1
            self._next[rank] = at
            if at < end:
                waiting[peers[at]].append(rank)
                stands = self._entries[at]
            else:
                stands = self._ends[rank]
            if stands > reached[rank]:
                reached[rank] = stands
                awake += waiting[rank]
                waiting[rank].clear()
        return {
            rank: self._order[at] for rank, (at, end) in enumerate(zip(self._next, bounds[1:], strict=True)) if at < end
        }

    def release(self, rank: int) -> None:
        """Lets `rank` pass the wait at which it stands."""
        self._next[rank] += 1
