"""Any schedule within less memory: activations that are needed late wait in the host's memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

from penstock.errors import ScheduleError, check_type
from penstock.ir.ops import BACKWARD, Op, OpKind
from penstock.ir.schedule import Schedule

_Key = tuple[int, int, int]
"""Stage, microbatch and replica."""


def offloaded(schedule: Schedule, most: int) -> Schedule:
    """Returns `schedule` with OFFLOADs and RELOADs by which no rank holds more than `most` activations on its device.

        rank 0 of 1F1B with p=4, most=2:  F0 F1 OFFLOAD1 F2 OFFLOAD2 F3 B0 RELOAD1 OFFLOAD3 F4 B1 RELOAD2 OFFLOAD4 F5 …

    The order of compute is the same. Before a forward that would be one too many, what is needed last of all that is
    held leaves for the host's memory; it comes back right behind the backward before its own, so that both ways run
    beside compute, or right before its own where so little may be held that it would be in the way. An activation
    leaves once at most.

    Args:
        schedule: one without overlapped pairs, whose activations no other rank keeps.
        most: microbatches of one stage chunk between F and B or I that a device may hold, at least 1.

    Raises:
        ScheduleError: one of the above is not so, or `most` is too few for the schedule's order.
    """
    check_type("schedule", schedule, Schedule, example="e.g. penstock.one_f_one_b(4, 8)")
    if isinstance(most, bool) or not isinstance(most, int) or most < 1:
        raise ScheduleError(f"most={most!r}; give how many activations a device may hold, e.g. 2")
    for what, there in (("overlaps ops", schedule.overlapped), ("offloads already", schedule.keepers)):
        if there:
            raise ScheduleError(f"{schedule.name} {what}; offload from another schedule, e.g. one_f_one_b")
    try:
        ranks = tuple(_rank(ops, most) for ops in schedule.ranks)
    except _TooFew:
        enough = next(n for n in range(most + 1, 1 + max(map(len, schedule.ranks))) if _fits(schedule, n))
        raise ScheduleError(
            f"most={most} is too few for {schedule.name}: something would have to leave twice; give most={enough}"
        ) from None
    keepers = tuple(range(schedule.num_ranks))
    return replace(schedule, name=f"{schedule.name}, offloaded", ranks=ranks, keepers=keepers)


class _TooFew(Exception):
    """Nothing is left that may leave."""


def _fits(schedule: Schedule, most: int) -> bool:
    try:
        for ops in schedule.ranks:
            _rank(ops, most)
    except _TooFew:
        return False
    return True


def _rank(ops: tuple[Op, ...], most: int) -> tuple[Op, ...]:
    try:
        return tuple(_within(ops, most, ahead=True))
    except _TooFew:
        return tuple(_within(ops, most, ahead=False))


def _within(ops: tuple[Op, ...], most: int, *, ahead: bool) -> Iterator[Op]:
    """Yields a rank's ops with what keeps it from holding more than `most` activations.

    Args:
        ops: of the rank.
        most: the limit.
        ahead: whether activations come back one backward early, where nothing is held in their place yet.
    """
    needed = {op[1:]: position for position, op in enumerate(ops) if op.kind in BACKWARD}
    backwards = [op[1:] for op in ops if op.kind in BACKWARD]
    following = dict(pairwise(backwards))
    held: dict[_Key, bool] = {}  # whether it may still leave
    away: set[_Key] = set()

    def room() -> Iterator[Op]:
        if len(held) == most:
            free = [key for key, may_leave in held.items() if may_leave]
            if not free:
                raise _TooFew
            latest = max(free, key=needed.__getitem__)
            del held[latest]
            away.add(latest)
            yield Op(OpKind.OFFLOAD, *latest)

    def back(key: _Key) -> Iterator[Op]:
        away.remove(key)
        held[key] = False
        yield Op(OpKind.RELOAD, *key)

    for op in ops:
        key = op[1:]
        if op.kind == OpKind.F and key in needed:
            yield from room()
            held[key] = True
        elif op.kind in BACKWARD and key in away:
            yield from room()
            yield from back(key)
        yield op
        if op.kind in BACKWARD:
            held.pop(key, None)
            coming = following.get(key)
            if ahead and coming in away and len(held) < most:
                yield from back(coming)
