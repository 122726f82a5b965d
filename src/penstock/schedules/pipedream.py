"""PipeDream: 1F1B that never flushes; every microbatch steps the weights at once."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from math import lcm

from penstock.errors import ScheduleError
from penstock.ir.placement import Placement
from penstock.ir.schedule import Schedule, WeightRule
from penstock.schedules.asynchronous import without_flush
from penstock.schedules.sizes import check_sizes


def pipedream(
    num_ranks: int,
    num_microbatches: int,
    *,
    vertical_sync: bool = False,
    replicas: Sequence[int] | None = None,
) -> Schedule:
    """Returns the schedule of Narayanan et al. 2019 (PipeDream, SOSP'19, sections 3.2 and 3.3).

        rank 0: F0 F1 F2 .  .  B0 S0 F3 B1 S1 .  B2 S2 .  B3 S3
        rank 1: .  F0 F1 .  B0 S0 F2 B1 S1 F3 B2 S2 .  B3 S3 .
        rank 2: .  .  F0 B0 S0 F1 B1 S1 F2 B2 S2 F3 B3 S3 .  .

    A backward uses the version that its forward used (weight stashing), so stage k keeps p-k versions once
    m ≥ 2(p-k)-2, and its gradients are p-1-k versions old when they are applied:
    w(t+1) = w(t) - η∇f(w_1(t-p+1), ..., w_p(t)). With vertical sync all stages of a microbatch use the version
    that the input stage used: a staleness of p-1 and, once m ≥ 2p-1, p versions on every stage.

    Makespan (m+p-1)·(F+B) + m·S: there is a fill and a drain, but no bubble in between; bubble time (p-1)·(F+B),
    which for each microbatch vanishes as m grows. Peak activations min(p-i, m) on rank i. Defined for every p ≥ 1
    and m ≥ 1.

    Stage k may be held by n_k ranks; they take microbatches in turn, sum their gradients, and step together: a
    version is then n_k microbatches. With N_k ranks from stage k on, each of them has ⌈N_k/n_k⌉ microbatches in
    flight; at the input stage that is ⌈ranks / replicas⌉. As many versions are kept, and staleness is one less. m is a
    multiple of every n_k. With vertical sync n_k divides n_0, so that the input stage's versions exist on all. Stages
    whose cost is in proportion to n_k run without bubbles in between where the input stage alone is replicated. Ranks
    of a later stage lose time to stepping together: with B = 2F, 1/5 of it in (1, 2) and 1/7 in (3, 2).

    Args:
        num_ranks: p.
        num_microbatches: m.
        vertical_sync: whether all stages of a microbatch use the input stage's version.
        replicas: n_k, how many ranks hold each stage; they add up to p. None is one a stage.

    Raises:
        ScheduleError: p or m below 1, replicas that do not add up to p, m that is no multiple of each, or vertical sync
            where a stage is stepped at other microbatches than the input stage.
    """
    check_sizes("pipedream", num_ranks=num_ranks, num_microbatches=num_microbatches)
    counts = _counts(replicas, num_ranks, vertical_sync)
    rows = _rows(counts, num_microbatches)
    first = list(accumulate(counts, initial=0))[:-1]
    ranks = tuple(
        without_flush(
            stage,
            range(turn, num_microbatches, count),
            ahead=(num_ranks - first[stage] - 1) // count,
            num_rows=rows,
        )
        for stage, count in enumerate(counts)
        for turn in range(count)
    )
    table = ([first[stage] + row % count for stage, count in enumerate(counts)] for row in range(rows))
    rule = WeightRule.VERTICAL_SYNC if vertical_sync else WeightRule.STASH
    return Schedule("pipedream", Placement.replicas(*table), num_microbatches, ranks, rule)


def _counts(replicas: Sequence[int] | None, num_ranks: int, vertical_sync: bool) -> tuple[int, ...]:
    """Returns how many ranks hold each stage; refuses numbers that are not defined."""
    works = (num_ranks - 1, 1) if num_ranks > 1 else (1,)
    if replicas is None:
        return (1,) * num_ranks
    if not isinstance(replicas, Sequence):
        raise ScheduleError(f"pipedream: replicas={replicas!r} is not a number for each stage; use e.g. {works}")
    counts = tuple(replicas)
    for stage, count in enumerate(counts):
        check_sizes("pipedream", **{f"replicas[{stage}]": count})
    if sum(counts) != num_ranks:
        raise ScheduleError(
            f"pipedream: replicas={counts} are {sum(counts)} ranks, not num_ranks={num_ranks}; give a number for each "
            f"stage that add up to it, e.g. {works}"
        )
    if vertical_sync and any(counts[0] % count for count in counts):
        raise ScheduleError(
            f"pipedream: replicas={counts} with vertical_sync; a stage has the versions of the input stage only where "
            f"its number divides the first, as in {works}"
        )
    return counts


def _rows(counts: tuple[int, ...], num_microbatches: int) -> int:
    """Returns after how many microbatches the turns of all stages repeat; refuses what is no multiple of it."""
    rows = lcm(*counts)
    if num_microbatches % rows:
        works = num_microbatches + -num_microbatches % rows
        raise ScheduleError(
            f"pipedream: num_microbatches={num_microbatches} gives the ranks of a stage of replicas={counts} unequally "
            f"many; use a multiple of {rows}, e.g. num_microbatches={works}"
        )
    return rows
