"""Eager 1F1B: 1F1B with a longer warm-up, so that transfers hide behind compute."""

from __future__ import annotations

from penstock.ir.placement import Placement
from penstock.ir.schedule import Schedule
from penstock.schedules.one_f_one_b import alternate
from penstock.schedules.sizes import backwards, check_sizes, forwards


def eager_1f1b(num_ranks: int, num_microbatches: int) -> Schedule:
    ranks = tuple(
        alternate(
            forwards(rank, range(num_microbatches)),
            backwards(rank, range(num_microbatches)),
            ahead=2 * (num_ranks - 1 - rank),
        )
        for rank in range(num_ranks)
    )
    return Schedule("eager_1f1b", Placement.looped(num_ranks), num_microbatches, ranks)
