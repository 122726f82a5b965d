"""Gradients are those of the unsplit model, bit for bit, whatever passes between the stages."""

import copy
from collections.abc import Iterable

import pytest
import torch
from tests.runtime.runs import SCHEDULES, SIZES, assert_same, grads_of, mse, run
from tests.runtime.zoo import MODELS, batch, made

from penstock.testing import reference_gradients, reference_step

BOUNDARIES = [name for name in MODELS if name not in ("dense", "attention")]


def check(name: str, dtype: torch.dtype, sizes: Iterable[tuple[int, int]]) -> None:
    model, data = made(name, dtype), batch(8, dtype)
    oracles = {m: reference_gradients(model, mse, *data, num_microbatches=m) for m in {m for _, m in sizes}}
    for num_ranks, num_microbatches in sizes:
        loss, grads = oracles[num_microbatches]
        assert any(grad.any() for grad in grads.values())
        for schedule in SCHEDULES:
            found = run(model, [data], num_ranks=num_ranks, schedule=schedule, num_microbatches=num_microbatches)
            assert_same(found.grads, grads)
            assert all(torch.equal(losses[0], loss) for losses in found.losses)


@pytest.mark.parametrize("name", ["dense", "attention"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
def test_every_schedule_and_size_gives_the_unsplit_models_bits(name: str, dtype: torch.dtype):
    check(name, dtype, SIZES)


@pytest.mark.parametrize("name", BOUNDARIES)
def test_every_kind_of_boundary_gives_the_unsplit_models_bits(name: str):
    check(name, torch.float64, [(2, 4), (3, 2), (4, 1), (4, 8)])
    check(name, torch.float32, [(4, 4)])


@pytest.mark.parametrize("name", MODELS)
def test_steps_add_up_when_shapes_are_known_too(name: str):
    model, batches = made(name), [batch(8, seed=seed) for seed in (1, 2, 3)]
    oracle = copy.deepcopy(model)
    for data in batches:
        reference_step(oracle, mse, *data, num_microbatches=4)
    for schedule in SCHEDULES:
        assert_same(run(model, batches, num_ranks=4, schedule=schedule, num_microbatches=4).grads, grads_of(oracle))


def test_layers_that_are_frozen_first_send_no_gradients():
    model, data = made("frozen_start"), batch()
    found = run(model, [data, data], num_ranks=4, num_microbatches=4)
    backwards = [channel for sent in found.sent for channel, _ in sent if channel.source > channel.target]
    assert not backwards
    assert found.grads.keys() == {"3.weight", "3.bias"}


def test_only_gradients_that_are_needed_travel():
    """Of the boundary (0: needs a gradient, 1: detached) one tensor comes back a microbatch."""
    found = run(made("no_gradient_needed"), [batch()], num_ranks=4, num_microbatches=4)
    back = [channel for channel, _ in found.sent[2] if channel.target == 1]
    assert len(back) == 4  # stage 2 takes (needs one, detached)
