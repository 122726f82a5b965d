"""ZB-1p, ZB-2p and between: the zero-bubble schedule found for measured costs and a memory limit."""

from __future__ import annotations

from itertools import product

from penstock.cluster import Cluster
from penstock.costs import PerStage, StageCosts
from penstock.errors import ScheduleError
from penstock.ir.placement import Placement
from penstock.ir.schedule import Schedule
from penstock.schedules.measured import check_given, limits_by_rank, split_seconds, transfer_seconds
from penstock.schedules.sizes import check_sizes
from penstock.schedules.zb_auto_clock import Clock, Terms
from penstock.schedules.zb_auto_search import Rules, placed


def zb_auto(
    num_ranks: int,
    num_microbatches: int,
    *,
    costs: StageCosts | None = None,
    cluster: Cluster | None = None,
    memory_limit: PerStage | None = None,
) -> Schedule:
    """Returns the best schedule of the automatic scheduler of Qi et al. 2024 (Zero Bubble, section 3.1).

        rank 0: F0 F1 F2 F3 .  I0 W0 F4 I1 W1 I2 W2 I3 W3 I4 W4 .
        rank 1: .  F0 F1 F2 I0 F3 I1 W0 I2 F4 I3 W1 W2 I4 W3 W4 .
        rank 2: .  .  F0 I0 F1 I1 F2 I2 F3 I3 W0 F4 I4 W1 W2 W3 W4

    Drawn with memory_limit=4, between what zb_h1 holds and zb_h2. The paper writes B for our I. A greedy list scheduler
    (`zb_auto_search`) runs under each of the eight combinations of its rules. The schedule with the shortest *per-rank
    span* is kept, the first of equals: as in the paper, no barrier precedes the optimizer, and nothing minimises the
    flush makespan.

    With equal stages, no transfer times, W ≤ F and W ≤ I, makespan and span at the default limit are those of zb_h1:
    bubble time (p-1)·(F+I-W) for m ≥ p. At (2p-1)·M_B and for m ≥ 2p the span is at most that of zb_h2, without bubble
    where F = I = W. No rank holds more than its limit. Defined for every p ≥ 1 and m ≥ 1.

    Args:
        num_ranks: p, one stage a rank.
        num_microbatches: m.
        costs: seconds of F, I and W, bytes of what F keeps (`activation_bytes`, M_B), of what I keeps for W
            (`deferred_bytes`, M_W) and of boundaries. None means F = I = W = 1. Where F and I keep no bytes, a
            microbatch counts 1 from its F to its W.
        cluster: how fast devices are and how long a boundary takes; None means that it takes no time.
        memory_limit: the most that F and I may keep on a rank at once, one number or one a rank, in the unit of
            `activation_bytes`. None means p microbatches, p·M_B: the paper's ZB-1p; 2p·M_B is its ZB-2p.

    Raises:
        ScheduleError: p or m below 1, or a memory limit that a single microbatch exceeds.
        UserError: costs for another number of stages.
    """
    check_sizes("zb_auto", num_ranks=num_ranks, num_microbatches=num_microbatches)
    check_given(costs, cluster)
    costs = costs or StageCosts()
    cluster = cluster or Cluster.uniform(num_ranks)
    ranks = range(num_ranks)
    activation, deferred = _memory(costs, num_ranks)
    terms = Terms(
        num_microbatches,
        split_seconds("zb_auto", costs, cluster, ranks=ranks),
        transfer_seconds(costs, cluster, ranks=ranks),
        activation,
        deferred,
        _limits(memory_limit, tuple(map(max, activation, deferred))),
    )
    clocks = (placed(terms, Rules(*choice)) for choice in product((True, False), repeat=3))
    best = min(clocks, key=Clock.longest_span)
    return Schedule("zb_auto", Placement.looped(num_ranks), num_microbatches, tuple(map(tuple, best.orders)))


def _memory(costs: StageCosts, num_ranks: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns what F and what I keep on each rank."""
    activation = costs.per_stage("activation_bytes", num_ranks)
    deferred = costs.per_stage("deferred_bytes", num_ranks)
    if any((*activation, *deferred)):
        return activation, deferred
    return (1,) * num_ranks, (1,) * num_ranks


def _limits(memory_limit: PerStage | None, needs: tuple[float, ...]) -> tuple[float, ...]:
    """Returns the limit of each rank, given what a single microbatch needs there."""
    num_ranks = len(needs)
    if memory_limit is None:
        return tuple(num_ranks * need for need in needs)
    limits = limits_by_rank("zb_auto", memory_limit, num_ranks, example=num_ranks * max(needs))
    for rank, (limit, need) in enumerate(zip(limits, needs, strict=True)):
        if not limit >= need:
            raise ScheduleError(
                f"zb_auto: memory_limit={limit} on rank {rank}, where one microbatch takes {need}; no schedule meets "
                f"that, use {need} or more: {num_ranks * need} idles as little as zb_h1"
            )
    return limits
