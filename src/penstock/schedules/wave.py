"""Wave, Hanayo's schedule: one copy of the model in zig-zags down and up the ranks."""

from __future__ import annotations

from heapq import heappop, heappush

from penstock.errors import ScheduleError
from penstock.ir.ops import Op, OpKind
from penstock.ir.placement import Placement
from penstock.ir.schedule import Schedule
from penstock.schedules.sizes import check_sizes


def wave(num_ranks: int, num_microbatches: int, *, num_chunks: int = 2) -> Schedule:
    """Returns the schedule of Liu et al. 2023 (Hanayo, section 3): w = v/2 waves, 2·w·p stages; one wave is the V.

        rank 0: 0F0 0F1 0F2 .   .   5F0 5B0 5F1 5B1 5F2 5B2 0B0 .   0B1 .   0B2
        rank 1: .   1F0 1F1 1F2 4F0 .   4F1 4B0 4F2 4B1 1B0 4B2 1B1 .   1B2 .
        rank 2: .   .   2F0 3F0 2F1 3F1 2F2 3F2 3B0 2B0 3B1 2B1 3B2 2B2 .   .

    At the turns of a wave the boundary stays on its rank. The order is that of a list schedule in which F and B take
    one slot each and a free rank takes the op of the oldest microbatch; a backward before any forward, or the
    deepest stage first, comes to the same order. At most p microbatches are under way: the next one enters rank 0
    when one has left it.

    With F and B the seconds of one chunk and m = k·p: bubble time 2(p-1)·(k·max(F,B) - (k-1)·min(F,B)). For F = B
    that is 2(p-1)·F, the least there is on this placement: bubble_fraction (p-1)/(v·m+p-1), as interleaved 1F1B of
    as many chunks. For B = 2F and m = p, the paper's case, bubble_fraction (2p-2)/(3·p·w+2p-2), below the paper's
    estimate (2p-2)/(3·p·w+p-1). Peak activations v·p - (p-1-i) chunks on rank i, at most p microbatches of all of
    its chunks whatever m. Defined for every p and m ≥ 1 and every even v.

    Args:
        num_ranks: p.
        num_microbatches: m.
        num_chunks: v, chunks a rank: two for each wave.

    Raises:
        ScheduleError: p, m or v below 1, or an odd v.
    """
    check_sizes("wave", num_ranks=num_ranks, num_microbatches=num_microbatches, num_chunks=num_chunks)
    if num_chunks % 2:
        raise ScheduleError(
            f"wave: num_chunks={num_chunks}; a wave goes down and up and takes two chunks a rank, use an even "
            f"number, e.g. num_chunks={num_chunks + 1}"
        )
    placement = Placement.wave(num_ranks, num_chunks // 2)
    return Schedule("wave", placement, num_microbatches, _listed(placement, num_microbatches))


def _listed(placement: Placement, num_microbatches: int) -> tuple[tuple[Op, ...], ...]:
    """Returns the order in which the ranks run, when every rank runs the first of its ready ops in each slot."""
    limit = placement.num_ranks
    orders: list[list[Op]] = [[] for _ in range(placement.num_ranks)]
    ready: list[list[tuple[int, Op]]] = [[] for _ in orders]  # heaps, the oldest microbatch first
    ready[0] = [(microbatch, Op(OpKind.F, 0, microbatch)) for microbatch in range(min(limit, num_microbatches))]
    while any(ready):
        running = [(heappop(heap)[-1], order) for heap, order in zip(ready, orders, strict=True) if heap]
        for op, order in running:
            order.append(op)
            following = _following(op, placement.num_stages - 1, limit)
            if following.microbatch < num_microbatches:
                heappush(ready[placement.rank_of(following.stage)], (following.microbatch, following))
    return tuple(map(tuple, orders))


def _following(op: Op, last: int, limit: int) -> Op:
    """Returns the op that `op` makes ready; the end of a microbatch lets in the one `limit` behind it."""
    if op.kind == OpKind.F:
        return op._replace(stage=op.stage + 1) if op.stage < last else op._replace(kind=OpKind.B)
    return op._replace(stage=op.stage - 1) if op.stage else Op(OpKind.F, 0, op.microbatch + limit)
