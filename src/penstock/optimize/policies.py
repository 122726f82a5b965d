"""Search over the policies of list scheduling: a grid, then each rank's numbers by small steps."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from random import Random
from typing import Any, NamedTuple

import numpy as np

from penstock.optimize.dispatch import Policy, dispatched
from penstock.optimize.problem import Problem
from penstock.simulator.orders import Floats, Ints


class Found(NamedTuple):
    """Words and what they take.

    Attributes:
        words: the orders.
        lengths: of the words.
        value: seconds by the objective.
        source: how they were found.
    """

    words: Ints
    lengths: Ints
    value: float
    source: str


def grid(problem: Problem) -> Iterator[tuple[Policy, Found]]:
    """Yields what the policies of a fixed grid come to, those first that most often win."""
    forward, weight = _unit(problem, 0), _unit(problem, 3)
    for crowded, passed, (alternate, later), (group, deepest) in product(
        (-5.0, 0.0, None) if problem.splits else (0.0,),
        (0.5, 1.5, 5.0, 0.1, -0.5) if problem.splits else (0.0,),
        ((True, -0.1), (False, 0.1), (True, -1.0), (False, -0.1), (False, 1.0), (True, 0.1)),
        _turns(problem),
    ):
        policy = Policy(
            later * forward,
            passed * weight,
            (passed if crowded is None else crowded) * weight,
            problem.limit.copy(),
            alternate,
            group,
            deepest,
        )
        words, lengths, value = dispatched(problem, policy)
        yield policy, Found(words, lengths, value, "list scheduling")


def refined(problem: Problem, policy: Policy, found: Found, *, steps: int, seed: int, goal: float) -> Found:
    """Returns the best that `steps` changes of one number of the policy lead to, on one rank or on all."""
    random = Random(seed)
    unit = float(problem.seconds.mean())
    smallest = float(problem.activation[problem.activation > 0].min(initial=1.0))
    for _ in range(steps):
        if found.value <= goal * (1 + 1e-12):
            break
        changed = _changed(problem, policy, random, unit=unit, smallest=smallest)
        words, lengths, value = dispatched(problem, changed)
        if value <= found.value:
            policy, found = changed, Found(words, lengths, value, "list scheduling")
    return found


def _changed(problem: Problem, policy: Policy, random: Random, *, unit: float, smallest: float) -> Policy:
    field = random.choice(("forward", "weight", "crowded", "live"))
    row: Floats = getattr(policy, field).copy()
    chosen = random.randrange(problem.num_ranks) if random.random() < 0.8 else slice(None)
    if field == "live":
        row[chosen] = row[chosen] + random.choice((-1, 1)) * smallest
        row = np.minimum(np.maximum(row, problem.least), problem.limit)
    else:
        row[chosen] = row[chosen] + random.gauss(0, 1) * unit
    changed: dict[str, Any] = {field: row}
    return policy._replace(**changed)


def _unit(problem: Problem, kind: int) -> Floats:
    """Returns per rank the mean seconds of an op of this kind; those of F where it takes none."""
    rank_of = problem.rank_of
    for row in (problem.seconds[kind::4], problem.seconds[0::4], np.ones(problem.num_stages)):
        if row.any():
            break
    return np.asarray(np.bincount(rank_of, row) / np.bincount(rank_of), float)


def _turns(problem: Problem) -> list[tuple[int, bool]]:
    """Returns group sizes, and whether the deepest stage goes first."""
    if problem.placement.num_chunks == 1:
        return [(1, False)]
    return [(problem.num_ranks, False), (1, True), (1, False), (problem.num_microbatches, False)]
