"""1F1B, also known as PipeDream-Flush and DAPPLE: one forward, one backward in turn."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

from penstock.ir.ops import Op
from penstock.ir.placement import Placement
from penstock.ir.schedule import Schedule
from penstock.schedules.sizes import backwards, check_sizes, forwards


def one_f_one_b(num_ranks: int, num_microbatches: int) -> Schedule:
    """Returns the schedule of Narayanan et al. 2021 (PipeDream-2BW, section 3: PipeDream-Flush).

        rank 0: F0 F1 F2 .  .  B0 F3 B1 .  B2 .  B3
        rank 1: .  F0 F1 .  B0 F2 B1 F3 B2 .  B3 .
        rank 2: .  .  F0 B0 F1 B1 F2 B2 F3 B3 .  .

    Makespan (m+p-1)·(F+B), as GPipe: bubble time (p-1)·(F+B), bubble_fraction (p-1)/(m+p-1), bubble_ratio
    (p-1)/m. Peak activations min(p-i, m) on rank i, whatever m. Defined for every p ≥ 1 and m ≥ 1.

    Raises:
        ScheduleError: p or m below 1.
    """
    check_sizes("one_f_one_b", num_ranks=num_ranks, num_microbatches=num_microbatches)
    everything = range(num_microbatches)
    ranks = tuple(
        alternate(forwards(rank, everything), backwards(rank, everything), ahead=num_ranks - 1 - rank)
        for rank in range(num_ranks)
    )
    return Schedule("one_f_one_b", Placement.looped(num_ranks), num_microbatches, ranks)


def alternate(forwards: Sequence[Op], backwards: Sequence[Op], *, ahead: int) -> tuple[Op, ...]:
    """Returns one rank's order: `ahead` forwards, or all there are, then a forward and a backward in turn."""
    ahead = min(ahead, len(forwards))
    steady = len(forwards) - ahead
    warm_up = forwards[:ahead]
    pairs = zip(forwards[ahead:], backwards[:steady], strict=True)
    cool_down = backwards[steady:]
    return (*warm_up, *chain.from_iterable(pairs), *cool_down)
