"""Where the parameters of a stage are gathered from its data-parallel replicas, and where they are let go.

    gathered=1   UNSHARD0 F0 F1 RESHARD0 UNSHARD2 F0 F1 RESHARD2 …   one at a time, as its ops come
    gathered=2   UNSHARD0 UNSHARD2 F0 F1 F0 F1 …                     the next stage while the last one computes

Before each op a rank holds the stages of the ops that come next, as many as it may: what it needs soonest. It lets go
what is not among them, and then gathers what is new. With as many as a rank has chunks, each is gathered once a step.
"""

from __future__ import annotations

from penstock.errors import ScheduleError
from penstock.ir.ops import NEEDS_PARAMETERS, NO_MICROBATCH, ORDERED, RECEIVES, Op, OpKind
from penstock.ir.program import Instruction
from penstock.ir.schedule import Schedule
from penstock.ir.steps import SYNCHRONOUS

_Unit = tuple[int, tuple[Op, ...]]
"""Position of an op, or of an overlapped pair, and its ops."""


def with_gathers(
    schedule: Schedule, ranks: tuple[tuple[Instruction, ...], ...], gathered: int
) -> tuple[tuple[Instruction, ...], ...]:
    """Returns the programs of all ranks with an UNSHARD before and a RESHARD behind what needs a stage's parameters.

    Args:
        schedule: where the programs come from.
        ranks: the programs.
        gathered: the most stages of which a rank holds all parameters at once; for an overlapped pair, those of both.

    Raises:
        ScheduleError: `gathered` is not a whole number of at least 1, or the schedule steps its weights by itself.
    """
    if isinstance(gathered, bool) or not isinstance(gathered, int) or gathered < 1:
        raise ScheduleError(f"gathered={gathered!r}; give how many stages a rank holds at once, e.g. 2")
    if schedule.weight_rule not in SYNCHRONOUS:
        raise ScheduleError(
            f"{schedule.name} steps its weights inside the program, so that gathered ones would be old; gather the "
            "parameters of a schedule with a flush, e.g. one_f_one_b"
        )
    return tuple(
        _gathering(entries, _units(entries, schedule.overlapped[rank] if schedule.overlapped else ()), gathered)
        for rank, entries in enumerate(ranks)
    )


def _units(entries: tuple[Instruction, ...], overlapped: tuple[int, ...]) -> list[_Unit]:
    positions = [position for position, entry in enumerate(entries) if entry.kind in ORDERED]
    starts, units = set(overlapped), []
    for place, position in enumerate(positions):
        if place - 1 in starts:
            continue
        ops = entries[position : position + (2 if place in starts else 1)]
        units.append((position, tuple(Op(*op[:4]) for op in ops if op.kind in NEEDS_PARAMETERS)))
    return [unit for unit in units if unit[1]]


def _gathering(entries: tuple[Instruction, ...], units: list[_Unit], gathered: int) -> tuple[Instruction, ...]:
    inserted: dict[int, list[Op]] = {}
    held: dict[int, Op] = {}
    for (position, _), wanted in zip(units, _wanted(units, gathered), strict=True):
        changes = [_of(OpKind.RESHARD, op) for stage, op in held.items() if stage not in wanted]
        changes += [_of(OpKind.UNSHARD, op) for stage, op in wanted.items() if stage not in held]
        if changes:
            inserted[_ahead_of(entries, position)] = changes
        held = wanted
    found: list[Instruction] = []
    for position, entry in enumerate(entries):
        found.extend(inserted.get(position, ()))
        found.append(entry)
    return (*found, *(_of(OpKind.RESHARD, op) for op in held.values()))


def _wanted(units: list[_Unit], gathered: int) -> list[dict[int, Op]]:
    """Returns for each unit the stages that it and what follows need, soonest first, each with an op that needs it."""
    coming: dict[int, Op] = {}
    found = []
    for _, ops in reversed(units):
        now = {op.stage: op for op in ops}
        coming = now | {stage: op for stage, op in coming.items() if stage not in now}
        count = max(gathered, len(now))
        found.append(dict(list(coming.items())[:count]))
    return found[::-1]


def _ahead_of(entries: tuple[Instruction, ...], position: int) -> int:
    """Returns the place before the receives that are posted right before `position`."""
    while position and entries[position - 1].kind in RECEIVES:
        position -= 1
    return position


def _of(kind: OpKind, op: Op) -> Op:
    return Op(kind, op.stage, NO_MICROBATCH, op.replica)
