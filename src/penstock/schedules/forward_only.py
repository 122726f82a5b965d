"""Evaluation: forwards only, on the placement of a training schedule."""

from __future__ import annotations

from itertools import product

from penstock.ir.ops import Op, OpKind
from penstock.ir.placement import Placement
from penstock.ir.schedule import Schedule, WeightRule
from penstock.schedules.sizes import check_sizes


def forward_only(placement: Placement, num_microbatches: int) -> Schedule:
    """Returns the schedule of an evaluation on the stages of replica 0 of `placement`.

        rank 0: F0 F1 F2 F3 .  .
        rank 1: .  F0 F1 F2 F3 .
        rank 2: .  .  F0 F1 F2 F3

    Makespan (m+p-1)·F with one chunk a rank. Each rank takes its stages in model order, all microbatches of
    one before the next, which is free of deadlock for every placement. Peak activations 0: nothing is kept.

    Raises:
        ScheduleError: m below 1.
    """
    check_sizes("forward_only", num_microbatches=num_microbatches)
    ranks = tuple(
        tuple(
            Op(OpKind.F, stage, microbatch)
            for stage, microbatch in product(placement.stages_of(rank), range(num_microbatches))
        )
        for rank in range(placement.num_ranks)
    )
    return Schedule("forward_only", placement, num_microbatches, ranks, WeightRule.FROZEN)
