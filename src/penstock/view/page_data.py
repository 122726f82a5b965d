"""The columns behind a page: numbers of every span and wait, as arrays that a browser reads without parsing text.

All are sorted by rank and start, so that what lies in view is found by halving: see `page.js`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from penstock.ir.ops import Op
from penstock.timeline import Timeline, Wait

Columns = dict[str, NDArray[Any]]
"""Name -> one value an entry. Times are in the page's unit."""

NOBODY = -1
"""The `source` of a span that no wait precedes."""


class Sorted(NamedTuple):
    """Columns with those of rank r from `first[r]` to `first[r + 1]`."""

    columns: Columns
    first: list[int]


class _Delay(NamedTuple):
    """How long an op was waited for: until its message left `source`, and while it was under way."""

    source: int
    waited: float
    transfer: float


def spans_of(timeline: Timeline, per_second: float) -> Sorted:
    """Returns the spans that take time.

    Args:
        timeline: what ran.
        per_second: the unit of the times, as how many of it are a second.
    """
    spans = [span for span in timeline.spans if span.end > span.start]
    spans.sort(key=lambda span: (span.rank, span.start))
    delays = _delays(timeline.waits)
    before = [delays.get((span.rank, span.op), _Delay(NOBODY, 0, 0)) for span in spans]
    columns = {
        **_ops(span.op for span in spans),
        "start": _times((span.start for span in spans), per_second),
        "end": _times((span.end for span in spans), per_second),
        "source": np.array([delay.source for delay in before], np.int16),
        "waited": _times((delay.waited for delay in before), per_second).astype(np.float32),
        "transfer": _times((delay.transfer for delay in before), per_second).astype(np.float32),
    }
    return Sorted(columns, _first([span.rank for span in spans], timeline.num_ranks))


def _delays(waits: Iterable[Wait]) -> dict[tuple[int, Op], _Delay]:
    """Returns (rank, op) -> how long it was waited for; of two messages the source of the later."""
    delays: dict[tuple[int, Op], _Delay] = {}
    for wait in waits:
        left = leaves(wait)
        before = delays.get((wait.rank, wait.op), _Delay(NOBODY, 0, 0))
        delays[wait.rank, wait.op] = _Delay(
            wait.source, before.waited + left - wait.start, before.transfer + wait.end - left
        )
    return delays


def leaves(wait: Wait) -> float:
    """Returns when waiting for the peer became waiting for the transfer."""
    return min(max(wait.sent, wait.start), wait.end)


def waits_of(timeline: Timeline, per_second: float) -> Sorted:
    """Returns what ranks waited for: a peer from `start` to `left`, its message from `left` to `end`."""
    waits = [wait for wait in timeline.waits if wait.end > wait.start]
    waits.sort(key=lambda wait: (wait.rank, wait.start))
    columns = {
        **_ops(wait.op for wait in waits),
        "source": np.array([wait.source for wait in waits], np.int16),
        "start": _times((wait.start for wait in waits), per_second),
        "left": _times((leaves(wait) for wait in waits), per_second),
        "end": _times((wait.end for wait in waits), per_second),
    }
    return Sorted(columns, _first([wait.rank for wait in waits], timeline.num_ranks))


def memory_of(timeline: Timeline, per_second: float, per_byte: float) -> Sorted:
    """Returns the bytes that ranks hold, as steps; each curve goes on to the end of the timeline."""
    curves = [[*curve, (timeline.makespan, curve[-1][1] if curve else 0)] for curve in timeline.memory]
    steps = [step for curve in curves for step in curve]
    columns = {
        "time": _times((seconds for seconds, _ in steps), per_second),
        "held": _times((held for _, held in steps), per_byte),
    }
    return Sorted(columns, [0, *np.cumsum([len(curve) for curve in curves]).tolist()])


def moments_of(timelines: Iterable[Timeline], per_second: float) -> NDArray[np.float64]:
    """Returns the times at which an op starts or ends on any of the timelines, ascending."""
    edges = [edge for timeline in timelines for span in timeline.spans for edge in (span.start, span.end)]
    times = np.unique(_times(edges, per_second))
    # What differs by rounding alone is one moment.
    keep = np.concatenate(([True], np.diff(times) > 1e-9 * times[-1])) if times.size else np.array([], bool)
    return times[keep]


def _ops(ops: Iterable[Op]) -> Columns:
    rows = np.array([tuple(op) for op in ops], np.int32).reshape(-1, 4)
    types = {"kind": np.int8, "stage": np.int16, "microbatch": np.int32, "replica": np.int8}
    return {name: column.astype(types[name]) for name, column in zip(Op._fields, rows.T, strict=True)}


def _first(ranks: Sequence[int], num_ranks: int) -> list[int]:
    found: list[int] = np.searchsorted(ranks, np.arange(num_ranks + 1)).tolist()
    return found


def _times(values: Iterable[float], per_unit: float) -> NDArray[np.float64]:
    return np.array([float(value) for value in values], np.float64) * per_unit
