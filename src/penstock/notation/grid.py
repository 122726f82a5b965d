"""The text grid of a schedule: one row a rank, one column a slot of time.

    one_f_one_b p=3 m=3 weights=flush placement=0,1,2
    rank 0: F0 F1 F2 .  .  B0 .  B1 .  B2
    rank 1: .  F0 F1 .  B0 F2 B1 .  B2 .
    rank 2: .  .  F0 B0 F1 B1 F2 B2 .  .

Every op takes one slot here and starts as soon as what it needs exists; a `.` is an idle slot and carries
no meaning when the grid is read back. The two ops of an overlapped pair share a slot, joined by `+`: `F4+B0`. OFFLOAD
and RELOAD take none and stand behind the op before them, after a comma: `F2,OFFLOAD2`; the header then ends with the
rank that keeps what each rank offloads: `keepers=3,2,1,0`.
"""

from __future__ import annotations

from dataclasses import replace

from penstock.errors import NotationError, ScheduleError, check_type, nearest
from penstock.ir.dependencies import Value, consumed, produced
from penstock.ir.ops import COMPUTE, Op
from penstock.ir.placement import Placement
from penstock.ir.schedule import Schedule, WeightRule
from penstock.ir.steps import awaited_gradients
from penstock.notation.cells import cell, parse_op

_IDLE, _PAIRED, _ATTACHED = ".", "+", ","
_HEADER = ("p", "m", "weights", "placement")
_KEEPERS = "keepers"
"""The field at the end of the header that only schedules with offloading have."""


def draw_grid(schedule: Schedule) -> str:
    """Returns the grid of `schedule`.

    An order that cannot run is drawn as far as it goes, then without gaps.
    """
    rows = slots(schedule)
    cells = [_cells(schedule, rank, row) for rank, row in enumerate(rows)]
    last = max((slot for row in cells for slot in row), default=-1)
    widths = [max((len(row[slot]) for row in cells if slot in row), default=1) for slot in range(last + 1)]
    margin = len(str(schedule.num_ranks - 1))
    lines = [_header(schedule)]
    for rank, row in enumerate(cells):
        drawn = " ".join(row.get(slot, _IDLE).ljust(widths[slot]) for slot in range(last + 1))
        lines.append(f"rank {rank:>{margin}}: {drawn}".rstrip())
    return "\n".join(lines)


def slots(schedule: Schedule) -> list[list[int]]:
    """Returns per rank the slot of each op, when each takes one slot and none waits longer than it must.

    The two ops of a pair share a slot; OFFLOAD and RELOAD share that of the op before them.
    """
    done: dict[Value, int] = {}
    awaited = awaited_gradients(schedule)
    rows: list[list[int]] = [[] for _ in schedule.ranks]
    pairs = [frozenset(starts) for starts in schedule.overlapped] or [frozenset[int]()] * schedule.num_ranks
    moved = True
    while moved:
        moved = False
        for rank, ops in enumerate(schedule.ranks):
            row = rows[rank]
            while len(row) < len(ops):
                group = _group(ops, len(row), pairs[rank])
                values = (value for op in group for value in consumed(op, schedule.num_stages))
                needs = [done.get(value) for value in (*values, *awaited.get(group[0], ()))]
                if None in needs:
                    break
                start = _next_slot(row, group)
                if group[0].kind in COMPUTE:
                    start = max([start, *(need for need in needs if need is not None)])
                row.extend([start] * len(group))
                done.update((value, start + 1) for op in group for value in produced(op))
                moved = True
    for row, ops, starts in zip(rows, schedule.ranks, pairs, strict=True):
        while len(row) < len(ops):
            group = _group(ops, len(row), starts)
            row.extend([_next_slot(row, group)] * len(group))
    return rows


def _group(ops: tuple[Op, ...], position: int, pairs: frozenset[int]) -> tuple[Op, ...]:
    """Returns the op at `position`, or the pair that starts there."""
    return ops[position : position + (2 if position in pairs else 1)]


def _next_slot(row: list[int], group: tuple[Op, ...]) -> int:
    """Returns the first slot of the row's next group, as far as its own rank is concerned."""
    return (row[-1] + (group[0].kind in COMPUTE)) if row else 0


