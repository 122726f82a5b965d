"""Lowering of batches that follow one another without a flush: one program, in parts that run call by call.

    part 0 (fill)        part 1, 2, … (one batch each)      last part (drain)
    F0 F1 B0 S0 F2 B1 S1 │ F3 B2 S2 F4 B3 S3 F5 B4 S4 │ …  │ B5 S5

A rank may pause at the end of a part, and all ranks may meet there. So no message that has been sent may need what its
receiver does only afterwards, and no receive is posted before its sender knows that there is a next batch:

1. A receive belongs to the part of its send. Where `lower` posts it later, it is posted at the end of that part; where
   it posts it earlier, at the beginning.
2. Channels stay first in, first out: sends come in the order of parts, and so do receives then.

Where a rank would need something before the part in which it is sent, the verifier refuses the program: no receive is
posted before the op.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from penstock.ir.dependencies import Value, carried
from penstock.ir.ops import ORDERED, RECEIVES, SENDS, Transfer
from penstock.ir.program import Instruction, Program
from penstock.ir.schedule import Schedule
from penstock.lowering.insertion import lower
from penstock.schedules.unbroken import part_ends, unbroken


@dataclass(frozen=True)
class Parts:
    """A program of several batches, and where each rank pauses in it.

    Attributes:
        program: of all batches, without a flush in between.
        ends: per rank the position behind each part; one part a batch, and the drain.
    """

    program: Program
    ends: tuple[tuple[int, ...], ...]

    def span(self, rank: int, part: int) -> tuple[int, int]:
        """Returns where `part` begins on `rank`, and the position behind its end."""
        return (self.ends[rank][part - 1] if part else 0), self.ends[rank][part]


def lower_in_parts(schedule: Schedule, times: int, *, reduce_gradients: bool = False) -> Parts:
    """Returns `unbroken(schedule, times)` as a program in parts.

    Args:
        schedule: of one batch.
        times: how many batches.
        reduce_gradients: as for `lower`.

    Raises:
        ScheduleError: as for `unbroken`.
    """
    whole = unbroken(schedule, times)
    ends = part_ends(schedule, times)
    program = lower(whole, reduce_gradients=reduce_gradients)
    homes = _homes(program, ends)
    ranks, bounds = [], []
    for entries, own in zip(program.ranks, ends, strict=True):
        parts = _split(entries, own, homes)
        ranks.append(tuple(entry for part in parts for entry in part))
        bounds.append(tuple(accumulate(map(len, parts))))
    return Parts(Program(whole, tuple(ranks)), tuple(bounds))


def _homes(program: Program, ends: Sequence[Sequence[int]]) -> dict[Value, int]:
    """Returns for every value that travels the part in which it is sent."""
    homes = {}
    for entries, own in zip(program.ranks, ends, strict=True):
        done = 0
        for entry in entries:
            done += entry.kind in ORDERED
            if isinstance(entry, Transfer) and entry.kind in SENDS:
                homes[carried(entry)] = bisect_right(own, done - 1)
    return homes


def _split(entries: Sequence[Instruction], ends: Sequence[int], homes: dict[Value, int]) -> list[list[Instruction]]:
    """Returns a rank's instructions part by part, each receive in that of its send."""
    early: list[list[Instruction]] = [[] for _ in ends]
    within: list[list[Instruction]] = [[] for _ in ends]
    late: list[list[Instruction]] = [[] for _ in ends]
    done = 0
    for entry in entries:
        done += entry.kind in ORDERED
        if not (isinstance(entry, Transfer) and entry.kind in RECEIVES):
            within[bisect_right(ends, done - 1)].append(entry)
            continue
        here = min(bisect_right(ends, done), len(ends) - 1)  # it is posted for the op that follows
        home = homes[carried(entry)]
        (late if home < here else early if home > here else within)[home].append(entry)
    return [[*first, *middle, *last] for first, middle, last in zip(early, within, late, strict=True)]
