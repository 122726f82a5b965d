"""Random numbers hang on (seed, step, microbatch, layer) and on nothing else."""

import copy

import pytest
import torch
from tests.runtime.runs import SCHEDULES, assert_same, grads_of, mse, run
from tests.runtime.zoo import batch, made

from penstock.runtime.randomness import layer_seed
from penstock.testing import reference_gradients, reference_step


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_dropout_is_that_of_the_unsplit_model_on_any_number_of_ranks(schedule: str):
    model, data = made("dropout"), batch()
    _, grads = reference_gradients(model, mse, *data, num_microbatches=4, seed=3)
    for num_ranks in (1, 2, 4):
        found = run(model, [data], num_ranks=num_ranks, schedule=schedule, num_microbatches=4, seed=3)
        assert_same(found.grads, grads)


def test_each_step_and_each_seed_drops_other_numbers():
    model, data = made("dropout"), batch()
    oracle = copy.deepcopy(model)
    for step in range(3):
        reference_step(oracle, mse, *data, num_microbatches=2, seed=3, step=step)
    found = run(model, [data] * 3, num_ranks=2, num_microbatches=2, seed=3)
    assert_same(found.grads, grads_of(oracle))
    assert len({float(loss) for loss in found.losses[0]}) == 3
    other = run(model, [data], num_ranks=2, num_microbatches=2, seed=4)
    assert not torch.equal(other.losses[0][0], found.losses[0][0])


def test_torchs_own_generator_is_put_back():
    model, data = made("dropout"), batch()
    torch.manual_seed(0)
    before = torch.get_rng_state()
    run(model, [data], num_ranks=2, num_microbatches=2, seed=3)
    assert torch.equal(torch.get_rng_state(), before)


def test_every_part_of_the_key_counts():
    keys = [{"step": s, "microbatch": i, "layer": k} for s in (0, 1, 11) for i in (0, 1, 11) for k in (0, 1, 11)]
    seeds = {layer_seed(seed, **key) for seed in (0, 1, 10) for key in keys}
    assert len(seeds) == 3 * 27
    assert all(0 <= seed < 2**63 for seed in seeds)
