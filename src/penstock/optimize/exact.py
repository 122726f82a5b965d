"""The best order of a small problem, with proof, by OR-Tools CP-SAT (the extra `solver`).

An op is an interval of fixed length; the ops of a rank do not overlap; microbatches pass every stage in their order,
which loses nothing as they all cost the same. What F keeps fills the rank's memory from its start to the end of the
backward, what I keeps for W from there to the end of W.
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from math import gcd, lcm
from typing import Any, NamedTuple

import numpy as np

from penstock.errors import UserError
from penstock.optimize.policies import Found
from penstock.optimize.problem import Problem
from penstock.optimize.repetition import time_of
from penstock.simulator.orders import Floats, schedule_of

_LARGEST = 1 << 24
"""Sum of all seconds in the solver's whole units, where they have no common unit of their own."""


class Exact(NamedTuple):
    """What the solver says.

    Attributes:
        found: the best order, or None.
        bound: seconds that no order beats.
        proven: whether the two are the same.
    """

    found: Found | None
    bound: float
    proven: bool


def solved(problem: Problem, start: Found | None, *, seconds: float, seed: int) -> Exact:
    """Returns the best order that the solver finds in so many seconds of its own deterministic clock.

    Args:
        problem: of one stage a rank or more; no more than some hundred ops end with a proof.
        start: a solution to begin with.
        seconds: of CP-SAT's deterministic time, so that the same call gives the same answer on every machine.
        seed: of the solver.

    Raises:
        UserError: OR-Tools is not installed.
    """
    try:
        from ortools.sat.python import cp_model
    except ImportError as error:
        raise UserError(
            "the exact search needs OR-Tools; install it with pip install 'penstock[solver]', or leave exact out"
        ) from error
    split = _as_split(problem)
    units = _units(split)
    model = cp_model.CpModel()
    ops, objective = _model(model, split, units, start)
    model.minimize(objective)
    solver = cp_model.CpSolver()
    solver.parameters.max_deterministic_time = seconds
    solver.parameters.random_seed = seed
    solver.parameters.num_workers = 1
    status = solver.solve(model)
    bound = float(solver.best_objective_bound) / units.scale
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return Exact(None, bound - units.slack, False)
    value = float(solver.objective_value) / units.scale
    words = _words(problem, units, {key: solver.value(begin) for key, begin in ops.items()})
    if split is not problem and not _holds(problem, words, value):
        return Exact(None, bound - units.slack, False)
    return Exact(Found(*words, value, "exact search"), bound - units.slack, status == cp_model.OPTIMAL)


def _as_split(problem: Problem) -> Problem:
    """Returns the problem with every B as an I and a W that take no more time and no more memory.

    The solver knows I and W only. Where B is quicker than the two, or I keeps more for W than it lets go of, an order
    with B may beat all that it knows; under these costs none does, so that its bound holds for all orders.
    """
    whole, back, weight = (problem.seconds[kind::4] for kind in (1, 2, 3))
    quicker = whole < back + weight
    if not problem.splits or not (quicker.any() or (problem.deferred > problem.activation).any()):
        return problem
    seconds = problem.seconds.copy()
    seconds[2::4] = np.where(quicker, np.minimum(back, whole), back)
    seconds[3::4] = np.where(quicker, whole - seconds[2::4], weight)
    return replace(problem, seconds=seconds, deferred=np.minimum(problem.deferred, problem.activation))


def _holds(problem: Problem, words: tuple[Any, Any], value: float) -> bool:
    """Whether an order takes no more time under the true costs, and keeps within the memory."""
    taken = time_of(problem, *words)
    schedule = schedule_of("exact", problem.placement, problem.num_microbatches, *words)
    return taken is not None and taken <= value * (1 + 1e-9) and problem.fits(schedule)


class _Units(NamedTuple):
    """Seconds and memory in whole numbers.

    Attributes:
        scale: units a second.
        slack: seconds by which rounding may have moved the end.
        seconds: of each letter.
        down: delays.
        up: delays.
        activation: what F keeps.
        deferred: what I keeps.
        limit: of each rank.
    """

    scale: float
    slack: float
    seconds: list[int]
    down: list[int]
    up: list[int]
    activation: list[int]
    deferred: list[int]
    limit: list[int]


def _units(problem: Problem) -> _Units:
    times = np.concatenate([problem.seconds, problem.down, problem.up])
    sizes = np.concatenate([problem.activation, problem.deferred])
    scale, exact = _scale(times, float(times.sum()) * problem.num_microbatches)
    size_scale, exact_sizes = _scale(sizes, float(sizes.sum()) * problem.num_microbatches)
    count = 3 * problem.num_stages * problem.num_microbatches
    whole = [int(number) for number in np.rint(times * scale)]
    letters, stages = len(problem.seconds), problem.num_stages
    # Rounding sizes up and limits down keeps what is found within the memory.
    rounded = [
        np.rint(row * size_scale) if exact_sizes else np.ceil(row * size_scale - 1e-6)
        for row in (problem.activation, problem.deferred)
    ]
    return _Units(
        scale,
        0.0 if exact else count / scale,
        whole[:letters],
        whole[letters : letters + stages],
        whole[letters + stages :],
        [int(number) for number in rounded[0]],
        [int(number) for number in rounded[1]],
        [int(number) for number in np.floor(problem.limit * size_scale + 1e-6)],
    )


