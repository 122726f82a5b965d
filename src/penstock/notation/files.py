"""The JSON file of a schedule, versioned and checked on load.

    {"format": "penstock.schedule", "version": 1, "name": "gpipe", "num_microbatches": 1,
     "weight_rule": "flush", "placement": [[0, 1]], "ranks": [["0F0", "0B0"], ["1F0", "1B0"]]}

`placement` has one row a replica, `ranks` one row a rank. Two fields are left out where they are empty: `overlapped`
has for each rank the positions of the ops that run as one pair with the op behind them, `keepers` for each rank the
rank that keeps what it offloads.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeVar

import msgspec

from penstock.errors import NotationError, ScheduleError, check_type
from penstock.ir.placement import Placement
from penstock.ir.schedule import Schedule, WeightRule
from penstock.notation.cells import parse_op
from penstock.notation.csv_files import schedule_from_csv
from penstock.notation.grid import parse_grid

FORMAT = "penstock.schedule"
VERSION = 1

Loaded = TypeVar("Loaded")

_READERS = {
    "penstock.plan": "penstock train --plan",
    "penstock.program": "penstock verify",
    "penstock.recording": "penstock trace",
}
"""Other format -> the command that takes its files."""


class _Heading(msgspec.Struct):
    format: str
    version: int


class _File(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    format: Literal["penstock.schedule"]
    version: int
    name: str
    num_microbatches: int
    weight_rule: WeightRule
    placement: list[list[int]]
    ranks: list[list[str]]
    overlapped: list[list[int]] = []
    keepers: list[int] = []


_HEADINGS, _FILES = msgspec.json.Decoder(_Heading), msgspec.json.Decoder(_File)
"""Made once: threads that are the first to decode a type, as ranks over loopback may be, crash in msgspec 0.22."""


def schedule_to_json(schedule: Schedule) -> str:
    """Returns `schedule` as JSON text."""
    check_type("schedule", schedule, Schedule, example="e.g. penstock.gpipe(4, 8)")
    file = _File(
        format="penstock.schedule",
        version=VERSION,
        name=schedule.name,
        num_microbatches=schedule.num_microbatches,
        weight_rule=schedule.weight_rule,
        placement=[list(row) for row in schedule.placement.table],
        ranks=[[str(op) for op in ops] for ops in schedule.ranks],
        overlapped=[list(pairs) for pairs in schedule.overlapped],
        keepers=list(schedule.keepers),
    )
    return msgspec.json.encode(file).decode()


def schedule_from_json(text: str | bytes) -> Schedule:
    """Returns the schedule written in `text`; the inverse of `schedule_to_json`.

    Raises:
        NotationError: not JSON, another format, another version, or a field that does not fit, and where.
    """
    check_type("text", text, str, bytes, example="what penstock.schedule_to_json returns")
    try:
        check_heading(text, FORMAT, VERSION, what="schedule")
        file = _FILES.decode(text)
        placement = Placement.replicas(*file.placement)
        ranks = tuple(
            tuple(parse_op(cell, rank=rank, placement=placement) for cell in cells)
            for rank, cells in enumerate(file.ranks)
        )
        return Schedule(
            file.name,
            placement,
            file.num_microbatches,
            ranks,
            file.weight_rule,
            overlapped=tuple(map(tuple, file.overlapped)),
            keepers=tuple(file.keepers),
        )
    except (msgspec.DecodeError, UnicodeError, RecursionError, ScheduleError) as error:
        raise NotationError(f"not a schedule file: {error}{remedy(error)}") from None


def load_schedule(path: str | Path) -> Schedule:
    """Returns the schedule in the file at `path`: JSON, a text grid, or CSV where it is called `*.csv`.

    Raises:
        NotationError: the file cannot be read or does not hold a schedule; the message names the file.
    """
    return load(path, schedule_in)


def schedule_in(data: bytes, path: Path) -> Schedule:
    """Returns the schedule that `data`, the content of the file at `path`, describes.

    Raises:
        NotationError: it describes none.
        UnicodeDecodeError: it is not text.
    """
    if is_json(data, path):
        return schedule_from_json(data)
    if path.suffix == ".csv":
        return schedule_from_csv(data.decode(), name=path.stem)
    return parse_grid(data.decode())


def is_json(data: bytes, path: Path) -> bool:
    """Whether `data`, the content of the file at `path`, is meant as JSON."""
    return path.suffix == ".json" or data.lstrip().startswith(b"{")


def load(path: str | Path, parse: Callable[[bytes, Path], Loaded]) -> Loaded:
    """Returns what `parse` makes of the content of the file at `path`.

    Raises:
        NotationError: the file cannot be read, or `parse` refuses it; the message names the file.
    """
    check_type("path", path, str, Path, example='e.g. "schedule.json"')
    path = Path(path)
    try:
        return parse(path.read_bytes(), path)
    except OSError as error:
        raise NotationError(f"cannot read {path}: {error.strerror}; name a file with a schedule") from None
    except UnicodeDecodeError:
        raise NotationError(f"{path} is not text; a schedule is JSON, a text grid or CSV") from None
    except NotationError as error:
        raise NotationError(f"{path}: {error}") from None


def format_of(text: str | bytes) -> str:
    """Returns which format the JSON in `text` says it has.

    Raises:
        msgspec.DecodeError: it is not JSON, or does not say.
    """
    return _HEADINGS.decode(text).format


def check_heading(text: str | bytes, expected: str, version: int, *, what: str) -> None:
    """Refuses JSON of another format than `expected`, or of another version than `version`.

    Raises:
        NotationError: another format or version.
        msgspec.DecodeError: not JSON, or neither is said.
    """
    heading = _HEADINGS.decode(text)
    if heading.format != expected:
        taken = f", which {_READERS[heading.format]} takes" if heading.format in _READERS else ""
        raise NotationError(f'the file says format "{heading.format}"{taken}; a {what} says "{expected}"')
    if heading.version != version:
        raise NotationError(
            f"the file has version {heading.version}; this penstock reads version {version}; write it "
            "again with this penstock, or read it with the one that wrote it"
        )


def remedy(error: Exception) -> str:
    """Returns what to do about `error` where its own words, as of text that is not JSON, do not say it."""
    says_where = isinstance(error, msgspec.ValidationError | ScheduleError)
    return "" if says_where else "; the file is damaged or no JSON, write it again"
