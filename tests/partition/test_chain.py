"""The chain's dynamic programming and the knapsack of recompute, against all the choices there are."""

from __future__ import annotations

from itertools import combinations, pairwise
from random import Random

import numpy as np
import pytest

from penstock.partition.chain import Chain, cut_candidates
from penstock.partition.recompute import Knapsack


@pytest.mark.parametrize("num_microbatches", [1, 2, 8])
@pytest.mark.parametrize("seed", range(5))
def test_the_least_of_fill_drain_and_bottleneck_is_among_the_candidates(seed: int, num_microbatches: int):
    """Stages on devices of other speeds, with a price for each cut."""
    random = Random(seed)
    layers = [random.randint(1, 9) for _ in range(8)]
    speeds = np.array([random.choice((0.5, 1.0, 2.0)) for _ in range(3)])
    cuts = np.array([[0.0] * 9, *([random.randint(0, 3) for _ in range(9)] for _ in range(2))])
    chain = Chain(np.concatenate([[0.0], np.cumsum(layers)]), speeds, cuts, np.zeros((1, 1, 1)))

    def step(bounds: tuple[int, ...]) -> float:
        each = [sum(layers[a:b]) / speed for (a, b), speed in zip(pairwise(bounds), speeds, strict=True)]
        crossed = sum(cuts[stage, bounds[stage]] for stage in range(1, 3))
        return sum(each) + crossed + (num_microbatches - 1) * max(each)

    every = [(0, *cut, 8) for cut in combinations(range(1, 8), 2)]
    found = list(cut_candidates(chain, num_microbatches))
    assert set(found) <= set(every)
    assert min(map(step, found)) == pytest.approx(min(map(step, every)))


@pytest.mark.parametrize("seed", range(6))
def test_the_knapsack_finds_the_quickest_set_that_saves_enough(seed: int):
    random = Random(seed)
    layers = [(layer, float(random.randint(1, 9)), float(random.randint(0, 9))) for layer in range(7)]
    knapsack = Knapsack([seconds for _, seconds, _ in layers], [saved for *_, saved in layers])
    for saving in range(1, 50):
        every = [
            sum(seconds for _, seconds, _ in chosen)
            for count in range(8)
            for chosen in combinations(layers, count)
            if sum(saved for *_, saved in chosen) >= saving
        ]
        found = knapsack.cheapest(0, 7, saving)
        assert (found is None) == (not every)
        if found is not None:
            assert found.seconds == min(every)
            assert sum(layers[layer][2] for layer in found.layers) == found.saved >= saving
