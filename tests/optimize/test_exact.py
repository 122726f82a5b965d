"""The exact solver: what it proves, the search reaches, and no bound is above it."""

from __future__ import annotations

from random import Random

import pytest

import penstock as ps
from penstock.errors import UserError
from penstock.optimize import Problem, lower_bound, optimize_schedule, placements, problem_of
from penstock.simulator.orders import schedule_of

pytest.importorskip("ortools")
from penstock.optimize.exact import solved  # after the check, which tells why nothing runs here


def random_problem(seed: int) -> Problem:
    random = Random(seed)
    p, m = random.choice(((2, 3), (2, 4), (3, 3)))
    chunks = 2 if p == 2 and random.random() < 0.3 else 1
    seconds = [[random.randint(2, 9) for _ in range(p * chunks)] for _ in range(3)]
    return problem_of(
        random.choice(list(placements(p, chunks).values())),
        m,
        costs=ps.StageCosts(*seconds, activation_bytes=2, deferred_bytes=random.choice((1, 2))),
        cluster=ps.Cluster.uniform(p, latency_seconds=random.choice((0, 1, 2))),
        memory_limit=2 * chunks * random.uniform(p * 0.75, 2 * p),
        objective=random.choice(("makespan", "span")),
    )


def found_for(problem: Problem, *, exact: float = 0) -> ps.Optimized:
    return optimize_schedule(
        problem.num_ranks,
        problem.num_microbatches,
        costs=problem.costs,
        cluster=problem.cluster,
        memory_limit=tuple(problem.limit.tolist()),
        placement=problem.placement,
        search=ps.Search(problem.objective, exact=exact),
    )


def test_the_search_reaches_what_the_solver_proves():
    """All but one of twenty at most: benchmarks/optimize.py has three hundred, of which 99 % are reached."""
    proven, reached = 0, 0
    for seed in range(20):
        problem = random_problem(seed)
        exact = solved(problem, None, seconds=2, seed=0)
        if not exact.proven or exact.found is None:
            continue
        found = found_for(problem)
        assert lower_bound(problem) <= exact.found.value + 1e-9, seed
        assert found.value >= exact.found.value - 1e-9, seed
        assert problem.fits(found.schedule), seed
        proven += 1
        reached += found.value <= exact.found.value + 1e-9
    assert proven >= 15
    assert reached >= proven - 1


def test_a_solved_order_takes_what_the_solver_says():
    problem = random_problem(3)
    found = found_for(problem, exact=2)
    exact = solved(problem, None, seconds=2, seed=0)
    assert exact.proven
    assert found.proven
    assert found.value == pytest.approx(found.lower_bound) == pytest.approx(exact.bound)
    timeline = ps.simulate(found.schedule, problem.costs, problem.cluster)
    assert found.value == (timeline.makespan if problem.objective == "makespan" else timeline.per_rank_span)


def test_its_bound_holds_for_full_backwards_that_keep_less_than_i_and_w():
    """Symptom: "proven" above what 1F1B takes. Cause: the solver knew I and W only, and I keeps more here than F."""
    costs = ps.StageCosts([1, 4], [6, 2], [6, 1], activation_bytes=[2, 1], deferred_bytes=[3, 1])
    limit = (4.7, 3.8)
    found = optimize_schedule(2, 4, costs=costs, memory_limit=limit, search=ps.Search("span", exact=2))
    assert found.named["one_f_one_b"] == 58
    assert found.lower_bound <= found.value <= 58
    problem = problem_of(
        found.schedule.placement,
        4,
        costs=costs,
        cluster=ps.Cluster.uniform(2),
        memory_limit=limit,
        objective="span",
    )
    exact = solved(problem, None, seconds=2, seed=0)
    assert exact.bound <= 58
    assert exact.found is None or problem.fits(
        schedule_of("exact", problem.placement, 4, exact.found.words, exact.found.lengths)
    )


def test_an_exact_search_without_the_solver_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "ortools.sat.python", None)
    with pytest.raises(UserError, match=r"install it with pip install 'penstock\[solver\]'"):
        solved(random_problem(3), None, seconds=1, seed=0)
