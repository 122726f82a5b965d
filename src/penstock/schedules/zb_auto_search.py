"""One pass of zb_auto's greedy list scheduler. Ops are placed on a clock, which fixes the order of every rank.

    1  fill       F0 goes down the ranks.
    2  warm-up    Each rank adds F while its memory allows and its first I has not arrived. Then I0 goes up.
    3  turns      For each later microbatch an F on every rank, downwards, then an I on every rank, upwards.
    4  the rest   All W left.

Before an F or I of a turn a rank issues W: while memory is short; while a whole W ends before the op's input
arrives; and one that does not, where the gap would make this rank the one that has idled longest. Rank 0, whose
I nobody waits for, issues all its W as soon as it is out of F. A rank stays at least one F ahead of the next.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

from penstock.ir.ops import OpKind
from penstock.schedules.zb_auto_clock import Clock, Terms


class Rules(NamedTuple):
    """The three choices of the grid.

    Attributes:
        keep_first_backward: the warm-up adds no F that would still run when the first I arrives.
        skip_forwards: a rank two or more F ahead leaves one out where it would hold up the next I.
        fill_small_gaps: one W more before every gap, not only where the rank would idle longest.
    """

    keep_first_backward: bool
    skip_forwards: bool
    fill_small_gaps: bool


def placed(terms: Terms, rules: Rules) -> Clock:
    """Returns the clock on which the scheduler has placed every op."""
    clock = Clock(terms)
    downwards, upwards = range(clock.num_ranks), range(clock.num_ranks - 1, -1, -1)
    for rank in downwards:
        clock.put(OpKind.F, rank)
    for rank, extra in enumerate(_warm_up(clock, rules)):
        for _ in range(extra):
            clock.put(OpKind.F, rank)
    for rank in upwards:
        clock.put(OpKind.I, rank)
    for _ in range(1, terms.num_microbatches):
        for rank in _ranks_with_a_forward(clock, rules):
            _put_after_weights(clock, rules, OpKind.F, rank)
        for rank in upwards:
            _put_after_weights(clock, rules, OpKind.I, rank)
    for rank in downwards:
        _put_weights_left(clock, rank)
    return clock


def _warm_up(clock: Clock, rules: Rules) -> list[int]:
    """Returns how many F each rank adds before its first I: fewer than the rank before it, or all there are."""
    extra = [0] * clock.num_ranks
    seconds, last = clock.terms.seconds, clock.num_ranks - 1
    end = clock.free[last] + seconds[OpKind.I][last]
    for rank in range(last - 1, -1, -1):
        arrival = end + clock.terms.transfer[rank]
        extra[rank] = _forwards_before(clock, rules, arrival, rank)
        end = clock.free[rank] + extra[rank] * seconds[OpKind.F][rank]
        end = max(arrival, end) + seconds[OpKind.I][rank]
    everything = clock.terms.num_microbatches - 1
    for before, rank in pairwise(range(clock.num_ranks)):
        if extra[before] < everything:
            extra[rank] = min(extra[rank], max(extra[before] - 1, 0))
    return extra


def _forwards_before(clock: Clock, rules: Rules, arrival: float, rank: int) -> int:
    """Returns how many F `rank` may add before its first I, whose input is there at `arrival`."""
    forward, end, added = clock.terms.seconds[OpKind.F][rank], clock.free[rank], 0
    while added < clock.forwards_left(rank):
        # what I keeps for W may be more than what it frees
        if clock.exceeds(rank, forwards=added + 1) or clock.exceeds(rank, forwards=added + 1, backwards=1):
            break
        if end + forward > arrival if rules.keep_first_backward else end >= arrival:
            break
        end += forward
        added += 1
    return added


def _ranks_with_a_forward(clock: Clock, rules: Rules) -> range:
    """Returns the ranks that place an F in this turn. Where one goes without, so do all before it."""
    first = 0
    for rank in range(clock.num_ranks):
        left = clock.forwards_left(rank)
        if not left or (rules.skip_forwards and _forward_holds_up(clock, rank)):
            first = rank + 1
    return range(first, clock.num_ranks)


def _forward_holds_up(clock: Clock, rank: int) -> bool:
    """Whether `rank` can leave an F out, being far enough ahead of the next, and has no gap for it that matters."""
    following, seconds, terms = rank + 1, clock.terms.seconds, clock.terms
    if following == clock.num_ranks or clock.count(OpKind.F, rank) < clock.count(OpKind.F, following) + 2:
        return False
    next_input_grad = clock.free[following] + seconds[OpKind.F][following] + seconds[OpKind.I][following]
    arrival = next_input_grad + terms.transfer[rank]
    weights = 0
    while weights < clock.weights_left(rank) and clock.exceeds(rank, forwards=1, weights=weights):
        weights += 1
    end = clock.free[rank] + seconds[OpKind.F][rank] + weights * seconds[OpKind.W][rank]
    return end > arrival and arrival - clock.free[rank] <= clock.worst_idle - clock.idle[rank]


def _put_after_weights(clock: Clock, rules: Rules, kind: OpKind, rank: int) -> None:
    """Places the next F or I of `rank`, and before it the W that memory or the gap call for."""
    forwards, backwards = int(kind == OpKind.F), int(kind == OpKind.I)
    arrival, weight = clock.arrival(kind, rank), clock.terms.seconds[OpKind.W][rank]
    while clock.weights_left(rank) and clock.exceeds(rank, forwards=forwards, backwards=backwards):
        clock.put(OpKind.W, rank)
    while clock.weights_left(rank) and clock.free[rank] + weight <= arrival:
        clock.put(OpKind.W, rank)
    gap = arrival - clock.free[rank]
    worth_it = rules.fill_small_gaps or gap > clock.worst_idle - clock.idle[rank]
    if clock.weights_left(rank) and gap > 0 and worth_it:
        clock.put(OpKind.W, rank)
    if kind == OpKind.I and rank == 0 and not clock.forwards_left(rank):
        _put_weights_left(clock, rank)
    clock.put(kind, rank)


def _put_weights_left(clock: Clock, rank: int) -> None:
    while clock.weights_left(rank):
        clock.put(OpKind.W, rank)