def _scale(numbers: Floats, total: float) -> tuple[float, bool]:
    """Returns what makes these numbers whole, and whether it does so exactly."""
    fractions = [Fraction(float(number)).limit_denominator(1_000_000) for number in numbers if number]
    if not fractions:
        return 1.0, True
    if all(
        abs(float(fraction) - number) < 1e-12 * number
        for fraction, number in zip(fractions, numbers[numbers != 0], strict=True)
    ):
        common = lcm(*(fraction.denominator for fraction in fractions))
        shared = gcd(*(int(fraction * common) for fraction in fractions))
        if total * common / shared < _LARGEST:
            return common / shared, True
    return _LARGEST / total, False


def _model(  # noqa: C901, PLR0912  # the constraints, one kind after another
    model: Any, problem: Problem, units: _Units, start: Found | None
) -> tuple[dict[tuple[int, int], Any], Any]:
    """Fills the model; returns the start of every (letter, microbatch) and what is to be least."""
    back, stages, count = int(problem.backward_kind), problem.num_stages, problem.num_microbatches
    kinds = [0, back, 3] if problem.splits else [0, back]
    horizon = sum(units.seconds) * count + (sum(units.down) + sum(units.up)) * count
    begin: dict[tuple[int, int], Any] = {}
    intervals: dict[tuple[int, int], Any] = {}
    for stage in range(stages):
        for kind in kinds:
            letter = 4 * stage + kind
            for turn in range(count):
                name = f"{letter}.{turn}"
                begin[letter, turn] = model.new_int_var(0, horizon, name)
                intervals[letter, turn] = model.new_fixed_size_interval_var(
                    begin[letter, turn], units.seconds[letter], name
                )
    end = {(letter, turn): at + units.seconds[letter] for (letter, turn), at in begin.items()}
    for stage in range(stages):
        for turn in range(count):
            f, b, w = (4 * stage + kind for kind in (0, back, 3))
            if stage:
                model.add(begin[f, turn] >= end[f - 4, turn] + units.down[stage - 1])
            if stage < stages - 1:
                model.add(begin[b, turn] >= end[b + 4, turn] + units.up[stage + 1])
            model.add(begin[b, turn] >= end[f, turn])
            if problem.splits:
                model.add(begin[w, turn] >= end[b, turn])
            if turn:
                for kind in kinds:
                    model.add(begin[4 * stage + kind, turn] >= end[4 * stage + kind, turn - 1])
    for rank in range(problem.num_ranks):
        held = problem.placement.stages_of(rank)
        mine = [(4 * stage + kind, turn) for stage in held for kind in kinds for turn in range(count)]
        model.add_no_overlap([intervals[key] for key in mine])
        _add_memory(model, problem, units, rank, (begin, end))
    if start is not None:
        for key, at in _hint(problem, start).items():
            model.add_hint(begin[key], round(at * units.scale))
    longest = model.new_int_var(0, horizon, "end")
    for stage, rank in enumerate(problem.placement.table[0]):
        first = 0
        if problem.objective == "span":
            lowest = problem.placement.stages_of(rank)[0]
            first = begin[4 * lowest, 0]
            if lowest:  # the first op of a rank starts as soon as it can: that is what is measured
                model.add(first == end[4 * (lowest - 1), 0] + units.down[lowest - 1])
            else:
                model.add(first == 0)
        model.add(longest >= end[4 * stage + kinds[-1], count - 1] - first)
        model.add(longest >= end[4 * stage + back, count - 1] - first)
    return begin, longest


def _add_memory(model: Any, problem: Problem, units: _Units, rank: int, times: tuple[Any, Any]) -> None:
    begin, end = times
    back, spans, demands = int(problem.backward_kind), [], []
    for stage in problem.placement.stages_of(rank):
        for turn in range(problem.num_microbatches):
            pieces = [(begin[4 * stage, turn], end[4 * stage + back, turn], units.activation[stage])]
            if problem.splits:
                pieces.append((end[4 * stage + back, turn], end[4 * stage + 3, turn], units.deferred[stage]))
            for number, (first, last, size) in enumerate(pieces):
                length = model.new_int_var(0, 1 << 40, "")
                spans.append(model.new_interval_var(first, length, last, f"memory {stage}.{turn}.{number}"))
                demands.append(size)
    model.add_cumulative(spans, demands, units.limit[rank])


def _hint(problem: Problem, found: Found) -> dict[tuple[int, int], float]:
    from penstock.simulator.orders import run_words

    starts = np.zeros(found.words.shape)
    ends = np.zeros((2, problem.num_stages, problem.num_microbatches))
    run_words(found.words, found.lengths, problem.seconds, problem.down, problem.up, starts, ends[0], ends[1])
    back, hint, turns = int(problem.backward_kind), {}, dict[int, int]()
    for rank, length in enumerate(found.lengths):
        for position in range(length):
            letter = int(found.words[rank, position])
            if letter % 4 in (1, 2) and letter % 4 != back:
                return {}
            hint[letter, turns.get(letter, 0)] = float(starts[rank, position])
            turns[letter] = turns.get(letter, 0) + 1
    return hint


def _words(problem: Problem, units: _Units, begin: dict[tuple[int, int], int]) -> tuple[Any, Any]:
    """Returns the words of the ranks: their ops by start. Of equals the one that takes no time goes first."""
    rows: list[list[tuple[int, bool, int, int, int]]] = [[] for _ in range(problem.num_ranks)]
    for (letter, turn), at in begin.items():
        stage, kind = divmod(letter, 4)
        way = stage if kind == 0 else 2 * problem.num_stages - stage
        rows[problem.placement.rank_of(stage)].append((at, units.seconds[letter] > 0, turn, way, letter))
    lengths = np.array([len(row) for row in rows], np.int64)
    words = np.zeros((len(rows), int(lengths.max())), np.int64)
    for rank, row in enumerate(rows):
        words[rank, : len(row)] = [letter for *_, letter in sorted(row)]
    return words, lengths