def _cells(schedule: Schedule, rank: int, row: list[int]) -> dict[int, str]:
    """Returns the texts of a rank's ops by their slot."""
    seconds = {start + 1 for start in schedule.overlapped[rank]} if schedule.overlapped else set()
    cells: dict[int, str] = {}
    for position, (slot, op) in enumerate(zip(row, schedule.ranks[rank], strict=True)):
        text = cell(op, placement=schedule.placement, rank=rank)
        joiner = _PAIRED if position in seconds else _ATTACHED
        cells[slot] = f"{cells[slot]}{joiner}{text}" if slot in cells else text
    return cells


def parse_grid(text: str) -> Schedule:
    """Returns the schedule drawn in `text`; the inverse of `draw_grid`.

    Raises:
        NotationError: a header or a cell that cannot be read; the message says which line.
    """
    check_type("text", text, str, example="what print(penstock.gpipe(2, 4)) shows")
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    if len(lines) < 2:
        raise NotationError("a grid has a header line and one line a rank; see penstock.notation.grid")
    name, fields = _parse_header(lines[0])
    if fields["weights"] not in set(WeightRule):
        raise NotationError(f"header: weights={fields['weights']}; use one of {', '.join(WeightRule)}")
    try:
        rows = [[int(rank) for rank in row.split(",")] for row in fields["placement"].split("/")]
        keepers = tuple(int(rank) for rank in fields[_KEEPERS].split(",")) if _KEEPERS in fields else ()
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
        parsed = [_parse_row(line, rank, placement) for rank, line in enumerate(lines[1:])]
        ranks = tuple(ops for ops, _ in parsed)
        schedule = Schedule(name, placement, microbatches, ranks, WeightRule(fields["weights"]), keepers=keepers)
    except ScheduleError as error:
        raise NotationError(f"header: {error}") from None
    try:
        return replace(schedule, overlapped=tuple(pairs for _, pairs in parsed))
    except ScheduleError as error:
        raise NotationError(str(error)) from None


def _header(schedule: Schedule) -> str:
    placement = "/".join(",".join(map(str, row)) for row in schedule.placement.table)
    keepers = f" {_KEEPERS}={','.join(map(str, schedule.keepers))}" if schedule.keepers else ""
    return (
        f"{schedule.name} p={schedule.num_ranks} m={schedule.num_microbatches} "
        f"weights={schedule.weight_rule.value} placement={placement}{keepers}"
    )


def _parse_header(line: str) -> tuple[str, dict[str, str]]:
    with_keepers = line.rsplit(maxsplit=1)[-1].startswith(f"{_KEEPERS}=")
    name, *pairs = line.rsplit(maxsplit=len(_HEADER) + with_keepers)  # from the right: a name may have spaces
    fields = dict(pair.partition("=")[::2] for pair in pairs)
    for key in fields:
        if key not in (*_HEADER, _KEEPERS):
            known = ", ".join(_HEADER)
            raise NotationError(f'header: unknown field "{key}".{nearest(key, _HEADER)} Known: {known}')
    missing = [key for key in _HEADER if key not in fields]
    if missing:
        raise NotationError(f"header: {', '.join(missing)} missing; write e.g. {_header_example(name)}")
    return name, fields


def _header_example(name: str) -> str:
    return f"{name} p=2 m=4 weights=flush placement=0,1"


def _parse_row(line: str, rank: int, placement: Placement) -> tuple[tuple[Op, ...], tuple[int, ...]]:
    """Returns the ops of one line, and the positions at which pairs start."""
    label, colon, cells = line.partition(":")
    if not colon or label.split() != ["rank", str(rank)]:
        raise NotationError(f'line {rank + 2}: expected "rank {rank}: …", got "{line[:40]}"')
    ops: list[Op] = []
    pairs: list[int] = []
    for part in cells.replace(_ATTACHED, " ").split():
        texts = part.split(_PAIRED) if part != _IDLE else []
        pairs.extend(range(len(ops), len(ops) + len(texts) - 1))
        ops.extend(parse_op(text, rank=rank, placement=placement) for text in texts)
    return tuple(ops), tuple(pairs)
