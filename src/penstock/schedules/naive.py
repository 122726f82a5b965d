"""Naive model parallelism: one microbatch in the pipeline at a time."""

from __future__ import annotations

from penstock.ir.placement import Placement
from penstock.ir.schedule import Schedule
from penstock.schedules.sizes import backwards, check_sizes, forwards


def naive(num_ranks: int, num_microbatches: int) -> Schedule:
    """Returns the schedule that finishes each microbatch before it starts the next.

        rank 0: F0 .  .  .  .  B0 F1 .  .  .  .  B1
        rank 1: .  F0 .  .  B0 .  .  F1 .  .  B1 .
        rank 2: .  .  F0 B0 .  .  .  .  F1 B1 .  .

    Makespan m·p·(F+B); bubble_fraction (p-1)/p, bubble_ratio p-1; peak activations 1 on every rank.
    Defined for every p ≥ 1 and m ≥ 1. Rank 0 starts F of a microbatch after its own B of the one before.

    Raises:
        ScheduleError: p or m below 1.
    """
    check_sizes("naive", num_ranks=num_ranks, num_microbatches=num_microbatches)
    ranks = tuple(
        tuple(
            op
            for microbatch in range(num_microbatches)
            for op in forwards(rank, range(microbatch, microbatch + 1))
            + backwards(rank, range(microbatch, microbatch + 1))
        )
        for rank in range(num_ranks)
    )
    return Schedule("naive", Placement.looped(num_ranks), num_microbatches, ranks)
