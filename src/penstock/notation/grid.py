"""The text grid of a schedule: one row a rank, one column a slot of time.

    one_f_one_b p=3 m=3 weights=flush placement=0,1,2
    rank 0: F0 F1 F2 .  .  B0 .  B1 .  B2
    rank 1: .  F0 F1 .  B0 F2 B1 .  B2 .
    rank 2: .  .  F0 B0 F1 B1 F2 B2 .  .

Every op takes one slot here and starts as soon as what it needs exists; a `.` is an idle slot and carries
no meaning when the grid is read back.
"""

from __future__ import annotations

from penstock.errors import NotationError, ScheduleError, nearest
from penstock.ir.dependencies import Value, consumed, produced
from penstock.ir.ops import Op
from penstock.ir.placement import Placement
from penstock.ir.schedule import Schedule, WeightRule
from penstock.notation.cells import cell, parse_op

_IDLE = "."
_HEADER = ("p", "m", "weights", "placement")


def draw_grid(schedule: Schedule) -> str:
    """Returns the grid of `schedule`.

    An order that cannot run is drawn as far as it goes, then without gaps.
    """
    rows = slots(schedule)
    placement = schedule.placement
    cells: list[dict[int, str]] = [
        {slot: cell(op, placement=placement, rank=rank) for slot, op in zip(rows[rank], ops, strict=True)}
        for rank, ops in enumerate(schedule.ranks)
    ]
    last = max((slot for row in cells for slot in row), default=-1)
    widths = [max((len(row[slot]) for row in cells if slot in row), default=1) for slot in range(last + 1)]
    margin = len(str(schedule.num_ranks - 1))
    lines = [_header(schedule)]
    for rank, row in enumerate(cells):
        drawn = " ".join(row.get(slot, _IDLE).ljust(widths[slot]) for slot in range(last + 1))
        lines.append(f"rank {rank:>{margin}}: {drawn}".rstrip())
    return "\n".join(lines)


def slots(schedule: Schedule) -> list[list[int]]:
    """Returns per rank the slot of each op, when each takes one slot and none waits longer than it must."""
    done: dict[Value, int] = {}
    rows: list[list[int]] = [[] for _ in schedule.ranks]
    moved = True
    while moved:
        moved = False
        for rank, ops in enumerate(schedule.ranks):
            row = rows[rank]
            while len(row) < len(ops):
                op = ops[len(row)]
                needs = [done.get(value) for value in consumed(op, schedule.num_stages)]
                if None in needs:
                    break
                start = max([row[-1] + 1 if row else 0, *(need for need in needs if need is not None)])
                row.append(start)
                done.update((value, start + 1) for value in produced(op))
                moved = True
    for row, ops in zip(rows, schedule.ranks, strict=True):
        first = row[-1] + 1 if row else 0
        row.extend(range(first, first + len(ops) - len(row)))
    return rows


def parse_grid(text: str) -> Schedule:
    """Returns the schedule drawn in `text`; the inverse of `draw_grid`.

    Raises:
        NotationError: a header or a cell that cannot be read; the message says which line.
    """
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    if len(lines) < 2:
        raise NotationError("a grid has a header line and one line a rank; see penstock.notation.grid")
    name, fields = _parse_header(lines[0])
    if fields["weights"] not in set(WeightRule):
        raise NotationError(f"header: weights={fields['weights']}; use one of {', '.join(WeightRule)}")
    try:
        rows = [[int(rank) for rank in row.split(",")] for row in fields["placement"].split("/")]
        microbatches, num_ranks = int(fields["m"]), int(fields["p"])
    except ValueError as error:
        raise NotationError(f"header: {error}; write numbers, e.g. p=2 m=4 placement=0,1") from None
    try:
        placement = Placement.replicas(*rows)
        if not num_ranks == placement.num_ranks == len(lines) - 1:
            raise NotationError(
                f"header: p={num_ranks} and stages on {placement.num_ranks} ranks, but {len(lines) - 1} rows "
                "follow; write one row a rank"
            )
        ranks = tuple(_parse_row(line, rank, placement) for rank, line in enumerate(lines[1:]))
        return Schedule(name, placement, microbatches, ranks, WeightRule(fields["weights"]))
    except ScheduleError as error:
        raise NotationError(f"header: {error}") from None


def _header(schedule: Schedule) -> str:
    placement = "/".join(",".join(map(str, row)) for row in schedule.placement.table)
    return (
        f"{schedule.name} p={schedule.num_ranks} m={schedule.num_microbatches} "
        f"weights={schedule.weight_rule.value} placement={placement}"
    )


def _parse_header(line: str) -> tuple[str, dict[str, str]]:
    name, *pairs = line.rsplit(maxsplit=len(_HEADER))  # from the right: a name may have spaces
    fields = dict(pair.partition("=")[::2] for pair in pairs)
    for key in fields:
        if key not in _HEADER:
            known = ", ".join(_HEADER)
            raise NotationError(f'header: unknown field "{key}".{nearest(key, _HEADER)} Known: {known}')
    missing = [key for key in _HEADER if key not in fields]
    if missing:
        raise NotationError(f"header: {', '.join(missing)} missing; write e.g. {_header_example(name)}")
    return name, fields


def _header_example(name: str) -> str:
    return f"{name} p=2 m=4 weights=flush placement=0,1"


def _parse_row(line: str, rank: int, placement: Placement) -> tuple[Op, ...]:
    label, colon, cells = line.partition(":")
    if not colon or label.split() != ["rank", str(rank)]:
        raise NotationError(f'line {rank + 2}: expected "rank {rank}: …", got "{line[:40]}"')
    return tuple(parse_op(text, rank=rank, placement=placement) for text in cells.split() if text != _IDLE)
