"""PipeMare's order: no flush and no stash; forward and backward meet different weights."""

from __future__ import annotations

from penstock.ir.placement import Placement
from penstock.ir.schedule import Schedule, WeightRule
from penstock.schedules.asynchronous import check_per_version, without_flush
from penstock.schedules.sizes import check_sizes


def pipemare(num_ranks: int, num_microbatches: int, *, microbatches_per_version: int = 1) -> Schedule:
    """Returns the order of Yang et al. 2021 (PipeMare, section 2), without what it does to the learning rate.

        rank 0: F0 F1 F2 F3 F4 B0 F5 B1 S1 .  B2 .  B3 S3 .  B4 .  B5 S5
        rank 1: .  F0 F1 F2 B0 F3 B1 S1 F4 B2 F5 B3 S3 .  B4 .  B5 S5 .
        rank 2: .  .  F0 B0 F1 B1 S1 F2 B2 F3 B3 S3 F4 B4 F5 B5 S5 .  .

    Every op uses the weights that are there, so a rank keeps one version. Each step applies
    n = `microbatches_per_version` microbatches, here 2. Stage k has 2(p-1-k)+1 microbatches in flight, from the start
    of their F to the end of their B, as a pipeline does that runs one F and one B on every stage at every tick. In
    steps that is the delay τ_k = (2(p-1-k)+1)/n, to a power of which PipeMare scales stage k's learning rate (the
    paper counts stages from 1). Gradients are at most ⌈2(p-1-k)/n⌉ versions old, and on average 2(p-1-k)/n once the
    pipeline is full.

    Makespan (m+p-1)·(F+B) + (m/n)·S. Peak activations min(2(p-1-i)+1, m) on rank i. Defined for every p ≥ 1, n ≥ 1
    and every multiple m of n.

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
