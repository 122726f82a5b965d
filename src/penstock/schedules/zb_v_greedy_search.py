"""One pass of zb_v_greedy's list scheduler. Ops are placed on a clock, which fixes the order of every rank.

    1  fill      The first F goes down the V and up again. Before it comes back to a rank, that rank and those above
                 it add two F of their first stage, and more while memory and time allow.
    2  level     From rank 1 down, all ranks from this one on add F, first and second stage in turn, until this one
                 has as many as the rank above and one more of its second stage.
    3  turns     2m times: an I on every rank, then an F on every rank that has one whose input is placed.
    4  the rest  All W left.

Before an F or I of a turn a rank places W: while memory is short; while a whole W ends before the op's input
arrives; and one that does not, where the gap would make this rank the latest.

The counts of the fill decide the order of F and I; time decides only how many F it adds beyond two, and where W go.
With two everywhere that order is the one of zb_v.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from penstock.ir.ops import OpKind
from penstock.schedules.zb_v_greedy_clock import Clock
from penstock.schedules.zb_v_greedy_terms import Terms


class Rules(NamedTuple):
    """The two choices of the grid: whether the third rule for W holds before an F, and before an I of the V's end.

    Attributes:
        before_forwards: before an F.
        before_backwards: before an I of a rank's second stage; it always holds before one of its first.
    """

    before_forwards: bool
    before_backwards: bool


def placed(terms: Terms, rules: Rules, *, slack: Sequence[float], below: float = float("inf")) -> Clock:
    """Returns the clock on which the scheduler has placed every op, or those up to where it was no better than `below`.

    Args:
        terms: costs and limits.
        rules: which W are placed before a gap.
        slack: how long each rank may idle in any case, in seconds.
        below: stop where a rank's idle time and work have come to as much; what is placed later can only add to it.
    """
    clock = Clock(terms)
    _fill(clock)
    _level(clock)
    for _ in range(2 * terms.num_microbatches):
        if clock.worst >= below:
            return clock
        for stage in _input_grads(clock):
            whole_only = stage >= terms.num_ranks and not rules.before_backwards
            _put_after_weights(clock, OpKind.I, stage, slack=slack, whole_only=whole_only)
        for rank in range(terms.num_ranks):
            for stage in _forward(clock, rank):
                _put_after_weights(clock, OpKind.F, stage, slack=slack, whole_only=not rules.before_forwards)
    for rank in range(terms.num_ranks):
        while clock.pending[rank]:
            clock.put_weight(rank)
    return clock


def _fill(clock: Clock) -> None:
    terms, room = clock.terms, clock.terms.room
    last = terms.num_ranks - 1
    for rank in range(terms.num_ranks):
        clock.put(OpKind.F, rank)
    clock.put(OpKind.F, terms.stages(last)[1])
    for rank in range(last - 1, -1, -1):
        first, second = terms.stages(rank)
        arrival = clock.arrival(OpKind.F, second)
        added = 0
        while clock.count(OpKind.F, first) < terms.num_microbatches:
            in_time = clock.free[rank] + terms.seconds[OpKind.F][first] <= arrival
            if added >= 2 and not (room and in_time):
                break
            room -= added >= 2
            added += 1
            for above in range(rank + 1):
                clock.put(OpKind.F, above)
        clock.put(OpKind.F, second)


def _level(clock: Clock) -> None:
    terms = clock.terms
    turn = 0
    for rank in range(1, terms.num_ranks):
        while _is_behind(clock, rank):
            for below in range(terms.num_ranks - 1, rank - 1, -1):
                stage = terms.stages(below)[turn]
                if clock.count(OpKind.F, stage) < terms.num_microbatches:
                    clock.put(OpKind.F, stage)
            turn = 1 - turn


def _is_behind(clock: Clock, rank: int) -> bool:
    """Whether `rank` has fewer F than the rank above, or not one more of its second stage where there is one."""
    terms = clock.terms
    here, above = (
        [clock.count(OpKind.F, stage) for stage in terms.stages(neighbour)] for neighbour in (rank, rank - 1)
    )
    return sum(here) < sum(above) or here[1] <= above[1] < terms.num_microbatches


def _input_grads(clock: Clock) -> list[int]:
    """Returns the stage of each rank's next I: its first where the input is placed and an I is due, else its second."""
    terms = clock.terms
    chosen_first, chosen_second = [], []
    for rank in range(terms.num_ranks):
        first, second = terms.stages(rank)
        is_due = clock.count(OpKind.I, first) < clock.count(OpKind.I, second)
        is_last = clock.count(OpKind.I, second) == terms.num_microbatches
        if is_due and (is_last or clock.is_fed(OpKind.I, first)):
            chosen_first.append(first)
        else:
            chosen_second.append(second)
    return [*reversed(chosen_first), *chosen_second]


def _forward(clock: Clock, rank: int) -> list[int]:
    """Returns the stage of the rank's next F: its second where the input is placed, else its first; or none."""
    terms = clock.terms
    first, second = terms.stages(rank)
    if clock.count(OpKind.F, second) == terms.num_microbatches:
        return []
    is_due = clock.count(OpKind.F, second) < clock.count(OpKind.F, first)
    if is_due and clock.is_fed(OpKind.F, second):
        return [second]
    is_left = clock.count(OpKind.F, first) < terms.num_microbatches
    return [first] if is_left and clock.is_fed(OpKind.F, first) else []


def _put_after_weights(clock: Clock, kind: OpKind, stage: int, *, slack: Sequence[float], whole_only: bool) -> None:
    """Places the next F or I of `stage`, and before it the W that memory or the gap call for."""
    rank = clock.terms.rank_of(stage)
    pending, weight = clock.pending[rank], clock.terms.seconds[OpKind.W]
    arrival = clock.arrival(kind, stage)
    while pending and clock.exceeds(kind, stage):
        clock.put_weight(rank)
    while pending and clock.free[rank] + weight[pending[0]] <= arrival:
        clock.put_weight(rank)
    bearable = max(clock.worst - clock.lateness(rank), slack[rank] - clock.idle[rank])
    if pending and not whole_only and arrival - clock.free[rank] > bearable:
        clock.put_weight(rank)
    clock.put(kind, stage)
