"""PipeDream-2BW: no flush, and two weight versions whatever the depth."""

from __future__ import annotations

from penstock.errors import ScheduleError
from penstock.ir.placement import Placement
from penstock.ir.schedule import Schedule, WeightRule
from penstock.schedules.asynchronous import check_per_version, without_flush
from penstock.schedules.sizes import check_sizes


def pipedream_2bw(num_ranks: int, num_microbatches: int, *, microbatches_per_version: int | None = None) -> Schedule:
    """Returns the schedule of Narayanan et al. 2021 (PipeDream-2BW, section 3.1: double-buffered weight updates).

        rank 0: F0 F1 F2 .  .  B0 F3 B1 F4 B2 S2 F5 B3 .  B4 .  B5 S5
        rank 1: .  F0 F1 .  B0 F2 B1 F3 B2 S2 F4 B3 F5 B4 .  B5 S5 .
        rank 2: .  .  F0 B0 F1 B1 F2 B2 S2 F3 B3 F4 B4 F5 B5 S5 .  .

    Each step applies n = `microbatches_per_version` ≥ p microbatches, here 3. Those of step t (from 0) use version
    t-1 on every stage, forward and backward: W(t+1) = W(t) - η∇f(W(t-1)), a staleness of 1 everywhere but in step 0,
    which uses version 0 as step 1 does. Every stage keeps two versions; one where there is only one step.

    Makespan (m+p-1)·(F+B) + (m/n)·S: bubble time (p-1)·(F+B) once for all versions, as nothing drains between them.
    Peak activations min(p-i, m) on rank i. Defined for every p ≥ 1, n ≥ p and every multiple m of n.

    Args:
        num_ranks: p.
        num_microbatches: m, of all versions together.
        microbatches_per_version: n; None takes the smallest divisor of m that is at least p: the most versions.

    Raises:
        ScheduleError: a size below 1, n below p, or m that is no multiple of n.
    """
    check_sizes("pipedream_2bw", num_ranks=num_ranks, num_microbatches=num_microbatches)
    if num_microbatches < num_ranks:
        raise ScheduleError(
            f"pipedream_2bw: num_microbatches={num_microbatches} is less than num_ranks={num_ranks}; a version takes "
            f"at least one microbatch a rank, e.g. num_microbatches={2 * num_ranks} for two versions"
        )
    per_version = microbatches_per_version
    if per_version is None:
        per_version = _smallest_divisor(num_microbatches, num_ranks)
    check_sizes("pipedream_2bw", microbatches_per_version=per_version)
    if per_version < num_ranks:
        raise ScheduleError(
            f"pipedream_2bw: microbatches_per_version={per_version} is less than num_ranks={num_ranks}; two versions "
            f"cover what is in flight from one microbatch a rank on, use at least {num_ranks}"
        )
    check_per_version("pipedream_2bw", num_microbatches, per_version)
    ranks = tuple(
        without_flush(rank, range(num_microbatches), ahead=num_ranks - 1 - rank, per_version=per_version)
        for rank in range(num_ranks)
    )
    placement = Placement.looped(num_ranks)
    return Schedule("pipedream_2bw", placement, num_microbatches, ranks, WeightRule.DOUBLE_BUFFERED)


def _smallest_divisor(number: int, least: int) -> int:
    return next(divisor for divisor in range(least, number + 1) if number % divisor == 0)
