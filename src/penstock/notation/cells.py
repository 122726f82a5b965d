"""One op as text: `2F0`, or `F0` where the rank's only stage is understood; `@1` names the replica."""

from __future__ import annotations

import re

from penstock.errors import NotationError
from penstock.ir.ops import ORDERED, Op, OpKind
from penstock.ir.placement import Placement

_CELL = re.compile(r"(?P<stage>\d{1,9})?(?P<kind>[A-Z]+)(?P<microbatch>\d{1,9})(?:@(?P<replica>\d{1,9}))?")


def parse_op(text: str, *, rank: int, placement: Placement) -> Op:
    """Returns the op written as `text` in the row of `rank`.

    Raises:
        NotationError: not an op, or the stage is left out where the rank holds several.
    """
    match = _CELL.fullmatch(text)
    if match is None or match["kind"] not in OpKind.__members__ or OpKind[match["kind"]] not in ORDERED:
        raise NotationError(f'rank {rank}: "{text}" is not an op; write stage, kind, microbatch, e.g. 0F3 or 1B0')
    replica = int(match["replica"] or 0)
    if replica >= placement.num_replicas:
        raise NotationError(f'rank {rank}: "{text}" names replica {replica} of {placement.num_replicas}')
    stage = int(match["stage"]) if match["stage"] else _only_stage(text, rank, placement.stages_of(rank, replica))
    if stage >= placement.num_stages:
        raise NotationError(f'rank {rank}: "{text}" names stage {stage} of {placement.num_stages}')
    return Op(OpKind[match["kind"]], stage, int(match["microbatch"]), replica)


def cell(op: Op, *, placement: Placement, rank: int) -> str:
    """Returns `op` as text, without its stage where the rank holds only that one."""
    text = str(op)
    if placement.stages_of(rank, op.replica) == (op.stage,):
        return text.removeprefix(str(op.stage))
    return text


def _only_stage(text: str, rank: int, stages: tuple[int, ...]) -> int:
    if len(stages) != 1:
        held = ", ".join(map(str, stages)) or "none"
        raise NotationError(f'rank {rank}: "{text}" has no stage and the rank holds {held}; write e.g. 0{text}')
    return stages[0]
