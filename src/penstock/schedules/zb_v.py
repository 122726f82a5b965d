"""ZB-V: no bubble at the memory of 1F1B, with two chunks a rank in the shape of a V."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from penstock.ir.ops import Op, OpKind
from penstock.ir.placement import Placement
from penstock.ir.schedule import Schedule
from penstock.schedules.sizes import check_sizes


def zb_v(num_ranks: int, num_microbatches: int) -> Schedule:
    """Returns the hand-crafted ZB-V of Qi et al. 2024 (Zero Bubble Pipeline Parallelism, arXiv 2401.10241).

        rank 0: 0F0 0F1 0F2 0F3 0F4 5F0 5I0 5W0 5F1 5I1 5W1 5F2 5I2 5W2 0I0 0W0 5F3 5I3 5W3 0I1 0W1 5F4 5I4 5W4 0I2 0W2 0I3 0W3 0I4 0W4 .   .
        rank 1: .   1F0 1F1 1F2 4F0 1F3 4F1 4I0 4W0 4F2 4I1 4W1 1F4 1I0 1W0 4F3 4I2 4W2 1I1 1W1 4F4 4I3 4W3 1I2 4I4 1I3 1W2 1I4 1W3 4W4 1W4 .
        rank 2: .   .   2F0 3F0 2F1 3F1 2F2 3F2 3I0 3W0 2F3 2I0 2W0 3F3 3I1 3W1 2F4 2I1 2W1 3F4 3I2 3W2 2I2 3I3 2I3 3I4 2I4 2W2 3W3 3W4 2W3 2W4

    The paper writes B for our I. Rank i holds stages i and 2p-1-i: the last rank turns from forward to backward at
    once, and rank 0, where a microbatch ends, starts its backward.

    For chunk times F = I = W = 1 the per-rank span is 6m + 2·max(0, 2p-1-m), so without bubble for m ≥ 2p-1, and the
    flush makespan 6m + max(p-1, 2(2p-1-m)): for m ≥ 2p-1 rank p-1 starts and ends p-1 later than rank 0. Peak
    activations min(m+1+i, 2m, 2p) chunks on rank i, so p·M on every rank for m ≥ 2p-1, even where I frees nothing
    before W. For other times see zb_v_greedy. Defined for every p ≥ 1 and m ≥ 1; for m < 2p-1 it is the order of 2p-1
    microbatches with the last ones left out.

    Raises:
        ScheduleError: p or m below 1.
    """  # noqa: E501 - the drawing
    check_sizes("zb_v", num_ranks=num_ranks, num_microbatches=num_microbatches)
    ranks = tuple(
        tuple(op for op in _rank(rank, num_ranks, num_microbatches) if op.microbatch < num_microbatches)
        for rank in range(num_ranks)
    )
    return Schedule("zb_v", Placement.v_shaped(num_ranks), num_microbatches, ranks)


def _rank(rank: int, num_ranks: int, num_microbatches: int) -> list[Op]:
    total = max(num_microbatches, 2 * num_ranks - 1)
    f0, i0, w0 = (_stage_ops(kind, rank, total) for kind in (OpKind.F, OpKind.I, OpKind.W))
    f1, i1, w1 = (_stage_ops(kind, 2 * num_ranks - 1 - rank, total) for kind in (OpKind.F, OpKind.I, OpKind.W))
    behind = num_ranks - rank
    warm_up = _rounds(2 * behind - 1, f0) + _rounds(rank, f1, f0) + _rounds(behind, f1, i1, w1)
    steady = _rounds(total - num_ranks, f0, i0, w0, f1, i1, w1)  # f0 runs out on the way
    cool_down = _rounds(rank, i0, i1) + _rounds(behind, i0, w0) + [*w1, *w0]
    return warm_up + steady + cool_down


def _stage_ops(kind: OpKind, stage: int, num_microbatches: int) -> Iterator[Op]:
    """Returns the ops of one kind and stage; what one phase has taken is gone for the next."""
    return (Op(kind, stage, microbatch) for microbatch in range(num_microbatches))


def _rounds(count: int, *queues: Iterator[Op]) -> list[Op]:
    """Returns the next op of every queue in turn, `count` times; a queue that has run out is passed over."""
    return [op for _ in range(count) for queue in queues for op in islice(queue, 1)]
