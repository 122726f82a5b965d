"""Program: a schedule after lowering. What is verified and simulated is what runs."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from penstock.ir.columns import Columns, Ints, columns_of
from penstock.ir.links import Links, links_of
from penstock.ir.ops import ORDERED, Channel, Op, Transfer
from penstock.ir.schedule import Schedule

Instruction = Op | Transfer
"""One entry of a program: an op of its rank, or one end of a message."""


@dataclass(frozen=True)
class Program:
    """Per rank the ordered instructions, with the schedule they came from.

    Attributes:
        schedule: the order of compute ops that every rank keeps.
        ranks: per rank its compute ops, sends, posted receives and reductions in order.
    """

    schedule: Schedule
    ranks: tuple[tuple[Instruction, ...], ...]

    @property
    def num_ranks(self) -> int:
        """Number of ranks, p."""
        return len(self.ranks)

    @cached_property
    def columns(self) -> Columns:
        """All instructions as columns."""
        return columns_of(self.ranks)

    @cached_property
    def links(self) -> Links:
        """Which receive meets which send, and which op takes what."""
        return links_of(self)

    @cached_property
    def channels(self) -> tuple[Channel, ...]:
        """The channels in use, sorted: the order in which a transport opens them."""
        used = {entry.channel for entries in self.ranks for entry in entries if isinstance(entry, Transfer)}
        return tuple(sorted(used))

    @cached_property
    def pairs(self) -> tuple[frozenset[int], ...]:
        """Per rank the positions of the instructions that start an overlapped pair; its other op follows at once."""
        overlapped = self.schedule.overlapped
        if not overlapped:
            return (frozenset(),) * self.num_ranks
        found = []
        for entries, starts in zip(self.ranks, overlapped, strict=False):
            ordered = [position for position, entry in enumerate(entries) if entry.kind in ORDERED]
            found.append(frozenset(ordered[start] for start in starts if start < len(ordered)))
        return tuple(found)

    @cached_property
    def ends_pair(self) -> Ints:
        """For every instruction 1 if it ends an overlapped pair, else 0."""
        ends = np.zeros(len(self.columns.kind) + 1, np.int64)
        for first, starts in zip(self.columns.first, self.pairs, strict=False):
            ends[[first + start + 1 for start in starts]] = 1
        return ends[:-1]

    @cached_property
    def digest(self) -> str:
        """A hash of everything that decides what runs; ranks compare it before the first step."""
        schedule = self.schedule
        numbers = array("q", [schedule.num_microbatches])
        for row in (*schedule.placement.table, *schedule.overlapped, schedule.keepers):
            numbers.extend((len(row), *row))
        for entries in self.ranks:
            numbers.append(len(entries))
            for entry in entries:
                numbers.extend(entry[:4])
                if isinstance(entry, Transfer):
                    numbers.extend(entry.channel)
        sha = hashlib.sha256(schedule.weight_rule.value.encode())
        sha.update(numbers.tobytes())
        return sha.hexdigest()

    def instructions(self) -> Iterator[tuple[int, int, Instruction]]:
        """Yields `(rank, position, instruction)` for every instruction, rank by rank."""
        for rank, entries in enumerate(self.ranks):
            for position, entry in enumerate(entries):
                yield rank, position, entry

    def __str__(self) -> str:
        lines = [f"program of {self.schedule.name}: {self.num_ranks} ranks"]
        lines += [f"rank {rank}: " + " ".join(map(str, entries)) for rank, entries in enumerate(self.ranks)]
        return "\n".join(lines)
