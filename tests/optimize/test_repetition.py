"""A steady pattern repeated: many microbatches in the order found for a few, verified and within the same memory."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import penstock as ps
from penstock.ir.placement import Placement
from penstock.optimize import Objective, placements, problem_of
from penstock.optimize.policies import Found
from penstock.optimize.problem import Problem
from penstock.optimize.repetition import repeated, time_of
from penstock.simulator.orders import schedule_of, words_of

UNEVEN = ps.StageCosts([1.0, 1.3, 0.8], [1.1, 0.9, 1.2], [0.7, 1.0, 1.1])


def small_problem(placement: Placement, m: int, costs: ps.StageCosts, objective: Objective = "makespan") -> Problem:
    cluster = ps.Cluster.uniform(placement.num_ranks, latency_seconds=0.1)
    return problem_of(placement, m, costs=costs, cluster=cluster, memory_limit=None, objective=objective)


def found_of(problem: Problem, name: str) -> Found:
    p, m, v = problem.num_ranks, problem.num_microbatches, problem.placement.num_chunks
    words, lengths = words_of(ps.named_schedule(name, num_ranks=p, num_microbatches=m, num_chunks=v))  # type: ignore[misc]
    value = time_of(problem, words, lengths)
    assert value is not None
    return Found(words, lengths, value, name)


@pytest.mark.parametrize("objective", ["makespan", "span"])
@pytest.mark.parametrize(("name", "chunks"), [("one_f_one_b", 1), ("zb_h1", 1), ("zb_v", 2)])
def test_a_pattern_of_few_microbatches_makes_an_order_for_many(name: str, chunks: int, objective: Objective) -> None:
    placement = placements(3, chunks)["v" if chunks == 2 else "looped"]
    costs = UNEVEN if chunks == 1 else ps.StageCosts(*([*row, *row] for row in (UNEVEN.forward,) * 3))  # type: ignore[misc]
    small = small_problem(placement, 12, costs, objective)
    if name == "one_f_one_b":
        small = small_problem(placement, 12, ps.StageCosts([1.0, 1.3, 0.8], 0, 0, backward=[2.0, 1.9, 2.2]), objective)
    large = replace(small, num_microbatches=120)
    found = found_of(small, name)
    many = repeated(small, found, large)
    assert many is not None
    assert "pattern of" in many.source
    schedule = schedule_of("many", placement, 120, many.words, many.lengths)
    ps.verify(schedule)
    assert large.fits(schedule)
    assert (large.peaks(schedule) <= small.peaks(schedule_of("few", placement, 12, found.words, found.lengths))).all()
    assert many.value == time_of(large, many.words, many.lengths)
    # Every microbatch more costs no more than the busiest rank takes for it, and what the pattern loses.
    own = np.bincount(
        small.rank_of, small.seconds.reshape(-1, 4)[:, [0, int(small.backward_kind)] + [3] * small.splits].sum(axis=1)
    )
    assert many.value <= found_of(large, name).value * (1 + 1e-9)
    assert many.value - found.value >= 108 * own.max() * (1 - 1e-9)


def test_an_order_without_a_steady_phase_has_no_pattern() -> None:
    small = small_problem(Placement.looped(3), 4, UNEVEN)
    large = replace(small, num_microbatches=40)
    words, lengths = words_of(ps.gpipe(3, 4))  # type: ignore[misc]
    split = small_problem(Placement.looped(3), 4, UNEVEN)
    value = time_of(split, words, lengths)
    assert value is not None
    assert repeated(small, Found(words, lengths, value, "gpipe"), large) is None
