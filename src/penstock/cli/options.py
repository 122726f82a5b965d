"""What the commands share: how options are parsed, and how a schedule is named on the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro
from rich.console import Console

from penstock.errors import ScheduleError, UserError
from penstock.ir.program import Program
from penstock.ir.schedule import Schedule
from penstock.notation import load_schedule, load_schedule_or_program
from penstock.schedules import named_schedule
from penstock.schedules.registry import ALIASES, SCHEDULES, Given, canonical_name
from penstock.schedules.sizes import check_sizes

Options = TypeVar("Options")

AUTO = "auto"
"""What stands for a search in the place of a schedule's name."""

Subject = Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="NAME|FILE", help_behavior_hint="")]
"""A schedule by name, "auto" for one found by search, or a file with one."""

_NUM_RANKS, _NUM_MICROBATCHES = 4, 8
"""The sizes of a schedule given by name, where none are asked for."""

# The constructors are named, because tyro would offer "None" as a value and explain why a word is not None.
Ranks = Annotated[
    int | None,
    tyro.conf.arg(aliases=["-p"], metavar="INT", constructor=int, help_behavior_hint=f"(default: {_NUM_RANKS})"),
]
Microbatches = Annotated[
    int | None,
    tyro.conf.arg(aliases=["-m"], metavar="INT", constructor=int, help_behavior_hint=f"(default: {_NUM_MICROBATCHES})"),
]
Chunks = Annotated[
    int | None,
    tyro.conf.arg(aliases=["-v"], metavar="INT", constructor=int, help_behavior_hint="(default: the schedule's own)"),
]
OutputFile = Annotated[Path | None, tyro.conf.arg(metavar="FILE", constructor=Path, help_behavior_hint="")]
InputFile = Annotated[Path | None, tyro.conf.arg(metavar="FILE", constructor=Path, help_behavior_hint="")]
OptionalSeconds = Annotated[float | None, tyro.conf.arg(metavar="FLOAT", constructor=float, help_behavior_hint="")]


def parse(options: type[Options], argv: list[str], *, command: str) -> Options:
    """Returns `options` as `argv` fills them; a mistake or `--help` ends the program, as tyro does it."""
    return tyro.cli(options, args=argv, prog=f"penstock {command}")


def read_schedule(
    subject: str,
    *,
    num_ranks: int | None,
    num_microbatches: int | None,
    num_chunks: int | None = None,
    given: Callable[[int], Given] | None = None,
) -> Schedule:
    """Returns the schedule called `subject`, or the one in the file at `subject` (JSON, text grid or CSV).

    Args:
        subject: a name or a path.
        num_ranks: p of a schedule given by name; None means the default.
        num_microbatches: m, likewise.
        num_chunks: v, likewise.
        given: number of ranks -> what a schedule whose order depends on costs is found for.

    Raises:
        UserError: no such schedule or file, a file that holds none, or sizes that contradict the file.
    """
    sizes = (num_ranks, num_microbatches, num_chunks)
    schedule = _by_name(subject, *sizes, given)
    if schedule is None:
        schedule = load_schedule(subject)
        _check_sizes(schedule, *sizes, path=subject)
    return schedule


def read_schedule_or_program(
    subject: str, *, num_ranks: int | None, num_microbatches: int | None, num_chunks: int | None
) -> Schedule | Program:
    """Returns what `read_schedule` does, or the program in the file at `subject`.

    Raises:
        UserError: as `read_schedule`.
    """
    sizes = (num_ranks, num_microbatches, num_chunks)
    found: Schedule | Program | None = _by_name(subject, *sizes)
    if found is None:
        found = load_schedule_or_program(subject)
        _check_sizes(found.schedule if isinstance(found, Program) else found, *sizes, path=subject)
    return found


def _by_name(
    subject: str,
    num_ranks: int | None,
    num_microbatches: int | None,
    num_chunks: int | None,
    given: Callable[[int], Given] | None = None,
) -> Schedule | None:
    """Returns the schedule called `subject`, or None where that can only be a file."""
    if subject == AUTO:
        return _found(num_ranks, num_microbatches, num_chunks, given)
    if subject.replace("-", "_") in SCHEDULES or subject in ALIASES:
        ranks = _NUM_RANKS if num_ranks is None else num_ranks
        microbatches = _NUM_MICROBATCHES if num_microbatches is None else num_microbatches
        check_sizes(canonical_name(subject), num_ranks=ranks, num_microbatches=microbatches)
        return named_schedule(
            subject,
            num_ranks=ranks,
            num_microbatches=microbatches,
            num_chunks=num_chunks,
            given=given(ranks) if given else None,
        )
    path = Path(subject)
    if not path.exists() and len(path.parts) == 1 and not path.suffix:
        try:
            return named_schedule(subject, num_ranks=1, num_microbatches=1)
        except ScheduleError as error:
            raise ScheduleError(f"{error}. Nor is there a file of that name") from None
    return None


def _found(
    num_ranks: int | None,
    num_microbatches: int | None,
    num_chunks: int | None,
    given: Callable[[int], Given] | None,
) -> Schedule:
    """Returns the best order that a search finds for the costs given, and says on stderr what it came to."""
    from penstock.optimize import optimize_schedule, placements  # brings numba in, which takes half a second

    ranks = _NUM_RANKS if num_ranks is None else num_ranks
    microbatches = _NUM_MICROBATCHES if num_microbatches is None else num_microbatches
    check_sizes(AUTO, num_ranks=ranks, num_microbatches=microbatches)
    if num_chunks is not None and num_chunks < 1:
        raise UserError(f"-v {num_chunks}; use at least one stage a rank, e.g. -v 2")
    asked = given(ranks) if given else Given()
    found = optimize_schedule(
        ranks,
        microbatches,
        costs=asked.costs,
        cluster=asked.cluster,
        memory_limit=asked.memory_limit,
        placement=None if num_chunks is None else list(placements(ranks, num_chunks).values()),
    )
    Console(stderr=True).print(f"auto: {found.reason}", highlight=False, soft_wrap=True, markup=False)
    return found.schedule


def _check_sizes(
    schedule: Schedule, num_ranks: int | None, num_microbatches: int | None, num_chunks: int | None, *, path: str
) -> None:
    for option, asked, found in (
        ("-p", num_ranks, schedule.num_ranks),
        ("-m", num_microbatches, schedule.num_microbatches),
        ("-v", num_chunks, schedule.placement.num_chunks),
    ):
        if asked not in (None, found):
            raise UserError(f"{option} {asked} contradicts {path}, which has {found}; leave {option} out for a file")


def read_json(path: Path, *, remedy: str = "; check the path, or write the file again") -> Any:
    """Returns what the JSON file at `path` holds.

    Raises:
        UserError: it cannot be read; `remedy` ends the sentence.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read as JSON: {error.strerror}{remedy}") from None
    except ValueError as error:
        raise UserError(f"{path}: cannot be read as JSON: {error}{remedy}") from None
