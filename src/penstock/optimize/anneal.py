"""Local search over the orders of ranks: simulated annealing on their words.

A move takes an op that decides when the step ends (one on the critical path) before ops that stand in its way, or one
of these behind it. Words that break an order within their rank or exceed its memory are thrown away unseen; the
others are timed whole. Better ones are kept, others with a probability that shrinks to nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from penstock.optimize.policies import Found
from penstock.optimize.problem import Problem
from penstock.simulator.jit import jit
from penstock.simulator.orders import run_on, run_words

_REACH = 0.7
"""The chance that an op passes one more op."""

_FLAT = 0.02
"""What the mean end of all ranks counts beside that of the last: it tells moves apart that leave the last as it is."""


def annealed(problem: Problem, found: Found, *, steps: int, seed: int, goal: float, warmth: float = 0.002) -> Found:
    """Returns the best words found in so many steps.

    Args:
        problem: what is timed.
        found: where to start.
        steps: how many moves are tried.
        seed: of the choices.
        goal: seconds at which to stop, a lower bound.
        warmth: the temperature of the first move, as a share of the time to beat.
    """
    best = found.words.copy()
    value, _ = _anneal(
        best,
        found.lengths,
        (problem.seconds, problem.down, problem.up),
        (problem.activation, problem.deferred, problem.limit * (1 + 1e-9)),
        (problem.num_microbatches, problem.objective == "span"),
        (steps, seed % (1 << 31), goal * (1 + 1e-12)),
        (warmth, _REACH, _FLAT),
    )
    return Found(best, found.lengths, value, "local search")


@jit
def _random(state: Any) -> float:
    """Returns the next number from 0 to 1 of a linear congruence, the same with numba and without."""
    state[0] = (state[0] * 1103515245 + 12345) % 2147483648
    return float(state[0] / 2147483648.0)


@jit
def _allowed(word: Any, length: int, counts: Any, activation: Any, deferred: Any, limit: float) -> bool:
    """Whether the word keeps F, backward, W in order and no more than `limit` in memory."""
    counts[:] = 0
    held = 0.0
    for position in range(length):
        stage, kind = word[position] // 4, word[position] % 4
        if kind == 0:
            counts[0, stage] += 1
            held += activation[stage]
        elif kind == 3:
            counts[2, stage] += 1
            held -= deferred[stage]
            if counts[2, stage] > counts[1, stage]:
                return False
        else:
            counts[1, stage] += 1
            held += (deferred[stage] if kind == 2 else 0.0) - activation[stage]
            if counts[1, stage] > counts[0, stage]:
                return False
        if held > limit:
            return False
    return True


@jit
def _critical(  # noqa: PLR0913
    words: Any, lengths: Any, seconds: Any, starts: Any, turns: Any, where: Any, last_rank: int, path: Any
) -> int:
    """Fills `path` with rank and position of ops that decide the end on `last_rank`; returns how many there are."""
    last = where.shape[1] - 1
    rank_of = where[2, :, 0]
    for rank in range(len(lengths)):
        turns[:] = 0
        for position in range(lengths[rank]):
            stage, kind = words[rank, position] // 4, words[rank, position] % 4
            row = 0 if kind == 0 else 1
            if kind != 3:
                where[row, stage, turns[row, stage]] = position
                turns[row, stage] += 1
                rank_of[stage] = rank
    rank, position, count = last_rank, lengths[last_rank] - 1, 0
    while True:
        path[count, 0], path[count, 1] = rank, position
        count += 1
        begin = starts[rank, position]
        if position > 0:
            before = starts[rank, position - 1] + seconds[words[rank, position - 1]]
            if before >= begin * (1 - 1e-12):
                position -= 1
                continue
        letter = words[rank, position]
        stage, kind = letter // 4, letter % 4
        maker = stage - 1 if kind == 0 else stage + 1
        if begin <= 0 or kind == 3 or maker < 0 or maker > last:
            return count
        row, turn = (0 if kind == 0 else 1), 0
        for other in range(position):
            same = words[rank, other] // 4 == stage
            turn += same and (words[rank, other] % 4 == 0 if row == 0 else words[rank, other] % 4 in (1, 2))
        rank, position = rank_of[maker], where[row, maker, turn]


@jit
def _rerun(  # noqa: PLR0913
    words: Any, lengths: Any, times: Any, old: Any, rank: int, begin: int, starts: Any, forward: Any, backward: Any
) -> tuple[float, float]:
    """Returns what the words take that differ from those of the starts `old` on `rank` from position `begin` on.

    Whatever started before the op that was there cannot have waited for it or what follows, and starts as before.
    """
    seconds, down, up = times
    moment = old[rank, begin]
    at, clock = np.zeros(len(lengths), np.int64), np.zeros(len(lengths))
    done = np.zeros((2, len(down)), np.int64)
    for other in range(len(lengths)):
        length, position = begin if other == rank else lengths[other], 0
        while position < length and old[other, position] < moment:
            letter = words[other, position]
            stage, kind = letter // 4, letter % 4
            starts[other, position] = old[other, position]
            clock[other] = old[other, position] + seconds[letter]
            if kind == 0:
                forward[stage, done[0, stage]] = clock[other]
                done[0, stage] += 1
            elif kind != 3:
                backward[stage, done[1, stage]] = clock[other]
                done[1, stage] += 1
            position += 1
        at[other] = position
    return run_on(words, lengths, seconds, down, up, starts, forward, backward, at, clock, done)


@jit
def _score(words: Any, lengths: Any, seconds: Any, starts: Any, spans: bool, makespan: float, span: float) -> Any:
    """Returns the objective, the sum of what it is the largest of, and the rank where it is largest."""
    total, longest, worst = 0.0, -1.0, 0
    for rank in range(len(lengths)):
        if lengths[rank] == 0:
            continue
        final = lengths[rank] - 1
        end = starts[rank, final] + seconds[words[rank, final]]
        if spans:
            end -= starts[rank, 0]
        total += end
        if end > longest:
            longest, worst = end, rank
    return (span if spans else makespan), total, worst


@jit
def _anneal(  # noqa: PLR0912, PLR0915, C901  # one loop, all of it numbers
    best: Any, lengths: Any, times: Any, memory: Any, sizes: Any, search: Any, tuning: Any
) -> tuple[float, int]:
    """Improves `best` in place; returns what it takes and the steps made."""
    seconds, down, up = times
    activation, deferred, limit = memory
    num_microbatches, spans = sizes
    steps, seed, goal = search
    warmth, reach, flat = tuning
    num_ranks, num_stages = len(lengths), len(down)
    starts, kept = np.zeros(best.shape), np.zeros(best.shape)
    forward, backward = np.zeros((num_stages, num_microbatches)), np.zeros((num_stages, num_microbatches))
    counts, turns = np.zeros((3, num_stages), np.int64), np.zeros((2, num_stages), np.int64)
    where = np.zeros((3, num_stages, num_microbatches), np.int64)
    path = np.zeros((best.size + 1, 2), np.int64)
    words, old = best.copy(), np.zeros(best.shape[1], np.int64)
    state = np.array([seed], np.int64)
    for _ in range(3):
        _random(state)
    makespan, span = run_words(words, lengths, seconds, down, up, kept, forward, backward)
    value, total, worst = _score(words, lengths, seconds, kept, spans, makespan, span)
    cost, best_value, best_cost = value + flat * total / num_ranks, value, value + flat * total / num_ranks
    on_path = _critical(words, lengths, seconds, kept, turns, where, worst, path)
    for step in range(steps):
        if best_value <= goal:
            return best_value, step
        temperature = warmth * value * (1 - step / steps)
        chosen = int(_random(state) * on_path)
        rank, position = path[chosen, 0], path[chosen, 1]
        distance = 1
        while _random(state) < reach and distance < lengths[rank]:
            distance += 1
        begin = max(position - distance, 0)
        if words[rank, begin] == words[rank, position]:
            continue
        old[:] = words[rank]
        if _random(state) < 0.5:  # the op goes before what is in its way
            letter = words[rank, position]
            for at in range(position, begin, -1):
                words[rank, at] = words[rank, at - 1]
            words[rank, begin] = letter
        else:  # what is in its way goes behind it
            letter = words[rank, begin]
            for at in range(begin, position):
                words[rank, at] = words[rank, at + 1]
            words[rank, position] = letter
        makespan = -1.0
        if _allowed(words[rank], lengths[rank], counts, activation, deferred, limit[rank]):
            makespan, span = _rerun(words, lengths, times, kept, rank, begin, starts, forward, backward)
        if makespan < 0:
            words[rank] = old
            continue
        new_value, new_total, new_worst = _score(words, lengths, seconds, starts, spans, makespan, span)
        new_cost = new_value + flat * new_total / num_ranks
        if new_cost <= cost or _random(state) < np.exp((cost - new_cost) / max(temperature, 1e-300)):
            cost, value, worst = new_cost, new_value, new_worst
            starts, kept = kept, starts
            on_path = _critical(words, lengths, seconds, kept, turns, where, worst, path)
            if cost < best_cost:
                best_cost, best_value = cost, value
                best[:] = words
        else:
            words[rank] = old
    return best_value, steps
