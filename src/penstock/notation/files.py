"""The JSON file of a schedule, versioned and checked on load.

    {"format": "penstock.schedule", "version": 1, "name": "gpipe", "num_microbatches": 1,
     "weight_rule": "flush", "placement": [[0, 1]], "ranks": [["0F0", "0B0"], ["1F0", "1B0"]]}

`placement` has one row a replica, `ranks` one row a rank. Two fields are left out where they are empty: `overlapped`
has for each rank the positions of the ops that run as one pair with the op behind them, `keepers` for each rank the
rank that keeps what it offloads.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from penstock.errors import NotationError, ScheduleError
from penstock.ir.placement import Placement
from penstock.ir.schedule import Schedule, WeightRule
from penstock.notation.cells import parse_op
from penstock.notation.csv_files import schedule_from_csv
from penstock.notation.grid import parse_grid

FORMAT = "penstock.schedule"
VERSION = 1


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


def schedule_to_json(schedule: Schedule) -> str:
    """Returns `schedule` as JSON text."""
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
    try:
        heading = msgspec.json.decode(text, type=_Heading)
        if heading.format != FORMAT:
            raise NotationError(f'the file says format "{heading.format}"; a schedule says "{FORMAT}"')
        if heading.version != VERSION:
            raise NotationError(
                f"the file has version {heading.version}; this penstock reads version {VERSION}; write it "
                "again with this penstock, or read it with the one that wrote it"
            )
        file = msgspec.json.decode(text, type=_File)
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
        raise NotationError(f"not a schedule file: {error}") from None


def load_schedule(path: str | Path) -> Schedule:
    """Returns the schedule in the file at `path`: JSON, a text grid, or CSV where it is called `*.csv`.

    Raises:
        NotationError: the file cannot be read or does not hold a schedule; the message names the file.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
        if path.suffix == ".json" or data.lstrip().startswith(b"{"):
            return schedule_from_json(data)
        if path.suffix == ".csv":
            return schedule_from_csv(data.decode(), name=path.stem)
        return parse_grid(data.decode())
    except OSError as error:
        raise NotationError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise NotationError(f"{path} is not text; a schedule is JSON, a text grid or CSV") from None
    except NotationError as error:
        raise NotationError(f"{path}: {error}") from None
