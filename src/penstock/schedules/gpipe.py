"""GPipe: all forwards, then all backwards."""

from __future__ import annotations

from penstock.ir.placement import Placement
from penstock.ir.schedule import Schedule
from penstock.schedules.sizes import backwards, check_sizes, forwards


def gpipe(num_ranks: int, num_microbatches: int) -> Schedule:
    """Returns the schedule of Huang et al. 2019 (GPipe, section 2.3): fill, then drain.

        rank 0: F0 F1 F2 F3 .  .  .  .  B0 B1 B2 B3
        rank 1: .  F0 F1 F2 F3 .  .  B0 B1 B2 B3 .
        rank 2: .  .  F0 F1 F2 F3 B0 B1 B2 B3 .  .

    Makespan (m+p-1)·(F+B); bubble_fraction (p-1)/(m+p-1), bubble_ratio (p-1)/m; peak activations m on every
    rank. Defined for every p ≥ 1 and m ≥ 1. The backwards run in microbatch order, so that gradients
    accumulate in the same order as in every other schedule.

    Raises:
        ScheduleError: p or m below 1.
    """
    check_sizes("gpipe", num_ranks=num_ranks, num_microbatches=num_microbatches)
    everything = range(num_microbatches)
    ranks = tuple((*forwards(rank, everything), *backwards(rank, everything)) for rank in range(num_ranks))
    return Schedule("gpipe", Placement.looped(num_ranks), num_microbatches, ranks)
