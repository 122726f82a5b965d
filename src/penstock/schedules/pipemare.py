"""PipeMare's order: no flush and no stash; forward and backward meet different weights."""

from __future__ import annotations

from penstock.ir.placement import Placement
from penstock.ir.schedule import Schedule, WeightRule
from penstock.schedules.asynchronous import check_per_version, without_flush
from penstock.schedules.sizes import check_sizes


def pipemare(num_ranks: int, num_microbatches: int, *, microbatches_per_version: int = 1) -> Schedule:
    """Returns the order of Yang et al. 2021 (PipeMare, section 2), without what it does to the learning rate.

        rank 0: F0

    Every op uses the weights that are there, so one version is all that any rank keeps. Stage k has 2(p-1-k)+1
    microbatches in flight, between the start of their F and the end of their B: a forward with its backward on
    every stage at every tick. In versions of n microbatches that is the delay τ_k = (2(p-1-k)+1)/n by which
    PipeMare scales stage k's learning rate (τ to a falling power; the paper counts stages from 1). The gradients
    of a stage are at most ⌈2(p-1-k)/n⌉ versions old, on average 2(p-1-k)/n.

    Peak activations min(2(p-1-i)+1, m) on rank i. Defined for every p ≥ 1 and every
    multiple m of `microbatches_per_version`.

    Args:
        num_ranks: p.
        num_microbatches: m, of all versions together.
        microbatches_per_version: n, how many microbatches a step of the optimizer takes.

    Raises:
        ScheduleError: a size below 1, or m that is no multiple of `microbatches_per_version`.
    """
    check_sizes("pipemare", num_ranks=num_ranks, num_microbatches=num_microbatches)
    check_sizes("pipemare", microbatches_per_version=microbatches_per_version)
    check_per_version("pipemare", num_microbatches, microbatches_per_version)
    ranks = tuple(
        without_flush(
            rank,
            range(num_microbatches),
            ahead=2 * (num_ranks - 1 - rank),
            per_version=microbatches_per_version,
        )
        for rank in range(num_ranks)
    )
    return Schedule("pipemare", Placement.looped(num_ranks), num_microbatches, ranks, WeightRule.LATEST)
