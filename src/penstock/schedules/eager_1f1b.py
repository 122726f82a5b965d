"""Eager 1F1B: 1F1B with twice the warm-up, so that transfers hide behind compute."""

from __future__ import annotations

from penstock.ir.placement import Placement
from penstock.ir.schedule import Schedule
from penstock.schedules.one_f_one_b import alternate
from penstock.schedules.sizes import backwards, check_sizes, forwards


def eager_1f1b(num_ranks: int, num_microbatches: int) -> Schedule:
    """Returns the schedule of Zhuang et al. 2023 (On Optimizing the Communication of Model Parallelism, section 4).

        rank 0: F0 F1 F2 F3 F4 B0 .  B1 .  B2 .  B3 .  B4
        rank 1: .  F0 F1 F2 B0 F3 B1 F4 B2 .  B3 .  B4 .
        rank 2: .  .  F0 B0 F1 B1 F2 B2 F3 B3 F4 B4 .  .

    Rank i runs min(2(p-1-i)+1, m) forwards before its first backward, where 1F1B runs p-i. With transfers of c
    seconds 1F1B goes on at one microbatch in F+B+c; this schedule keeps one in F+B, as long as c ≤ (F+B)/2:
    makespan (m+p-1)·(F+B) + 2(p-1)·c, in which only the fill and the drain pay for transfers. Without transfers
    as 1F1B: bubble time (p-1)·(F+B), bubble_fraction (p-1)/(m+p-1), bubble_ratio (p-1)/m. The price is memory:
    peak activations min(2(p-1-i)+1, m) on rank i. Defined for every p ≥ 1 and m ≥ 1.

    Raises:
        ScheduleError: p or m below 1.
    """
    check_sizes("eager_1f1b", num_ranks=num_ranks, num_microbatches=num_microbatches)
    everything = range(num_microbatches)
    ranks = tuple(
        alternate(forwards(rank, everything), backwards(rank, everything), ahead=2 * (num_ranks - 1 - rank))
        for rank in range(num_ranks)
    )
    return Schedule("eager_1f1b", Placement.looped(num_ranks), num_microbatches, ranks)
