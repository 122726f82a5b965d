"""ZB-V for measured costs: the order of zb_v, with W placed where they fill gaps within a memory limit."""

from __future__ import annotations

from itertools import product

from penstock.cluster import Cluster
from penstock.costs import PerStage, StageCosts
from penstock.ir.placement import Placement
from penstock.ir.schedule import Schedule
from penstock.schedules.measured import check_given
from penstock.schedules.sizes import check_sizes
from penstock.schedules.zb_v_greedy_clock import Clock
from penstock.schedules.zb_v_greedy_search import Rules, placed
from penstock.schedules.zb_v_greedy_terms import Terms, terms_of


def zb_v_greedy(
    num_ranks: int,
    num_microbatches: int,
    *,
    costs: StageCosts | None = None,
    cluster: Cluster | None = None,
    memory_limit: PerStage | None = None,
) -> Schedule:
    """Returns the best schedule of the greedy V scheduler of Qi et al. 2024 (arXiv 2401.10241: ZB-V).

        rank 0: 0F0 0F1 0F2 0F3 0F4 5F0 5I0 5W0 5F1 5I1 5W1 5F2 5I2 5W2 0I0 0W0 5F3 5I3 5W3 0I1 0W1 5F4 5I4 0I2 5W4 0I3 0W2 0I4 0W3 0W4 .   .
        rank 1: .   1F0 1F1 1F2 4F0 1F3 4F1 4I0 4W0 4F2 4I1 4W1 1F4 1I0 1W0 4F3 4I2 4W2 1I1 1W1 4F4 4I3 1I2 4I4 1I3 4W3 1I4 1W2 4W4 1W3 1W4 .
        rank 2: .   .   2F0 3F0 2F1 3F1 2F2 3F2 3I0 3W0 2F3 2I0 2W0 3F3 3I1 3W1 2F4 2I1 2W1 3F4 3I2 2I2 3I3 2I3 3I4 2I4 3W2 2W2 3W3 2W3 3W4 2W4

    The paper writes B for our I. F and I run in the order of zb_v, W where they fill gaps: a list scheduler
    (`zb_v_greedy_search`) runs under each of the four combinations of its rules, each time again as long as knowing
    which ranks may idle makes it better. The schedule with the shortest *per-rank span* is kept, the first of equals:
    as in the paper, no barrier precedes the optimizer, and nothing minimises the flush makespan.

    For F = I = W and no transfer times the span is that of zb_v, so without bubble for m ≥ 2p-1. It is a heuristic: at
    rare times zb_v itself idles a little less. No rank holds more than its limit; with more than p·M the first ranks
    also run ahead with F, which hides transfers. Defined for every p ≥ 1 and m ≥ 1.

    Args:
        num_ranks: p; rank i holds stages i and 2p-1-i.
        num_microbatches: m.
        costs: seconds of F, I and W, bytes of what F keeps (`activation_bytes`), of what I keeps for W
            (`deferred_bytes`) and of boundaries, by stage. None means F = I = W = 1. Where F and I keep no bytes, a
            microbatch counts 1 on each stage from its F to its W.
        cluster: how fast devices are and how long a boundary takes; None means that it takes no time.
        memory_limit: the most that F and I may keep on a rank at once, one number or one a rank, in the unit of
            `activation_bytes`. None means p microbatches of both stages, p·M, or what zb_v holds where that is more,
            because the rank's first stage keeps more than its second.

    Raises:
        ScheduleError: p or m below 1, a memory limit below what zb_v holds, or costs that know no I and W.
        UserError: costs for another number of stages.
    """  # noqa: E501 - the drawing
    check_sizes("zb_v_greedy", num_ranks=num_ranks, num_microbatches=num_microbatches)
    check_given(costs, cluster)
    costs = costs or StageCosts()
    cluster = cluster or Cluster.uniform(num_ranks)
    terms = terms_of(num_ranks, num_microbatches, costs=costs, cluster=cluster, memory_limit=memory_limit)
    rules = (Rules(before_forwards=f, before_backwards=b) for b, f in product((True, False), repeat=2))
    best = min((_settled(terms, one) for one in rules), key=lambda clock: clock.worst)
    return Schedule("zb_v_greedy", Placement.v_shaped(num_ranks), num_microbatches, tuple(best.orders))


def _settled(terms: Terms, rules: Rules) -> Clock:
    """Returns the last pass that was better than the one before, each told how much less than the worst ranks idled."""
    best = placed(terms, rules, slack=(0,) * terms.num_ranks)
    while True:
        slack = [best.worst - best.lateness(rank) for rank in range(terms.num_ranks)]
        again = placed(terms, rules, slack=slack, below=best.worst)
        if again.worst >= best.worst:
            return best
        best = again
