"""Breadth-first, also known as looped BFS: every microbatch through a chunk before the next chunk."""

from __future__ import annotations

from penstock.ir.ops import Op
from penstock.ir.placement import Placement
from penstock.ir.schedule import Schedule
from penstock.schedules.sizes import backwards, check_sizes, forwards


def breadth_first(num_ranks: int, num_microbatches: int, *, num_chunks: int = 2) -> Schedule:
    """Returns the schedule of Lamy-Poirier 2023 (Breadth-First Pipeline Parallelism, section 4).

        rank 0: 0F0 0F1 0F2 3F0 3F1 3F2 .   .   .   .   3B0 3B1 3B2 0B0 0B1 0B2
        rank 1: .   1F0 1F1 1F2 4F0 4F1 4F2 .   .   4B0 4B1 4B2 1B0 1B1 1B2 .
        rank 2: .   .   2F0 2F1 2F2 5F0 5F1 5F2 5B0 5B1 5B2 2B0 2B1 2B2 .   .

    All m forwards of a rank's first chunk, then of the next; then all m backwards of the last chunk, of the one
    before. A chunk's parameters are in use twice a step, in one piece each time: one gather for the forwards,
    one for the backwards and one reduction, which is what it is for under fully sharded data parallelism.

    With F and B the seconds of one chunk: bubble time (p-1)·(F+B) for m ≥ p, which is bubble_ratio (p-1)/(v·m) and
    bubble_fraction (p-1)/(v·m+p-1); (v-1)·(p-m)·(F+B) more for m < p. Peak activations m·v chunks on every rank.
    Defined for every p, m and v ≥ 1; of one chunk it is GPipe. The backwards run in microbatch order, so that
    gradients accumulate in the same order as in every other schedule.

    Args:
        num_ranks: p.
        num_microbatches: m.
        num_chunks: v, chunks a rank.

    Raises:
        ScheduleError: p, m or v below 1.
    """
    check_sizes("breadth_first", num_ranks=num_ranks, num_microbatches=num_microbatches, num_chunks=num_chunks)
    placement = Placement.looped(num_ranks, num_chunks)
    ranks = tuple(_rank(placement.stages_of(rank), range(num_microbatches)) for rank in range(num_ranks))
    return Schedule("breadth_first", placement, num_microbatches, ranks)


def _rank(stages: tuple[int, ...], everything: range) -> tuple[Op, ...]:
    fill = [op for stage in stages for op in forwards(stage, everything)]
    drain = [op for stage in reversed(stages) for op in backwards(stage, everything)]
    return (*fill, *drain)
