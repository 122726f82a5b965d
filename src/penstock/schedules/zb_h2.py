"""ZB-H2: no bubble where F = I = W, in about twice the memory of 1F1B."""

from __future__ import annotations

from penstock.errors import ScheduleError
from penstock.ir.placement import Placement
from penstock.ir.schedule import Schedule
from penstock.schedules.sizes import check_sizes
from penstock.schedules.zb_h1 import split_1f1b


def zb_h2(num_ranks: int, num_microbatches: int) -> Schedule:
    """Returns the schedule of Qi et al. 2024 (Zero Bubble Pipeline Parallelism, section 2.1: ZB-H2).

        rank 0: F0 F1 F2 F3 F4 I0 W0 F5 I1 W1 I2 W2 I3 W3 I4 W4 I5 W5 .  .
        rank 1: .  F0 F1 F2 I0 F3 I1 F4 I2 W0 F5 I3 W1 I4 W2 I5 W3 W4 W5 .
        rank 2: .  .  F0 I0 F1 I1 F2 I2 F3 I3 F4 I4 W0 F5 I5 W1 W2 W3 W4 W5

    The paper writes B for our I. The warm-up is twice as long as that of 1F1B, and on rank i each W comes 2i
    microbatches after its I: the ranks end as far apart as they start.

    Bubble time (p-1)·(F+I+2c-2W) with transfers of c, on the *per-rank span*: as in the paper, no barrier precedes the
    optimizer. On the flush makespan, from 0 to the last end, it is (p-1)·max(F+c, F+I+2c-2W), the least there is where
    I+c ≤ 2W. Both hold for W ≤ F, W ≤ I and c ≤ W. Peak activations 2(p-i)-1 on rank i; with what waits for its W,
    (2(p-i)-1)·M_B + 2i·M_W, where F keeps M_B and I keeps M_W ≤ M_B of it: never more than (2p-1)·M_B.

    Defined for every p ≥ 1 and m ≥ 2p.

    Raises:
        ScheduleError: p below 1, or m below 2p.
    """
    check_sizes("zb_h2", num_ranks=num_ranks, num_microbatches=num_microbatches)
    if num_microbatches < 2 * num_ranks:
        raise ScheduleError(
            f"zb_h2: num_microbatches={num_microbatches} does not fill the warm-up of num_ranks={num_ranks}; use at "
            f"least twice as many as ranks, num_microbatches={2 * num_ranks}, or zb_h1"
        )
    ranks = tuple(
        split_1f1b(rank, num_microbatches, ahead=2 * (num_ranks - 1 - rank), lag=2 * rank) for rank in range(num_ranks)
    )
    return Schedule("zb_h2", Placement.looped(num_ranks), num_microbatches, ranks)
