"""ZB-H1: 1F1B with its backward split, at the memory of 1F1B."""

from __future__ import annotations

from itertools import chain

from penstock.ir.ops import Op, OpKind
from penstock.ir.placement import Placement
from penstock.ir.schedule import Schedule
from penstock.schedules.sizes import check_sizes, forwards


def zb_h1(num_ranks: int, num_microbatches: int) -> Schedule:
    """Returns the schedule of Qi et al. 2024 (Zero Bubble Pipeline Parallelism, section 2.1: ZB-H1).

        rank 0: F0 F1 F2 .  .  I0 W0 F3 I1 W1 .  I2 W2 .  I3 W3
        rank 1: .  F0 F1 .  I0 F2 I1 W0 F3 I2 W1 .  I3 W2 W3 .
        rank 2: .  .  F0 I0 F1 I1 F2 I2 W0 F3 I3 W1 W2 W3 .  .

    The paper writes B for our I. The order is that of 1F1B; rank i lets its W lag i microbatches behind its I,
    so that the gradient of the input goes up at once and W fills what would be the drain.

    For W ≤ F, on a flush makespan that counts from 0: bubble time (p-1)·(F+I-W) for m ≥ p, which is a makespan
    of m·(F+I+W) + (p-1)·(F+I-W); for m ≤ p a makespan of (m+p-1)·(F+I) + W. Peak activations min(p-i, m) on
    rank i, as 1F1B; with the min(i, m-1) microbatches that wait for their W, p at most: the memory of rank i is
    (p-i)·M + i·(what I keeps for W) for m ≥ p. Defined for every p ≥ 1 and m ≥ 1.

    Raises:
        ScheduleError: p or m below 1.
    """
    check_sizes("zb_h1", num_ranks=num_ranks, num_microbatches=num_microbatches)
    ranks = tuple(
        split_1f1b(rank, num_microbatches, ahead=num_ranks - 1 - rank, lag=rank) for rank in range(num_ranks)
    )
    return Schedule("zb_h1", Placement.looped(num_ranks), num_microbatches, ranks)


def split_1f1b(stage: int, num_microbatches: int, *, ahead: int, lag: int) -> tuple[Op, ...]:
    """Returns one rank's `ahead` forwards, then F, I, W in turn, where W lags behind I.

    Args:
        stage: the rank's stage.
        num_microbatches: m.
        ahead: forwards of the warm-up, as far as there are microbatches.
        lag: how many microbatches W comes after I, until the I are out.
    """
    ahead = min(ahead, num_microbatches)
    backwards = [_backward(stage, microbatch, lag) for microbatch in range(num_microbatches)]
    warm_up = forwards(stage, range(ahead))
    steady = chain.from_iterable(
        ([forward], backward)
        for forward, backward in zip(forwards(stage, range(ahead, num_microbatches)), backwards, strict=False)
    )
    cool_down = backwards[num_microbatches - ahead :]
    rest = [
        Op(OpKind.W, stage, microbatch) for microbatch in range(max(num_microbatches - lag, 0), num_microbatches)
    ]
    return (*warm_up, *chain.from_iterable(steady), *chain.from_iterable(cool_down), *rest)


def _backward(stage: int, microbatch: int, lag: int) -> list[Op]:
    ops = [Op(OpKind.I, stage, microbatch)]
    return ops if microbatch < lag else [*ops, Op(OpKind.W, stage, microbatch - lag)]
