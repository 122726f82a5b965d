"""Gradients are reduced once, when they are complete, by every owner of a stage or by none."""

from __future__ import annotations

from penstock.errors import VerificationError
from penstock.ir.ops import NO_MICROBATCH, Op, OpKind
from penstock.ir.program import Program
from penstock.ir.schedule import WeightRule

_ADDS_GRADIENT = frozenset({OpKind.B, OpKind.W})


def check_reductions(program: Program) -> None:
    """Refuses a program that reduces gradients before they are complete, twice, or on some ranks only.

    A program without reductions is that of one copy of the model; several pipeline directions are several
    copies, which have to be summed. With frozen weights there is nothing to reduce. Under the asynchronous
    weight rules only the order is held to: no gradient comes after the last reduction.

    Raises:
        VerificationError: the reduction with its rank and position, and what is wrong with it.
    """
    schedule, placement = program.schedule, program.schedule.placement
    reductions: dict[tuple[int, int], tuple[int, int]] = {}
    for rank, position, entry in program.instructions():
        where = f"rank {rank} position {position}: {entry}"
        key = (entry.stage, entry.replica)
        if entry.kind == OpKind.REDUCE_GRAD:
            _check_place(program, where, rank, key)
            if key in reductions and schedule.weight_rule is WeightRule.FLUSH:
                raise VerificationError(
                    f"{where} is doubled; it already ran at position {reductions[key][1]}"
                )
            reductions[key] = (rank, position)
    for rank, position, entry in program.instructions():
        reduced = reductions.get((entry.stage, entry.replica))
        if entry.kind in _ADDS_GRADIENT and reduced is not None and position > reduced[1]:
            raise VerificationError(
                f"rank {rank} position {position}: {entry} adds to gradients that were reduced at position "
                f"{reduced[1]}"
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


def _check_place(program: Program, where: str, rank: int, key: tuple[int, int]) -> None:
    schedule, (stage, replica) = program.schedule, key
    if schedule.weight_rule is WeightRule.FROZEN:
        raise VerificationError(f"{where} may not occur under weight rule {schedule.weight_rule.value}")
    stages = schedule.placement.stages_of(rank, replica) if replica < schedule.placement.num_replicas else ()
    if stage not in stages:
        raise VerificationError(f"{where} is of a stage that the rank does not hold; it holds {list(stages)}")
