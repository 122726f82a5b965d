"""ZB-H1: 1F1B with its backward split, in the memory of 1F1B."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

from penstock.ir.ops import Op, OpKind
from penstock.ir.placement import Placement
from penstock.ir.schedule import Schedule
from penstock.schedules.one_f_one_b import alternate
from penstock.schedules.sizes import check_sizes, forwards


def zb_h1(num_ranks: int, num_microbatches: int) -> Schedule:
    """Returns the schedule of Qi et al. 2024 (Zero Bubble Pipeline Parallelism, section 2.1: ZB-H1).

        rank 0: F0 F1 F2 .  .  I0 W0 F3 I1 W1 I2 W2 I3 W3
        rank 1: .  F0 F1 .  I0 F2 I1 W0 F3 I2 W1 I3 W2 W3
        rank 2: .  .  F0 I0 F1 I1 F2 I2 W0 F3 I3 W1 W2 W3

    The paper writes B for our I. The order is that of 1F1B; on rank i each W comes i microbatches after its I, so
    that the gradient goes up at once and the W left fill the drain.

    Bubble time (p-1)·(F+I-W) for m ≥ p, on the flush makespan m·(F+I+W) + (p-1)·(F+I-W); for m ≤ p the makespan is
    (m+p-1)·(F+I) + W. Both hold for W ≤ F, W ≤ I and no transfer times. Peak activations min(p-i, m) on rank i, as
    1F1B. With what waits for its W, rank i holds (p-i)·M_B + i·M_W for m ≥ p, where F keeps M_B and I keeps M_W ≤ M_B
    of it: never more than p·M_B. Defined for every p ≥ 1 and m ≥ 1.

    Raises:
        ScheduleError: p or m below 1.
    """
    check_sizes("zb_h1", num_ranks=num_ranks, num_microbatches=num_microbatches)
    ranks = tuple(split_1f1b(rank, num_microbatches, ahead=num_ranks - 1 - rank, lag=rank) for rank in range(num_ranks))
    return Schedule("zb_h1", Placement.looped(num_ranks), num_microbatches, ranks)


def split_1f1b(stage: int, num_microbatches: int, *, ahead: int, lag: int) -> tuple[Op, ...]:
    """Returns one rank's order: `ahead` forwards, then F, I and W in turn, each W `lag` microbatches behind its I."""
    everything = range(num_microbatches)
    input_grads = [Op(OpKind.I, stage, microbatch) for microbatch in everything]
    order = alternate(forwards(stage, everything), input_grads, ahead=ahead)
    return tuple(_with_weight_grads(order, lag))


def _with_weight_grads(order: Iterable[Op], lag: int) -> Iterator[Op]:
    """Yields `order`, each I with the W that it lets go, and at the end the W left."""
    waiting: deque[Op] = deque()
    for op in order:
        yield op
        if op.kind == OpKind.I:
            waiting.append(op._replace(kind=OpKind.W))
            if len(waiting) > lag:
                yield waiting.popleft()
    yield from waiting
