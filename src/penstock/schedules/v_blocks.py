"""V-Min, V-Half and V-ZB: less memory or fewer bubbles, by how fast one building block goes down and up the V.

A block says in which slot each op of microbatch 0 runs, for ops of one slot each; see `block_repetition`. The slower F
and I go, the longer activations live, and the more room there is for the ops of other microbatches in between.
"""

from __future__ import annotations

from collections.abc import Sequence

from penstock.ir.ops import Op, OpKind
from penstock.ir.placement import Placement
from penstock.ir.schedule import Schedule
from penstock.schedules.block_grid import Pass, Row
from penstock.schedules.block_repetition import squeezed_repetition
from penstock.schedules.sizes import check_sizes


def v_min(num_ranks: int, num_microbatches: int) -> Schedule:
    """Returns V-Min of Qi et al. 2024 (Pipeline Parallelism with Controllable Memory, section 3): the least memory.

        rank 0: 0F0 0F1 0F2 .   .   5F0 5I0 5W0 5F1 .   .   0I0 5I1 5W1 0W0 5F2 0F3 0I1 5I2 5W2 0W1 5F3 5I3 0I2 5W3 0W2 .   0I3 0W3
        rank 1: .   1F0 1F1 .   4F0 .   4F1 4I0 4W0 .   1I0 1F2 1W0 4I1 4F2 4W1 1I1 1F3 1W1 4I2 4F3 4W2 1I2 4I3 4W3 1W2 1I3 1W3 .
        rank 2: .   .   2F0 3F0 2F1 3F1 .   .   3I0 2I0 3W0 2W0 2F2 3F2 3I1 2I1 3W1 2W1 2F3 3F3 3I2 2I2 3W2 2W2 3I3 2I3 3W3 2W3 .

    The paper writes B for our I. Rank i holds stages i and 2p-1-i. The block of rank i: F of the first stage in slot i,
    F of the second in 2p-1-i, I of the second in 2p+e+i, I of the first in 4p+e-1-i; e = 2 if 3 divides p, else 0.

    Peak from F to W min(m, (p+4)//3) microbatches of both stages, whatever m. For chunk times F = I = W = 1 and m > p
    the bubble time is 4p-5, or 4p-7 if 3 divides p (0 for p = 1): flush makespan and per-rank span are 6m plus that, a
    bubble_ratio of about 2p/3m. Where F, I and W differ, every microbatch of the steady phase adds to it; v_half bears
    that. Defined for every p ≥ 1 and m ≥ 1.

    Raises:
        ScheduleError: p or m below 1.
    """  # noqa: E501 - the drawing
    check_sizes("v_min", num_ranks=num_ranks, num_microbatches=num_microbatches)
    p, delay = num_ranks, 0 if num_ranks % 3 else 2
    block = [(i, 2 * p - 1 - i, 2 * p + delay + i, 4 * p + delay - 1 - i) for i in range(p)]
    return _schedule("v_min", block, num_microbatches)


def v_half(num_ranks: int, num_microbatches: int) -> Schedule:
    """Returns V-Half of Qi et al. 2024 (Pipeline Parallelism with Controllable Memory, section 3): half the memory.

        rank 0: 0F0 0F1 0F2 .   .   5F0 5I0 5W0 5F1 5I1 5W1 .   0I0 0W0 0F3 5F2 5I2 5W2 0I1 0W1 .   5F3 5I3 0I2 5W3 0W2 .   0I3 0W3
        rank 1: .   1F0 1F1 .   4F0 .   4F1 4I0 4W0 1F2 .   1I0 4I1 4W1 4F2 1W0 1F3 1I1 4I2 4W2 4F3 1W1 1I2 4I3 4W3 1W2 1I3 1W3 .
        rank 2: .   .   2F0 3F0 2F1 3F1 .   .   3I0 3W0 2I0 2W0 2F2 3F2 3I1 2I1 3W1 2F3 2W1 3F3 3I2 2I2 3W2 2W2 3I3 2I3 3W3 2W3 .

    The paper writes B for our I. Rank i holds stages i and 2p-1-i. The block of rank i: F of the first stage in slot
    2i, F of the second in 3p-2-i, I of the second in 3p-1+e+2i, I of the first in 6p-2+e-i; e = 3 if p is even, else 0.

    Peak from F to W min(m, (p+2)//2) microbatches of both stages, whatever m. For chunk times F = I = W = 1 and
    m ≥ p+2 the bubble time is max(6⌈p/2⌉-7, p-1): flush makespan and per-rank span are 6m plus that, a bubble_ratio of
    about p/2m. While W + 2I ≥ 2F and W + 2F ≥ 2I the steady phase has no bubble: it does not grow with m. Defined for
    every p ≥ 1 and m ≥ 1.

    Raises:
        ScheduleError: p or m below 1.
    """  # noqa: E501 - the drawing
    check_sizes("v_half", num_ranks=num_ranks, num_microbatches=num_microbatches)
    p, delay = num_ranks, 0 if num_ranks % 2 else 3
    block = [(2 * i, 3 * p - 2 - i, 3 * p - 1 + delay + 2 * i, 6 * p - 2 + delay - i) for i in range(p)]
    return _schedule("v_half", block, num_microbatches)


