"""Schedules as CSV in the form of torch.distributed.pipelining: one row a rank, one action a cell.

    0F0,0F1,,0B0,(0F2;0B1)OVERLAP_F_B

A cell is an op, an empty slot, or an overlapped pair. Communication, which torch writes into the same form, is
passed over: lowering puts it in again. The form knows neither replicas nor weight versions.
"""

from __future__ import annotations

import csv
import io
import re

from penstock.errors import NotationError, ScheduleError
from penstock.ir.ops import COMPUTE, Op, OpKind
from penstock.ir.placement import Placement
from penstock.ir.schedule import Schedule, WeightRule

_ACTION = re.compile(r"(?P<stage>\d+)(?P<kind>[A-Z_]+?)(?P<microbatch>\d*)")
_PAIR = re.compile(r"\((?P<first>[^;()]+);(?P<second>[^;()]+)\)OVERLAP_F_B")


def schedule_to_csv(schedule: Schedule) -> str:
    """Returns `schedule` as CSV text that torch's `_load_csv(…, format="compute_only")` reads.

    Raises:
        NotationError: several replicas, offloads, or weights that change inside the schedule.
    """
    foreign = next((op for _, _, op in schedule.ops() if op.replica or op.kind not in COMPUTE - {OpKind.S}), None)
    if foreign is not None or schedule.weight_rule is not WeightRule.FLUSH:
        what = f"its op {foreign}" if foreign else f"weight rule {schedule.weight_rule.value}"
        raise NotationError(f"{schedule.name} cannot be written as CSV: {what} has no form there; use JSON")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for rank, ops in enumerate(schedule.ranks):
        writer.writerow(_cells(ops, schedule.overlapped[rank] if schedule.overlapped else ()))
    return text.getvalue()


def schedule_from_csv(text: str, *, name: str = "csv") -> Schedule:
    """Returns the schedule written in `text`; each stage lies on the rank that runs its forwards.

    Args:
        text: one row a rank, as torch or `schedule_to_csv` writes it.
        name: what to call it.

    Raises:
        NotationError: a cell that is no action, or rows that place no stage or one stage on two ranks.
    """
    rows = [row for row in csv.reader(io.StringIO(text)) if row]
    parsed = [_row(row, rank) for rank, row in enumerate(rows)]
    try:
        placement = Placement((_holders([ops for ops, _ in parsed]),))
        microbatches = 1 + max(op.microbatch for ops, _ in parsed for op in ops)
        overlapped = tuple(pairs for _, pairs in parsed)
        return Schedule(name, placement, microbatches, tuple(ops for ops, _ in parsed), overlapped=overlapped)
    except ScheduleError as error:
        raise NotationError(f"not a schedule in CSV: {error}") from None


def _cells(ops: tuple[Op, ...], pairs: tuple[int, ...]) -> list[str]:
    cells: list[str] = []
    position = 0
    while position < len(ops):
        if position in pairs:
            cells.append(f"({ops[position]};{ops[position + 1]})OVERLAP_F_B")
        else:
            cells.append(str(ops[position]))
        position += 2 if position in pairs else 1
    return cells


def _row(cells: list[str], rank: int) -> tuple[tuple[Op, ...], tuple[int, ...]]:
    """Returns the ops of one row, and the positions of its pairs."""
    ops: list[Op] = []
    pairs: list[int] = []
    for column, cell in enumerate(text.strip() for text in cells):
        if not cell:
            continue
        where = f"row {rank + 1}, cell {column + 1}"
        pair = _PAIR.fullmatch(cell)
        if pair is None:
            ops += _action(cell, where)
            continue
        pairs.append(len(ops))
        ops += [op for part in (pair["first"], pair["second"]) for op in _action(part, where)]
    return tuple(ops), tuple(pairs)


def _action(text: str, where: str) -> list[Op]:
    """Returns the op in a list, or an empty list for communication."""
    match = _ACTION.fullmatch(text)
    if match is None or match["kind"] not in OpKind.__members__:
        raise NotationError(f'{where}: "{text}" is no action; write stage, kind, microbatch, e.g. 0F3 or 1B0')
    kind = OpKind[match["kind"]]
    if kind not in COMPUTE:
        return []
    if not match["microbatch"]:
        raise NotationError(f'{where}: "{text}" names no microbatch; write e.g. {text}0')
    return [Op(kind, int(match["stage"]), int(match["microbatch"]))]


def _holders(rows: list[tuple[Op, ...]]) -> tuple[int, ...]:
    """Returns the rank of every stage: the one that runs its forwards."""
    holders: dict[int, int] = {}
    for rank, ops in enumerate(rows):
        for op in ops:
            if op.kind == OpKind.F and holders.setdefault(op.stage, rank) != rank:
                raise NotationError(
                    f"stage {op.stage} has forwards on ranks {holders[op.stage]} and {rank}; give it one"
                )
    missing = [stage for stage in range(max(holders, default=-1) + 1) if stage not in holders]
    if missing or not holders:
        raise NotationError(f"no rank runs a forward of stage {missing[0] if missing else 0}; every stage needs one")
    return tuple(holders[stage] for stage in range(len(holders)))
