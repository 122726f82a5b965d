"""The lower bound: known optima of equal stages, and how it moves with memory, messages and costs."""

from __future__ import annotations

from functools import partial
from random import Random
from typing import Any

import pytest

import penstock as ps
from penstock.ir.placement import Placement
from penstock.optimize import Objective, Problem, lower_bound, placements, problem_of


def problem(
    p: int,
    m: int,
    costs: ps.StageCosts,
    *,
    memory: float | None = None,
    latency: float = 0.0,
    placement: Placement | None = None,
    objective: Objective = "makespan",
) -> Problem:
    return problem_of(
        placement or Placement.looped(p),
        m,
        costs=costs,
        cluster=ps.Cluster.uniform(p, latency_seconds=latency),
        memory_limit=memory,
        objective=objective,
    )


@pytest.mark.parametrize(("p", "m"), [(2, 4), (4, 8), (8, 24)])
def test_equal_stages_with_twice_the_memory_fill_all_but_the_way_down(p: int, m: int) -> None:
    """The last rank starts behind p - 1 forwards and never stops: so does ZB-H2 (Qi et al. 2024, section 2.2)."""
    assert lower_bound(problem(p, m, ps.StageCosts(1, 1, 1), memory=2 * p)) == 3 * m + p - 1


@pytest.mark.parametrize(("p", "m"), [(2, 4), (4, 8)])
def test_full_backwards_take_what_1f1b_takes(p: int, m: int) -> None:
    costs = ps.StageCosts(forward=1, backward=2, input_grad=0, weight_grad=0)
    bound = lower_bound(problem(p, m, costs))
    assert bound == ps.simulate(ps.one_f_one_b(p, m), costs).makespan == 3 * (m + p - 1)


def test_one_microbatch_goes_down_and_up() -> None:
    costs = ps.StageCosts([1, 2, 3], [4, 5, 6], [7, 8, 9])
    assert lower_bound(problem(3, 1, costs, latency=0.5)) == 1 + 2 + 3 + 6 + 5 + 4 + 7 + 4 * 0.5


@pytest.mark.parametrize("objective", ["makespan", "span"])
@pytest.mark.parametrize("chunks", [1, 2])
def test_less_memory_slower_messages_and_dearer_ops_never_lower_it(chunks: int, objective: Objective) -> None:
    random = Random(0)
    for _ in range(40):
        p, m = random.randint(2, 4), random.randint(1, 8)
        placement = random.choice(list(placements(p, chunks).values()))
        rows = [[random.uniform(0, 3) for _ in range(p * chunks)] for _ in range(3)]
        memory, latency = random.uniform(chunks, 2 * p * chunks), random.choice((0.0, 0.7))

        bound = partial(_bound, p, m, placement=placement, objective=objective)
        base = bound(rows, memory=memory, latency=latency)
        assert bound(rows, memory=2 * memory, latency=latency) <= base + 1e-9
        if objective == "makespan":  # a span may begin later where messages take longer
            assert bound(rows, memory=memory, latency=latency + 1) >= base - 1e-9
            dearer = [[one + 0.5 for one in row] for row in rows]
            assert bound(dearer, memory=memory, latency=latency) >= base - 1e-9


def _bound(p: int, m: int, rows: list[list[float]], **given: Any) -> float:
    return lower_bound(problem(p, m, ps.StageCosts(*rows), **given))
