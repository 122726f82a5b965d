"""From what the ranks recorded of batches in a row to one Timeline of all of them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from penstock.ir.schedule import Schedule
from penstock.lowering.parts import Parts, lower_in_parts
from penstock.runtime.asynchronous.repeats import STEADY
from penstock.runtime.measured import measured_timeline
from penstock.runtime.recorder import StepRecord
from penstock.timeline import Timeline

Rows = Sequence[StepRecord]
"""One record a rank."""


def stretch_timeline(
    schedule: Schedule, parts: Parts, recorded: Sequence[Rows], offsets: list[float]
) -> Timeline | None:
    """Returns the timeline of the last batches in a row that were recorded, None where there is no such.

    Args:
        schedule: of one batch.
        parts: the program that ran: a fill, a ramp, the part that repeats, and the drain.
        recorded: the last runs of it, the latest last.
        offsets: seconds by which each rank's clock is ahead of rank 0's.
    """
    kept: list[tuple[int, Rows]] = []
    for rows in reversed(recorded):
        part = _part_of(parts, rows)
        if part > STEADY:  # a drain: what is before it is of an earlier run
            if kept:
                break
            continue
        kept.append((part, rows))
        if part == 0:
            break
    if not kept:
        return None
    kept.reverse()
    first = kept[0][0]
    long = lower_in_parts(schedule, first + len(kept), reduce_gradients=_reduces(parts))
    joined = []
    for rank in range(schedule.num_ranks):
        begins = [_begin(long, rank, first + at) - _begin(parts, rank, part) for at, (part, _) in enumerate(kept)]
        joined.append(_joined(begins, [rows[rank] for _, rows in kept]))
    return measured_timeline(long.program, joined, offsets)


def _part_of(parts: Parts, rows: Rows) -> int:
    """Returns which part a record is of."""
    rank, first = next((rank, record.ops[0][0]) for rank, record in enumerate(rows) if record.ops)
    return bisect_right(parts.ends[rank], first)


def _begin(parts: Parts, rank: int, part: int) -> int:
    return parts.span(rank, part)[0]


def _reduces(parts: Parts) -> bool:
    return any(entry.kind.name == "REDUCE_GRAD" for entries in parts.program.ranks for entry in entries)


def _joined(moved: Sequence[int], records: Sequence[StepRecord]) -> StepRecord:
    """Returns one record of several, the positions of each moved by so many."""
    each = list(zip(moved, records, strict=True))
    ops = [(at + by, asked, begin, end) for by, record in each for at, asked, begin, end in record.ops]
    sends = [(at + by, moment) for by, record in each for at, moment in record.sends]
    return StepRecord(records[0].start, records[-1].end, ops, sends)
