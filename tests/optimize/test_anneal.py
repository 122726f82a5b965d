"""Local search: a move is timed from where it changes anything, and comes out as if timed whole."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest

import penstock as ps
from penstock.optimize import problem_of
from penstock.optimize.anneal import _rerun, annealed
from penstock.optimize.policies import Found
from penstock.optimize.problem import Problem
from penstock.optimize.repetition import time_of
from penstock.simulator.orders import run_words, words_of


def problem_and_words(seed: int) -> tuple[Problem, Found]:
    random = Random(seed)
    schedule = ps.named_schedule(random.choice(("zb_h1", "zb_v")), num_ranks=3, num_microbatches=5)
    stages = schedule.num_stages
    costs = ps.StageCosts(*([random.choice((0, 1, random.uniform(0.5, 2))) for _ in range(stages)] for _ in range(3)))
    problem = problem_of(
        schedule.placement,
        5,
        costs=costs,
        cluster=ps.Cluster.uniform(3, latency_seconds=random.choice((0, 0.3))),
        memory_limit=None,
        objective="makespan",
    )
    words, lengths = words_of(schedule)
    value = time_of(problem, words, lengths)
    return problem, Found(words, lengths, value, "zb")


@pytest.mark.parametrize("seed", range(6))
def test_a_move_timed_on_from_where_it_begins_takes_what_it_takes_timed_whole(seed: int):
    """Ops of no seconds too, several of which start at one moment."""
    problem, found = problem_and_words(seed)
    random = Random(seed)
    times = (problem.seconds, problem.down, problem.up)
    ends = np.zeros((2, problem.num_stages, 5))
    old = np.zeros(found.words.shape)
    run_words(found.words, found.lengths, *times, old, *ends)
    differing = 0
    for _ in range(60):
        rank = random.randrange(3)
        begin, position = sorted(random.sample(range(found.lengths[rank]), 2))
        words = found.words.copy()
        words[rank, begin : position + 1] = np.roll(words[rank, begin : position + 1], random.choice((-1, 1)))
        whole, again = np.zeros(words.shape), np.full(words.shape, np.nan)
        stale = np.full((2, problem.num_stages, 5), np.nan)  # what an earlier move has left behind
        expected = run_words(words, found.lengths, *times, whole, *ends)
        assert _rerun(words, found.lengths, times, old, rank, begin, again, *stale) == expected
        if expected[0] >= 0:
            differing += expected[0] != found.value
            assert np.array_equal(again, whole)
    assert differing or not problem.seconds.any()


@pytest.mark.parametrize("seed", range(3))
def test_what_local_search_returns_takes_what_it_says_and_is_no_worse(seed: int):
    problem, found = problem_and_words(seed)
    before = found.words.copy()
    better = annealed(problem, found, steps=300, seed=seed, goal=0.0)
    assert np.array_equal(found.words, before)
    assert better.value <= found.value
    assert better.value == time_of(problem, better.words, better.lengths)
    assert sorted(better.words[0]) == sorted(before[0])