def v_zb(num_ranks: int, num_microbatches: int) -> Schedule:
    """Returns V-ZB of Qi et al. 2024 (Pipeline Parallelism with Controllable Memory, section 3): no bubble.

        rank 0: 0F0 0F1 0F2 0F3 .   5F0 5I0 5W0 5F1 5I1 5W1 5F2 5I2 0I0 5W2 0W0 5F3 5I3 0I1 5W3 0W1 0I2 0W2 .   .   0I3 0W3
        rank 1: .   1F0 1F1 1F2 4F0 1F3 4F1 4I0 4W0 4F2 4I1 1I0 4W1 1W0 4F3 4I2 1I1 4W2 1W1 4I3 1I2 4W3 1W2 .   1I3 1W3 .
        rank 2: .   .   2F0 3F0 2F1 3F1 2F2 3F2 3I0 2I0 3W0 2W0 2F3 3F3 3I1 2I1 3W1 2W1 3I2 2I2 3W2 2W2 3I3 2I3 3W3 2W3 .

    The paper writes B for our I. Rank i holds stages i and 2p-1-i. The block of rank i: F of the first stage in slot
    4i, F of the second in 6p-5-2i, I of the second in 6p-4+4i, I of the first in 12p-9-2i. It goes down with four slots
    a rank and up with two, which modulo six is the same step, so that all ranks repeat the same six slots.

    Peak from F to W min(m, p) microbatches of both stages, as in zb_v. For chunk times F = I = W = 1 and m ≥ 2p the
    per-rank span is 6m, without bubble, and the flush makespan 6m + p-1. For other times the bubble does not grow with
    m. Defined for every p ≥ 1 and m ≥ 1.

    Raises:
        ScheduleError: p or m below 1.
    """  # noqa: E501 - the drawing
    check_sizes("v_zb", num_ranks=num_ranks, num_microbatches=num_microbatches)
    p = num_ranks
    block = [(4 * i, 6 * p - 5 - 2 * i, 6 * p - 4 + 4 * i, 12 * p - 9 - 2 * i) for i in range(p)]
    return _schedule("v_zb", block, num_microbatches)


def _schedule(name: str, block: Sequence[tuple[int, int, int, int]], num_microbatches: int) -> Schedule:
    num_ranks = len(block)
    grid = squeezed_repetition(block, num_microbatches)
    ranks = tuple(_ops(row, first=rank, second=2 * num_ranks - 1 - rank) for rank, row in enumerate(grid))
    return Schedule(name, Placement.v_shaped(num_ranks), num_microbatches, ranks)


def _ops(row: Row, *, first: int, second: int) -> tuple[Op, ...]:
    """Returns the ops of a row; a W is of the second stage wherever one of its I waits for it."""
    meaning = {
        Pass.F_FIRST: (OpKind.F, first),
        Pass.F_SECOND: (OpKind.F, second),
        Pass.I_SECOND: (OpKind.I, second),
        Pass.I_FIRST: (OpKind.I, first),
    }
    input_grads, weight_grads = {first: 0, second: 0}, {first: 0, second: 0}
    ops = []
    for cell in row:
        if cell is None:
            continue
        if cell[0] == Pass.W:
            stage = second if weight_grads[second] < input_grads[second] else first
            ops.append(Op(OpKind.W, stage, weight_grads[stage]))
            weight_grads[stage] += 1
        else:
            kind, stage = meaning[cell[0]]
            ops.append(Op(kind, stage, cell[1]))
            input_grads[stage] += kind == OpKind.I
    return tuple(ops)
