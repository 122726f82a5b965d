"""GIS, the generalised interleaved schedule of PipeOffload: interleaved with its backward split, in less memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from penstock.errors import ScheduleError
from penstock.ir.ops import Op, OpKind
from penstock.ir.placement import Placement
from penstock.ir.schedule import Schedule
from penstock.schedules.interleaved_1f1b import chunk_turns
from penstock.schedules.one_f_one_b import alternate
from penstock.schedules.sizes import check_sizes


def gis(num_ranks: int, num_microbatches: int, *, num_chunks: int = 2, group_size: int | None = None) -> Schedule:
    """Returns the schedule of Wan et al. 2025 (PipeOffload, section 3): GIS, and GIS-H for the smallest groups.

        rank 0: 0F0 0F1 0F2 3F0 3F1 3F2 .   .   3I0 3W0 .   3I1 3W1 .   3I2 3W2 0I0 0W0 0I1 0W1 0I2 0W2
        rank 1: .   1F0 1F1 1F2 4F0 4F1 .   4I0 4W0 4F2 4I1 4W1 .   4I2 4W2 1I0 1W0 1I1 1W1 1I2 1W2 .
        rank 2: .   .   2F0 2F1 2F2 5F0 5I0 5W0 5F1 5I1 5W1 5F2 5I2 5W2 2I0 2W0 2I1 2W1 2I2 2W2 .   .

    The paper writes B for our I. Interleaved 1F1B in groups of g, where W follows its I at once, so that the
    gradient goes up before it; that is why rank i needs only (v-1)·g + p-i forwards before its first backward. It
    is GIS for g = p and GIS-H for g = ⌈p/2⌉.

    With F, I and W the seconds of one chunk: bubble time (p-1)·(F+I) for g = p, less by (p-1)·W than interleaved
    1F1B; (v-1)·((p-g)·F + max(0, p·I - g·(I+W))) more for smaller groups, which is the paper's (v-1)·(p-g) slots
    where F = I = W. Holds for m a multiple of g, p·max(F, I) ≤ g·(F+I+W) and W ≤ F+I. Peak activations (v-1)·g + p-i
    chunks on rank i, or all m·v; so v·p on rank 0 for g = p, where interleaved 1F1B holds v·p+p-1.

    Defined for every p, m and v ≥ 1. The ops of microbatches that are missing in the last group are left out: the
    peak is then at most the one above.

    Args:
        num_ranks: p.
        num_microbatches: m.
        num_chunks: v, chunks a rank.
        group_size: g, from ⌈p/2⌉ to p; None means p.

    Raises:
        ScheduleError: p, m or v below 1, or a group size that is not allowed.
    """
    check_sizes("gis", num_ranks=num_ranks, num_microbatches=num_microbatches, num_chunks=num_chunks)
    group = _group_size(num_ranks, group_size)
    whole = -(-num_microbatches // group) * group
    turns = chunk_turns(whole, num_chunks=num_chunks, group_size=group)
    last = num_chunks - 1
    ranks = []
    for rank in range(num_ranks):
        order = alternate(
            [Op(OpKind.F, chunk * num_ranks + rank, microbatch) for chunk, microbatch in turns],
            [Op(OpKind.I, (last - chunk) * num_ranks + rank, microbatch) for chunk, microbatch in turns],
            ahead=last * group + num_ranks - 1 - rank,
        )
        ranks.append(tuple(_with_weight_grads(order, num_microbatches)))
    return Schedule("gis", Placement.looped(num_ranks, num_chunks), num_microbatches, tuple(ranks))


def _group_size(num_ranks: int, asked: int | None) -> int:
    """Returns the group size asked for, p without one.

    A shorter group would be back at rank 0 for its next chunk before the chunk's forwards can be there.
    """
    group = num_ranks if asked is None else asked
    check_sizes("gis", group_size=group)
    fewest = -(-num_ranks // 2)
    if not fewest <= group <= num_ranks:
        raise ScheduleError(
            f"gis: group_size={group}; it is defined from {fewest}, half of num_ranks={num_ranks}, to {num_ranks}, "
            f"use e.g. group_size={min(max(group, fewest), num_ranks)}"
        )
    return group


def _with_weight_grads(order: Sequence[Op], num_microbatches: int) -> Iterator[Op]:
    """Yields the ops of the microbatches that there are, each I with its W behind it."""
    for op in order:
        if op.microbatch < num_microbatches:
            yield op
            if op.kind == OpKind.I:
                yield op._replace(kind=OpKind.W)
