"""An asynchronous schedule, one batch after another, without the pipeline emptying in between."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate, chain
from typing import NamedTuple

from penstock.errors import ScheduleError, check_type
from penstock.ir.ops import BACKWARD, Op, OpKind
from penstock.ir.schedule import Schedule
from penstock.ir.steps import SYNCHRONOUS


class _Phases(NamedTuple):
    """One rank's ops.

    Attributes:
        warm_up: forwards before the first that a backward follows.
        steady: from there to the backward behind the last forward.
        cool_down: what is left, one group of a backward and what belongs to it for each op of the warm-up.
    """

    warm_up: tuple[Op, ...]
    steady: tuple[Op, ...]
    cool_down: tuple[tuple[Op, ...], ...]


def unbroken(schedule: Schedule, times: int) -> Schedule:
    """Returns `schedule` for `times` batches of m microbatches, one behind the other without a flush.

        pipedream(2, 3)                 rank 0: F0 F1 B0 S0 F2 B1 S1 B2 S2
        unbroken(pipedream(2, 3), 2)    rank 0: F0 F1 B0 S0 F2 B1 S1 │ F3 B2 S2 F4 B3 S3 F5 B4 S4 │ B5 S5

    The forwards of a warm-up fill the gaps that the cool-down before them has. As many microbatches are in flight as
    `schedule` has itself: all that its family can have from m = p on (2p - 1 for pipemare). Then
    unbroken(pipedream(p, m), k) is pipedream(p, k·m), and likewise for the others.

    Args:
        schedule: one with optimizer steps, without overlapped pairs or offloading.
        times: how many batches, at least 1.

    Raises:
        ScheduleError: one of the above is not so, or a rank ends with other than one backward for each forward that
            it begins with.
    """
    check_type("schedule", schedule, Schedule, example="e.g. penstock.pipedream(4, 8)")
    if isinstance(times, bool) or not isinstance(times, int) or times < 1:
        raise ScheduleError(f"times={times!r}; give how many batches follow one another, e.g. 2")
    _check(schedule)
    count = schedule.num_microbatches
    return replace(
        schedule,
        num_microbatches=times * count,
        ranks=tuple(tuple(chain.from_iterable(_parts(_phases(schedule, r), count, times))) for r in _ranks(schedule)),
    )


def part_ends(schedule: Schedule, times: int) -> tuple[tuple[int, ...], ...]:
    """Returns, for each rank of `unbroken(schedule, times)`, how many of its ops precede the end of each part.

    Part k < times is what a rank does from the first forward of batch k to right before that of the next; the last
    part is what is left then: the cool-down.
    """
    count = schedule.num_microbatches
    return tuple(tuple(accumulate(map(len, _parts(_phases(schedule, r), count, times)))) for r in _ranks(schedule))


def _ranks(schedule: Schedule) -> range:
    return range(schedule.num_ranks)


def _check(schedule: Schedule) -> None:
    for what, there in (
        ("leaves the optimizer step to the loop, which needs its flush", schedule.weight_rule in SYNCHRONOUS),
        ("overlaps ops", schedule.overlapped),
        ("offloads activations", schedule.keepers),
    ):
        if there:
            raise ScheduleError(f"{schedule.name} {what}; only e.g. pipedream, pipedream_2bw or pipemare goes on")


def _phases(schedule: Schedule, rank: int) -> _Phases:
    ops = schedule.ranks[rank]
    leading = next((at for at, op in enumerate(ops) if op.kind != OpKind.F), len(ops))
    ahead = max(0, leading - 1)
    backwards = [at for at, op in enumerate(ops) if op.kind in BACKWARD]
    begin = backwards[len(backwards) - ahead] if 0 < ahead <= len(backwards) else len(ops)
    starts = [at for at in backwards if at >= begin]
    ends = [*starts[1:], len(ops)][: len(starts)]
    groups = tuple(ops[start:end] for start, end in zip(starts, ends, strict=True))
    if len(groups) != ahead or any(op.kind == OpKind.F for op in ops[begin:]):
        raise ScheduleError(
            f"{schedule.name} cannot go on without a flush: rank {rank} begins with {ahead} forwards ahead, and does "
            f"not end with {ahead} backwards to run between those of the next batch; use e.g. pipedream"
        )
    return _Phases(ops[:ahead], ops[ahead:begin], groups)


def _parts(phases: _Phases, count: int, times: int) -> Iterator[tuple[Op, ...]]:
    yield phases.warm_up + phases.steady
    for batch in range(1, times):
        behind = [_moved(group, (batch - 1) * count) for group in phases.cool_down]
        ahead = _moved(phases.warm_up, batch * count)
        filled = chain.from_iterable((op, *group) for op, group in zip(ahead, behind, strict=True))
        yield (*filled, *_moved(phases.steady, batch * count))
    yield tuple(chain.from_iterable(_moved(group, (times - 1) * count) for group in phases.cool_down))


def _moved(ops: Sequence[Op], by: int) -> tuple[Op, ...]:
    return tuple(op._replace(microbatch=op.microbatch + by) for op in ops)
