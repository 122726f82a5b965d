"""What computes with a stage's parameters finds all of them on its rank."""

from __future__ import annotations

import numpy as np

from penstock.errors import VerificationError
from penstock.ir.ops import NEEDS_PARAMETERS, OpKind
from penstock.ir.program import Instruction, Program
from penstock.ir.steps import SYNCHRONOUS

_GATHERS = (OpKind.UNSHARD, OpKind.RESHARD)


def check_gathers(program: Program) -> tuple[int, ...]:
    """Returns per rank the most stages of which it holds all parameters at once; 0 where it shares none.

    A program without UNSHARD holds all parameters all the time. With one, every F, B, I and W needs its stage
    gathered; none is gathered twice, let go without being there, or there at the end, when the optimizer steps.

    Raises:
        VerificationError: the op with its rank and position, and what is wrong with it.
    """
    if not np.isin(program.columns.kind, _GATHERS).any():
        return (0,) * program.num_ranks
    return tuple(_peak(program, rank, entries) for rank, entries in enumerate(program.ranks))


def _peak(program: Program, rank: int, entries: tuple[Instruction, ...]) -> int:
    schedule, held = program.schedule, program.schedule.placement.held(rank)
    there: dict[int, tuple[int, Instruction]] = {}
    gone: dict[int, int] = {}
    peak = 0
    for position, entry in enumerate(entries):
        where, stage = f"rank {rank} position {position}: {entry}", entry.stage
        if entry.kind in _GATHERS and schedule.weight_rule not in SYNCHRONOUS:
            raise VerificationError(f"{where} may not occur under weight rule {schedule.weight_rule.value}")
        if entry.kind in _GATHERS and stage not in held:
            raise VerificationError(f"{where} is of a stage that the rank does not hold; it holds {list(held)}")
        if entry.kind == OpKind.UNSHARD:
            if stage in there:
                raise VerificationError(f"{where} gathers what is there since position {there[stage][0]}")
            there[stage] = (position, entry)
            peak = max(peak, len(there))
        elif entry.kind == OpKind.RESHARD:
            if stage not in there:
                raise VerificationError(f"{where} lets go what is not there{_since(stage, gone)}")
            gone[stage] = position
            del there[stage]
        elif entry.kind in NEEDS_PARAMETERS and stage not in there:
            raise VerificationError(f"{where} finds the parameters of stage {stage} not gathered{_since(stage, gone)}")
    for position, entry in there.values():
        raise VerificationError(f"rank {rank} position {position}: {entry} is let go by no RESHARD before the end")
    return peak


def _since(stage: int, gone: dict[int, int]) -> str:
    return f"; they were let go at position {gone[stage]}" if stage in gone else ""
