"""Partitions are left out untimed only where no order could make them better."""

from __future__ import annotations

from functools import partial
from itertools import combinations
from random import Random

import numpy as np
import pytest
from tests.partition.everything import random_row

import penstock as ps
from penstock.partition import LayerCosts, best_partition
from penstock.partition.bench import Bench
from penstock.partition.exhaustive import least_seconds

NAMES = (
    *("one_f_one_b", "gpipe", "eager_1f1b", "zb_h1", "zb_h2", "interleaved_1f1b", "breadth_first", "wave", "zb_v"),
    *("v_half", "v_min", "dualpipe_v", "pipedream", "naive"),
)


@pytest.mark.parametrize("name", NAMES)
def test_no_step_takes_less_than_its_bound(name: str) -> None:
    random = Random(0)
    schedule = ps.named_schedule(name, num_ranks=2, num_microbatches=6)
    layers = schedule.num_stages + 3
    row = partial(random_row, random, layers)
    costs = LayerCosts(row(1, 9), row(1, 9), row(1, 9), boundary_bytes=row(0, 3))
    cluster = ps.Cluster(tuple(ps.Device(speed=random.choice((1, 2))) for _ in range(2)), ((2, ps.Link(0.5, 2.0)),))
    bench = Bench(costs, schedule, cluster, False)
    every = np.array([(0, *cut, layers) for cut in combinations(range(1, layers), schedule.num_stages - 1)])
    for cuts, bound in zip(every.tolist(), least_seconds(bench, every), strict=True):
        assert bound <= bench.simulated(tuple(cuts)) * (1 + 1e-12), cuts


def test_the_bound_of_one_stage_that_all_wait_for_is_its_step() -> None:
    costs = LayerCosts((1.0, 1.0, 5.0), (1.0, 1.0, 5.0), (1.0, 1.0, 5.0))
    schedule = ps.one_f_one_b(3, 4)
    bench = Bench(costs, schedule, ps.Cluster.uniform(3), False)
    (bound,) = least_seconds(bench, np.array([(0, 1, 2, 3)]))
    assert bound == bench.simulated((0, 1, 2, 3)) == 4 * 15 + 2 * 3


def test_82_layers_on_4_ranks_are_proven() -> None:
    """Symptom: 85,000 partitions took seconds to time. Cause: all of them were."""
    forward = (0.1, *(1.0,) * 80, 3.0)
    found = best_partition(LayerCosts(forward, forward, forward), ps.one_f_one_b(4, 8))
    assert found.proven
    assert found.partition.boundaries[-1] - found.partition.boundaries[-2] == 18
