"""The columns behind a page: numbers of every bar and wait, as arrays that a browser reads without parsing text."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from penstock.ir.ops import Op, OpKind
from penstock.timeline import Span, Timeline, Wait

Columns = dict[str, NDArray[Any] | list[str]]
"""Name -> one value a bar. Times are in the page's unit."""

NOBODY = -1
"""The `source` of a bar that no wait precedes."""


class _Delay(NamedTuple):
    """How long an op was waited for: until its message left `source`, and while it was under way."""

    source: int
    waited: float
    transfer: float


def bars_of(timeline: Timeline, per_second: float) -> dict[OpKind, Columns]:
    """Returns for each kind of op that takes time its bars, by rank and start.

    Args:
        timeline: what ran.
        per_second: the unit of the times, as how many of it are a second.
    """
    delays = _delays(timeline.waits)
    spans: dict[OpKind, list[Span]] = defaultdict(list)
    for span in timeline.spans:
        if span.end > span.start:
            spans[span.op.kind].append(span)
    return {kind: _bars(spans[kind], delays, per_second) for kind in sorted(spans)}


def _bars(spans: Sequence[Span], delays: dict[tuple[int, Op], _Delay], per_second: float) -> Columns:
    before = [delays.get((span.rank, span.op), _Delay(NOBODY, 0, 0)) for span in spans]
    start = _times((span.start for span in spans), per_second)
    end = _times((span.end for span in spans), per_second)
    return {
        "rank": np.array([span.rank for span in spans], np.int16),
        "stage": np.array([span.op.stage for span in spans], np.int16),
        "microbatch": np.array([span.op.microbatch for span in spans], np.int32),
        "start": start,
        "end": end,
        "length": (end - start).astype(np.float32),
        "source": np.array([delay.source for delay in before], np.int16),
        "waited": _times((delay.waited for delay in before), per_second).astype(np.float32),
        "transfer": _times((delay.transfer for delay in before), per_second).astype(np.float32),
    }


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


def waits_of(timeline: Timeline, per_second: float) -> tuple[Columns, Columns]:
    """Returns what ranks waited for: peers, and transfers."""
    waiting = [(wait, wait.start, leaves(wait)) for wait in timeline.waits if leaves(wait) > wait.start]
    transfer = [(wait, leaves(wait), wait.end) for wait in timeline.waits if wait.end > leaves(wait)]
    return _waits(waiting, per_second), _waits(transfer, per_second)


def _waits(parts: Sequence[tuple[Wait, float, float]], per_second: float) -> Columns:
    return {
        "rank": np.array([wait.rank for wait, _, _ in parts], np.int16),
        "source": np.array([wait.source for wait, _, _ in parts], np.int16),
        "op": [str(wait.op) for wait, _, _ in parts],
        "start": _times((start for _, start, _ in parts), per_second),
        "end": _times((end for _, _, end in parts), per_second),
    }


def moments_of(timelines: Iterable[Timeline], per_second: float) -> NDArray[np.float64]:
    """Returns the times at which an op starts or ends on any of the timelines, ascending."""
    edges = [edge for timeline in timelines for span in timeline.spans for edge in (span.start, span.end)]
    times = np.unique(_times(edges, per_second))
    # What differs by rounding alone is one moment.
    keep = np.concatenate(([True], np.diff(times) > 1e-9 * times[-1])) if times.size else np.array([], bool)
    return times[keep]


def _times(values: Iterable[float], per_second: float) -> NDArray[np.float64]:
    return np.array([float(value) for value in values], np.float64) * per_second
