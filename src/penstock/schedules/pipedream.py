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

        rank 0: F0 F1 F2 .  .  .  B0 S0 F3 B1 S1 .  B2 S2 .  B3 S3
        rank 1: .  F0 F1 .  B0 S0 F2 B1 S1 F3 B2 S2 .  B3 S3 .  .
        rank 2: .  .  F0 B0 S0 F1 B1 S1 F2 B2 S2 F3 B3 S3 .  .  .

    A backward uses the version that its forward used (weight stashing), so stage k keeps p-k versions once
    m ≥ 2(p-k)-2, and its gradients are p-1-k versions old when they are applied:
    w(t+1) = w(t) - η∇f(w_1(t-p+1), ..., w_p(t)). With vertical sync all stages of a microbatch use the version
    that the input stage used: p versions and a staleness of p-1 on every stage.

    Makespan (m+p-1)·(F+B) + m·S: there is a fill and a drain, but no bubble in between; bubble time (p-1)·(F+B),
    which for each microbatch vanishes as m grows. Peak activations min(p-i, m) on rank i. Defined for every p ≥ 1
    and m ≥ 1.

    Stage k may be held by n_k ranks; they take microbatches in turn, sum their gradients, and step together: a
    version is then n_k microbatches. With N_k ranks from stage k on, each of them has ⌈N_k/n_k⌉ microbatches in
    flight; at the input stage that is ⌈ranks / replicas⌉. m is a multiple of every n_k.

    Args:
        num_ranks: p.
        num_microbatches: m.
        vertical_sync: whether all stages of a microbatch use the input stage's version.
        replicas: n_k, how many ranks hold each stage; they add up to p. None is one a stage.

    Raises:
        ScheduleError: p or m below 1, replicas that do not add up, or m that is no multiple of one.
    """
    check_sizes("pipedream", num_ranks=num_ranks, num_microbatches=num_microbatches)
    counts = (1,) * num_ranks if replicas is None else tuple(replicas)
    rows = _rows(counts, num_ranks, num_microbatches)
    ranks = tuple(
        without_flush(
            stage,
            range(turn, num_microbatches, count),
            ahead=(num_ranks - before - 1) // count,
            num_rows=rows,
        )
        for stage, (count, before) in enumerate(zip(counts, accumulate(counts, initial=0), strict=False))
        for turn in range(count)
    )
    placement = Placement.replicas(
        *(
            [before + row % count for count, before in zip(counts, accumulate(counts, initial=0), strict=False)]
            for row in range(rows)
        )
    )
    rule = WeightRule.VERTICAL_SYNC if vertical_sync else WeightRule.STASH
    return Schedule("pipedream", placement, num_microbatches, ranks, rule)


def _rows(counts: tuple[int, ...], num_ranks: int, num_microbatches: int) -> int:
    """Returns after how many microbatches the turns of all stages repeat; refuses counts that do not fit."""
    for stage, count in enumerate(counts):
        check_sizes("pipedream", **{f"replicas[{stage}]": count})
    if sum(counts) != num_ranks:
        raise ScheduleError(
            f"pipedream: replicas={counts} are {sum(counts)} ranks, not num_ranks={num_ranks}; give one number a "
            f"stage that add up to it, e.g. {(num_ranks - 1, 1) if num_ranks > 1 else (1,)}"
        )
    rows = lcm(*counts)
    if num_microbatches % rows:
        works = num_microbatches + -num_microbatches % rows
        raise ScheduleError(
            f"pipedream: num_microbatches={num_microbatches} does not give each of the replicas={counts} of a stage "
            f"equally many; use a multiple of {rows}, e.g. num_microbatches={works}"
        )
    return rows
