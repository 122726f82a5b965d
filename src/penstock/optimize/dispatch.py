"""List scheduling under a memory limit: on a clock, each rank takes the op that costs it least to take now.

What may run next on a rank is a backward or a forward whose input is there or known to be under way, or a W whose I has
run. Each has a price: the moment at which it could start, plus a *patience*, a number of seconds by which its kind may
be passed over for another. A rank that chooses what has not arrived yet sleeps until then and chooses again.

A forward is admitted while the rank has room for it and for what its later stages need (`Problem.reserve`), so that
no rank ever runs into a dead end, whatever the policy.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from penstock.optimize.problem import Problem
from penstock.simulator.jit import jit
from penstock.simulator.orders import Floats, Ints


class Policy(NamedTuple):
    """What decides between ops that could run.

    Attributes:
        forward: per rank the patience of F in seconds, against that of a backward, which is 0.
        weight: per rank the patience of W.
        crowded: per rank the patience of W while a forward waits for memory.
        live: per rank the most that may be kept between F and backward; no more than the limit.
        alternate: whether the patience of F changes its sign behind a forward, as in 1F1B.
        group: microbatches that pass one stage of a rank before the next gets its turn.
        deepest: whether of several stages the furthest along the way comes first, whatever the microbatch.
    """

    forward: Floats
    weight: Floats
    crowded: Floats
    live: Floats
    alternate: bool
    group: int
    deepest: bool


def dispatched(problem: Problem, policy: Policy) -> tuple[Ints, Ints, float]:
    """Returns the words of the ranks under `policy`, their lengths, and what they take by the objective."""
    words = np.zeros((problem.num_ranks, int(problem.lengths.max())), np.int64)
    makespan, span = _dispatch(
        words,
        problem.held,
        problem.rank_of,
        (problem.seconds, problem.down, problem.up),
        (problem.activation, problem.deferred, problem.limit, problem.reserve),
        (problem.num_microbatches, int(problem.backward_kind), problem.splits),
        (policy.forward, policy.weight, policy.crowded, policy.live),
        (policy.alternate, policy.group, policy.deepest),
    )
    return words, problem.lengths, makespan if problem.objective == "makespan" else span


@jit
def _turn(group: int, deepest: bool, stage: int, last: int, turn: int, backwards: bool) -> int:
    """Returns by what ready ops of one kind are sorted: the least goes first."""
    way = last - stage if backwards else stage
    if deepest:
        return -way
    return (turn // group) * (last + 1) + way


@jit
def _dispatch(  # noqa: PLR0913, PLR0912, PLR0915, C901  # one loop over a clock, all of it numbers
    words: Any, held: Any, rank_of: Any, times: Any, memory: Any, sizes: Any, patience: Any, choice: Any
) -> tuple[float, float]:
    """Fills `words`; returns makespan and longest span."""
    seconds, down, up = times
    activation, deferred, limit, reserve = memory
    num_microbatches, back, splits = sizes
    wait_forward, wait_weight, wait_crowded, live_limit = patience
    alternate, group, deepest = choice
    num_ranks, last = held.shape[0], len(down) - 1
    forward, backward = np.zeros((last + 1, num_microbatches)), np.zeros((last + 1, num_microbatches))
    done = np.zeros((4, last + 1), np.int64)
    at, begun = np.zeros(num_ranks, np.int64), np.full(num_ranks, -1.0)
    clock, wake = np.zeros(num_ranks), np.zeros(num_ranks)
    kept, live = np.zeros(num_ranks), np.zeros(num_ranks)
    before = np.full(num_ranks, -1, np.int64)
    while True:
        rank = int(np.argmin(wake))
        now = wake[rank]
        if now == np.inf:
            break
        # the best op of each kind: when it could start, its turn, its stage
        start_f, turn_f, stage_f, start_b, turn_b, stage_b, stage_w = np.inf, 0, -1, np.inf, 0, -1, -1
        pending_w, blocked = np.int64(1 << 60), False
        for chunk in range(held.shape[1]):
            stage = held[rank, chunk]
            if stage < 0:
                break
            turn = done[0, stage]
            if turn < num_microbatches and (stage == 0 or done[0, stage - 1] > turn):
                start = now if stage == 0 else max(now, forward[stage - 1, turn] + down[stage - 1])
                key = _turn(group, deepest, stage, last, turn, False)
                need = activation[stage] + reserve[stage]
                if kept[rank] + need > limit[rank] * (1 + 1e-12) or live[rank] + need > live_limit[rank] * (1 + 1e-12):
                    blocked = blocked or (start <= now and live[rank] + need <= live_limit[rank] * (1 + 1e-12))
                elif start < start_f or (start == start_f and key < turn_f):
                    start_f, turn_f, stage_f = start, key, stage
            turn = done[1, stage]
            if turn < done[0, stage] and (stage == last or done[1, stage + 1] > turn):
                grown = kept[rank] - activation[stage] + deferred[stage]
                if grown <= limit[rank] * (1 + 1e-12):
                    start = now if stage == last else max(now, backward[stage + 1, turn] + up[stage + 1])
                    key = _turn(group, deepest, stage, last, turn, True)
                    if start < start_b or (start == start_b and key < turn_b):
                        start_b, turn_b, stage_b = start, key, stage
                else:
                    blocked = True
            if splits and done[3, stage] < done[1, stage] and done[3, stage] < pending_w:
                pending_w, stage_w = done[3, stage], stage
        price_f = wait_forward[rank]
        if alternate and before[rank] == 0:
            price_f = -price_f
        best, kind, stage, start = np.inf, -1, -1, np.inf
        if stage_b >= 0:
            best, kind, stage, start = start_b, back, stage_b, start_b
        if stage_f >= 0 and start_f + price_f < best:
            best, kind, stage, start = start_f + price_f, 0, stage_f, start_f
        if stage_w >= 0:
            price_w = wait_crowded[rank] if blocked else wait_weight[rank]
            if now + price_w < best:
                kind, stage, start = 3, stage_w, now
        if kind < 0:
            wake[rank] = np.inf
            continue
        if start > now:
            wake[rank] = start
            continue
        end = now + seconds[4 * stage + kind]
        if begun[rank] < 0:
            begun[rank] = now
        words[rank, at[rank]] = 4 * stage + kind
        at[rank] += 1
        clock[rank] = wake[rank] = end
        fed = -1
        if kind == 0:
            forward[stage, done[0, stage]] = end
            done[0, stage] += 1
            kept[rank] += activation[stage]
            live[rank] += activation[stage]
            fed = rank_of[stage + 1] if stage < last else rank
            before[rank] = 0
        elif kind == 3:
            done[3, stage] += 1
            kept[rank] -= deferred[stage]
        else:
            backward[stage, done[1, stage]] = end
            done[1, stage] += 1
            kept[rank] += deferred[stage] - activation[stage]
            live[rank] -= activation[stage]
            fed = rank_of[stage - 1] if stage > 0 else rank
            before[rank] = 1
        # whoever it feeds looks again, knowing when it arrives
        if fed >= 0 and fed != rank and wake[fed] > max(clock[fed], now):
            wake[fed] = max(clock[fed], now)
    return clock.max(), (clock - begun).max()
