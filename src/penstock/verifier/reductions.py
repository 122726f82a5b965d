"""Gradients are reduced once, when they are complete, by every owner of a stage or by none."""

from __future__ import annotations

import numpy as np

from penstock.errors import VerificationError
from penstock.ir.ops import NO_MICROBATCH, Op, OpKind
from penstock.ir.program import Instruction, Program
from penstock.ir.schedule import WeightRule
from penstock.ir.steps import ADDS_GRADIENT, SYNCHRONOUS, reduction


def check_reductions(program: Program) -> None:
    """Refuses a program that reduces gradients before they are complete, twice, or on some ranks only.

    A program without reductions is that of one copy of the model; several pipeline directions are several
    copies, which have to be summed. With frozen weights there is nothing to reduce. Under the asynchronous weight
    rules every optimizer step of a stage that several ranks hold has its own reduction, behind the last gradient
    that it applies; if a stage of one owner reduces, this copy of the model is one of several, and all steps do.

    Raises:
        VerificationError: the reduction with its rank and position, and what is wrong with it.
    """
    found = _reductions(program)
    for rank, position, entry in found:
        _check_place(program, f"rank {rank} position {position}: {entry}", rank, (entry.stage, entry.replica))
    if program.schedule.weight_rule in SYNCHRONOUS:
        _check_once(program, found)
    else:
        placement = program.schedule.placement
        copies = [len(placement.owners(stage)) for stage in range(placement.num_stages)]
        reduced = {entry.stage for _, _, entry in found}
        everywhere = any(copies[stage] == 1 for stage in reduced)
        for rank in range(program.num_ranks):
            _check_each_step(program, rank, [everywhere or count > 1 for count in copies])


def _reductions(program: Program) -> list[tuple[int, int, Instruction]]:
    """Returns `(rank, position, reduction)` for every reduction, rank by rank."""
    places = map(program.columns.place, np.flatnonzero(program.columns.kind == OpKind.REDUCE_GRAD).tolist())
    return [(rank, position, program.ranks[rank][position]) for rank, position in places]


def _check_once(program: Program, found: list[tuple[int, int, Instruction]]) -> None:
    """Refuses gradients that are not reduced exactly once, after the last of them."""
    schedule, placement = program.schedule, program.schedule.placement
    reductions: dict[tuple[int, int], tuple[int, int]] = {}
    for rank, position, entry in found:
        key = (entry.stage, entry.replica)
        if key in reductions:
            raise VerificationError(
                f"rank {rank} position {position}: {entry} is doubled; it already ran at position {reductions[key][1]}"
            )
        reductions[key] = (rank, position)
    for rank, position, entry in program.instructions() if reductions else ():
        reduced = reductions.get((entry.stage, entry.replica))
        if entry.kind in ADDS_GRADIENT and reduced is not None and position > reduced[1]:
            raise VerificationError(
                f"rank {rank} position {position}: {entry} adds to gradients that were reduced at position {reduced[1]}"
            )
    expected = schedule.weight_rule is WeightRule.FLUSH and (reductions or placement.num_replicas > 1)
    for replica in range(placement.num_replicas if expected else 0):
        for stage in range(schedule.num_stages):
            if (stage, replica) not in reductions:
                missing = Op(OpKind.REDUCE_GRAD, stage, NO_MICROBATCH, replica)
                raise VerificationError(
                    f"rank {placement.rank_of(stage, replica)}: {missing} is missing; the stage's other "
                    "owners wait for it"
                )


def _check_each_step(program: Program, rank: int, expected: list[bool]) -> None:
    """Refuses steps on `rank` without the reduction of what they apply, where it is `expected` of their stage."""
    reduced: dict[int, tuple[int, Op]] = {}
    for position, entry in enumerate(program.ranks[rank]):
        where = f"rank {rank} position {position}: {entry}"
        at, before = reduced.get(entry.stage, (0, None))
        if isinstance(entry, Op) and entry.kind == OpKind.REDUCE_GRAD:
            if before is not None:
                raise VerificationError(f"{where} follows {before} (position {at}) without a step in between")
            reduced[entry.stage] = (position, entry)
        elif entry.kind in ADDS_GRADIENT and before is not None:
            raise VerificationError(f"{where} adds to gradients that were reduced at position {at}")
        elif isinstance(entry, Op) and entry.kind == OpKind.S:
            wanted = reduction(entry)
            if before is None and expected[entry.stage]:
                raise VerificationError(f"{where} comes without {wanted}; the stage's other owners wait for it")
            if before not in (None, wanted):
                raise VerificationError(f"{where} applies what {before} (position {at}) has reduced, not {wanted}")
            reduced.pop(entry.stage, None)
    for at, before in reduced.values():
        raise VerificationError(f"rank {rank} position {at}: {before} is followed by no step that applies its sum")


def _check_place(program: Program, where: str, rank: int, key: tuple[int, int]) -> None:
    schedule, (stage, replica) = program.schedule, key
    if schedule.weight_rule is WeightRule.FROZEN:
        raise VerificationError(f"{where} may not occur under weight rule {schedule.weight_rule.value}")
    stages = schedule.placement.stages_of(rank, replica) if replica < schedule.placement.num_replicas else ()
    if stage not in stages:
        raise VerificationError(f"{where} is of a stage that the rank does not hold; it holds {list(stages)}")
