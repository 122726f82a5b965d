"""Timelines as Chrome trace events, for ui.perfetto.dev and chrome://tracing.

A timeline is a process, a rank is a thread in it. On a rank's track lie its ops, and between them what it
waited for, as events of the categories `waiting` and `transfer`. Each message is an asynchronous event on a
track of its channel, and an arrow from the op that made it to the op that took it. Times are microseconds.
Format: "Trace Event Format", Google 2016.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path

import msgspec

from penstock.ir.dependencies import TRAVELS, Value, consumed, produced
from penstock.ir.ops import COMPUTE, NO_MICROBATCH, Op
from penstock.notation.whole_file import write_whole
from penstock.timeline import Span, Timeline, Wait

Event = dict[str, object]

_SHORTEST_ARROW = 1e-3
"""An arrow leaves this many microseconds before the end of its op, so that it leaves from within it."""


def save_perfetto(timelines: Mapping[str, Timeline], path: str | Path) -> None:
    """Writes the trace of `timelines`, name -> timeline, to the file at `path`.

    Raises:
        UserError: the file cannot be written.
    """
    write_whole(path, msgspec.json.encode(trace_events(timelines)))


def trace_events(timelines: Mapping[str, Timeline]) -> dict[str, object]:
    """Returns the trace of `timelines` as plain values, ready for JSON."""
    numbers = count(1)
    events: list[Event] = []
    for process, (name, timeline) in enumerate(timelines.items()):
        events += _names(process, name, timeline.num_ranks)
        events += (_op_event(process, span) for span in timeline.spans)
        events += (event for wait in timeline.waits for event in _wait_events(process, wait))
        events += _message_events(process, timeline, numbers)
        events += _memory_events(process, timeline)
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def _names(process: int, name: str, num_ranks: int) -> Iterator[Event]:
    heading: Event = {"ph": "M", "pid": process, "tid": 0}
    yield heading | {"name": "process_name", "args": {"name": name}}
    yield heading | {"name": "process_sort_index", "args": {"sort_index": process}}
    for rank in range(num_ranks):
        heading = {"ph": "M", "pid": process, "tid": rank}
        yield heading | {"name": "thread_name", "args": {"name": f"rank {rank}"}}
        yield heading | {"name": "thread_sort_index", "args": {"sort_index": rank}}


def _op_event(process: int, span: Span) -> Event:
    category = "compute" if span.op.kind in COMPUTE else "communication"
    return _stretch(process, span.rank, start=span.start, end=span.end) | {
        "name": str(span.op),
        "cat": category,
        "args": _facts(span.op),
    }


def _wait_events(process: int, wait: Wait) -> Iterator[Event]:
    """Yields the wait for the peer, then the wait for its message, each if it took time."""
    sent = min(max(wait.sent, wait.start), wait.end)
    parts = (
        ("waiting", f"waiting for rank {wait.source}", wait.start, sent),
        ("transfer", f"transfer from rank {wait.source}", sent, wait.end),
    )
    for category, name, start, end in parts:
        if end > start:
            yield _stretch(process, wait.rank, start=start, end=end) | {
                "name": name,
                "cat": category,
                "args": {"before": str(wait.op), "source": wait.source, **_facts(wait.op)},
            }


def _message_events(process: int, timeline: Timeline, numbers: Iterator[int]) -> Iterator[Event]:
    makers = {value: span for span in timeline.spans if span.op.kind in COMPUTE for value in produced(span.op)}
    takers = {(span.rank, span.op): span for span in timeline.spans}
    num_stages = 1 + max((span.op.stage for span in timeline.spans), default=0)
    for channel, op, start, end in timeline.transmissions:
        number = next(numbers)
        message: Event = {
            "name": f"message {channel}",
            "cat": "message",
            "pid": process,
            "tid": channel.source,
            "id": number,
        }
        facts = {"source": channel.source, "target": channel.target, **_facts(op)}
        yield message | {"ph": "b", "ts": _microseconds(start), "args": facts}
        yield message | {"ph": "e", "ts": _microseconds(end)}
        maker = _maker(op, makers, num_stages)
        taker = takers.get((channel.target, op))
        if maker is not None and taker is not None:
            yield from _arrow(process, number, maker, taker)


def _maker(op: Op, makers: dict[Value, Span], num_stages: int) -> Span | None:
    """Returns the span that made what reaches `op` from another stage, if it is on the timeline."""
    needs = consumed(op, num_stages) if op.kind in COMPUTE else ()
    return next((makers.get(value) for value in needs if value.kind in TRAVELS), None)


def _arrow(process: int, number: int, maker: Span, taker: Span) -> Iterator[Event]:
    arrow: Event = {"name": "message", "cat": "flow", "id": number, "pid": process}
    leaves = max(_microseconds(maker.start), _microseconds(maker.end) - _SHORTEST_ARROW)
    yield arrow | {"ph": "s", "tid": maker.rank, "ts": leaves}
    yield arrow | {"ph": "f", "bp": "e", "tid": taker.rank, "ts": _microseconds(taker.start)}


def _memory_events(process: int, timeline: Timeline) -> Iterator[Event]:
    for rank, curve in enumerate(timeline.memory):
        for seconds, num_bytes in curve:
            yield {
                "name": f"memory of rank {rank}",
                "ph": "C",
                "pid": process,
                "tid": rank,
                "ts": _microseconds(seconds),
                "args": {"bytes": float(num_bytes)},
            }


def _stretch(process: int, rank: int, *, start: float, end: float) -> Event:
    begins = _microseconds(start)
    return {"ph": "X", "pid": process, "tid": rank, "ts": begins, "dur": _microseconds(end) - begins}


def _facts(op: Op) -> dict[str, object]:
    facts: dict[str, object] = {"kind": op.kind.name, "stage": op.stage}
    if op.microbatch != NO_MICROBATCH:
        facts["microbatch"] = op.microbatch
    return facts | ({"replica": op.replica} if op.replica else {})


def _microseconds(seconds: float) -> float:
    """Returns microseconds to the nanosecond, so that neighbours that touch do not overlap by rounding."""
    return round(float(seconds) * 1e6, 3)
