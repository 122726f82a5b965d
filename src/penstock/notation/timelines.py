"""The JSON files of timelines, versioned and checked on load.

One timeline, with spans by rank, one line a rank:

    {"format": "penstock.timeline", "version": 1, "spans": [
      [["0F0", 0, 1], ["0B0", 3, 5]],
      [["1F0", 1, 2], ["1B0", 2, 3]]],
     "waits": [[1, "1F0", 0, 1, 0, 1]], "transmissions": [[0, 1, "F", "1F0", 1, 1]], "memory": []}

A wait is rank, op, start, end, source, sent; a transmission is source, target, the channel's kind, op, start,
end; memory is per rank a list of (seconds, bytes). A recording is a schedule with its timelines by name, as a
training run leaves it behind:

    {"format": "penstock.recording", "version": 1, "schedule": {…},
     "timelines": {"planned": {…}, "measured": {…}}}
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Literal

import msgspec

from penstock.errors import NotationError
from penstock.ir.ops import NO_MICROBATCH, Channel, Op, OpKind
from penstock.ir.schedule import Schedule
from penstock.notation.files import check_heading, schedule_from_json, schedule_to_json
from penstock.notation.whole_file import write_whole
from penstock.timeline import Span, Timeline, Transmission, Wait

TIMELINE_FORMAT = "penstock.timeline"
RECORDING_FORMAT = "penstock.recording"
VERSION = 1

RECORDING_FILE = "timelines.json"
"""The name of a run's recording in the run's directory."""

PLANNED, MEASURED = "planned", "measured"
"""The names of the two timelines that a training run records."""

Number = int | float
_OP = re.compile(r"(\d{1,9})([A-Z_]+)(\d{1,9})?(?:@(\d{1,9}))?")


@dataclass(frozen=True)
class Recording:
    """A schedule and timelines of it by name, such as `planned` and `measured`."""

    schedule: Schedule
    timelines: Mapping[str, Timeline]


class _Timeline(msgspec.Struct, forbid_unknown_fields=True):
    format: Literal["penstock.timeline"]
    version: int
    spans: list[list[tuple[str, Number, Number]]]
    waits: list[tuple[int, str, Number, Number, int, Number]]
    transmissions: list[tuple[int, int, str, str, Number, Number]]
    memory: list[list[tuple[Number, Number]]]


class _Recording(msgspec.Struct, forbid_unknown_fields=True):
    format: Literal["penstock.recording"]
    version: int
    schedule: msgspec.Raw
    timelines: dict[str, msgspec.Raw]


_TIMELINES, _RECORDINGS = msgspec.json.Decoder(_Timeline), msgspec.json.Decoder(_Recording)
"""Made once, for threads: see notation/files.py."""


def timeline_to_json(timeline: Timeline) -> str:
    """Returns `timeline` as JSON text; times that are fractions are rounded to floats."""
    fields: dict[str, Iterable[object]] = {
        "spans": [[(str(op), start, end) for _, op, start, end in row] for row in timeline.by_rank],
        "waits": [(rank, str(op), *rest) for rank, op, *rest in timeline.waits],
        "transmissions": [
            (channel.source, channel.target, channel.kind.name, str(op), start, end)
            for channel, op, start, end in timeline.transmissions
        ],
        "memory": timeline.memory,
    }
    heading = f'{{"format": "{TIMELINE_FORMAT}", "version": {VERSION}'
    return ",\n ".join([heading, *(f'"{name}": {_lines(rows)}' for name, rows in fields.items())]) + "}"


def timeline_from_json(text: str | bytes) -> Timeline:
    """Returns the timeline written in `text`; the inverse of `timeline_to_json`.

    Raises:
        NotationError: not JSON, another format or version, or a field that does not fit, with its place.
    """
    try:
        check_heading(text, TIMELINE_FORMAT, VERSION, what="timeline")
        file = _TIMELINES.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise NotationError(f"not a timeline: {error}") from None
    timeline = Timeline(
        len(file.spans),
        tuple(Span(rank, _op(op), *times) for rank, row in enumerate(file.spans) for op, *times in row),
        tuple(Wait(rank, _op(op), *rest) for rank, op, *rest in file.waits),  # type: ignore[arg-type]
        tuple(
            Transmission(Channel(source, target, _kind(kind, op)), _op(op), start, end)
            for source, target, kind, op, start, end in file.transmissions
        ),
        tuple(tuple(curve) for curve in file.memory),
    )
    _check(timeline)
    return timeline


def recording_to_json(recording: Recording) -> str:
    """Returns `recording` as JSON text."""
    timelines = ",\n".join(
        f"{msgspec.json.encode(name).decode()}: {timeline_to_json(timeline)}"
        for name, timeline in recording.timelines.items()
    )
    return (
        f'{{"format": "{RECORDING_FORMAT}", "version": {VERSION},\n'
        f'"schedule": {schedule_to_json(recording.schedule)},\n"timelines": {{\n{timelines}}}}}\n'
    )


def recording_from_json(text: str | bytes) -> Recording:
    """Returns the recording written in `text`; the inverse of `recording_to_json`.

    Raises:
        NotationError: as `timeline_from_json`, or a timeline of another number of ranks than the schedule.
    """
    try:
        check_heading(text, RECORDING_FORMAT, VERSION, what="recording")
        file = _RECORDINGS.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise NotationError(f"not a recording of timelines: {error}") from None
    schedule = schedule_from_json(bytes(file.schedule))
    timelines = {}
    for name, raw in file.timelines.items():
        try:
            timelines[name] = timeline_from_json(bytes(raw))
        except NotationError as error:
            raise NotationError(f'timeline "{name}": {error}') from None
        if timelines[name].num_ranks != schedule.num_ranks:
            found = timelines[name].num_ranks
            raise NotationError(f'timeline "{name}" has {found} ranks, its schedule {schedule.num_ranks}')
    return Recording(schedule, timelines)


def save_recording(recording: Recording, path: str | Path) -> None:
    """Writes `recording` to the file at `path`, whole or not at all.

    Raises:
        NotationError: the file cannot be written.
    """
    write_whole(path, recording_to_json(recording))


def load_recording(path: str | Path) -> Recording:
    """Returns the recording in the file at `path`.

    Raises:
        NotationError: the file cannot be read or does not hold a recording; the message names the file.
    """
    try:
        return recording_from_json(Path(path).read_bytes())
    except OSError as error:
        raise NotationError(f"cannot read {path}: {error.strerror}") from None
    except NotationError as error:
        raise NotationError(f"{path}: {error}") from None


def _lines(rows: Iterable[object]) -> str:
    """Returns a JSON list with one row a line."""
    # A simulation in fractions is exact; JSON has no fractions.
    lines = [msgspec.json.encode(row, enc_hook=float).decode() for row in rows]
    return "[" + "".join("\n  " + line + "," for line in lines).removesuffix(",") + "]"


@lru_cache(maxsize=1 << 16)
def _op(text: str) -> Op:
    match = _OP.fullmatch(text)
    if match is None:
        raise NotationError(f'"{text}" is not an op; write stage, kind, microbatch, e.g. 0F3')
    stage, kind, microbatch, replica = match.groups()
    return Op(_kind(kind, text), int(stage), int(microbatch or NO_MICROBATCH), int(replica or 0))


def _kind(name: str, place: str) -> OpKind:
    if name not in OpKind.__members__:
        raise NotationError(f'"{name}" of {place} is no kind of op; kinds are {", ".join(OpKind.__members__)}')
    return OpKind[name]


def _check(timeline: Timeline) -> None:
    """Refuses what no run can have been: no ranks, ranks out of range, ends before starts."""
    ranks = range(timeline.num_ranks)
    if not ranks:
        raise NotationError("spans are empty; a timeline has a list of spans for every rank")
    if len(timeline.memory) not in (0, timeline.num_ranks):
        raise NotationError(f"memory has {len(timeline.memory)} curves for {timeline.num_ranks} ranks")
    entries: Iterable[Span | Wait | Transmission] = chain(timeline.spans, timeline.waits, timeline.transmissions)
    for entry in entries:
        if entry.end < entry.start:
            raise NotationError(f"{entry.op} ends at {entry.end}, before it starts at {entry.start}")
    named = {wait.rank for wait in timeline.waits} | {wait.source for wait in timeline.waits}
    named |= {rank for transmission in timeline.transmissions for rank in transmission.channel[:2]}
    foreign = sorted(named - set(ranks))
    if foreign:
        raise NotationError(f"rank {foreign[0]} is named, but there are {timeline.num_ranks} ranks, from 0")
