"""penstock.testing: the oracle is the unsplit model, and what is wrong shows."""

import copy
import math

import pytest
import torch
from tests.runtime.runs import assert_close, grads_of, mse
from tests.runtime.zoo import WIDTH, batch, made
from torch import Tensor, nn

import penstock as ps
from penstock.testing import check_against_reference, reference_gradients, reference_step


def test_the_oracle_is_the_gradient_of_the_mean_over_the_batch():
    model, (inputs, targets) = made("dense"), batch(8)
    loss, grads = reference_gradients(model, mse, inputs, targets, num_microbatches=4)
    assert not grads_of(model), "the model stays as it is"
    plain = mse(model(inputs), targets)
    plain.backward()
    assert loss.item() == pytest.approx(plain.item(), rel=1e-12)
    assert_close(grads, grads_of(model))


def test_the_oracle_weighs_and_is_seeded_as_a_pipeline_is():
    model, (inputs, targets) = made("dense"), batch(4)
    _, grads = reference_gradients(model, mse, inputs, targets, num_microbatches=2, weight_fn=lambda t: 1 + (t is None))
    assert_close(grads, reference_gradients(model, mse, inputs, targets, num_microbatches=1)[1])
    dropping = made("dropout")
    seeded = [
        reference_gradients(dropping, mse, inputs, targets, num_microbatches=2, seed=seed)[0] for seed in (1, 1, 2)
    ]
    assert torch.equal(seeded[0], seeded[1])
    assert not torch.equal(seeded[0], seeded[2])


def test_a_list_of_layers_has_an_oracle_too():
    model, data = made("dense"), batch(8)
    _, grads = reference_gradients(list(model), mse, *data, num_microbatches=2)
    assert_close(grads, reference_gradients(model, mse, *data, num_microbatches=2)[1])


def test_steps_of_the_oracle_move_the_model_itself():
    model = made("dense")
    reference_step(model, mse, *batch(8), num_microbatches=2)
    once = {name: grad.clone() for name, grad in grads_of(model).items()}
    reference_step(model, mse, *batch(8), num_microbatches=2)
    assert_close(grads_of(model), {name: 2 * grad for name, grad in once.items()})


@pytest.mark.parametrize("schedule", ["naive", "gpipe", ps.one_f_one_b(2, 4)])
def test_a_right_pipeline_is_right_bit_for_bit(schedule):
    model = made("attention")
    before = copy.deepcopy(model.state_dict())
    check = check_against_reference(
        model, mse, *batch(8), num_ranks=2, num_microbatches=4, schedule=schedule, partition=[1, 3], seed=1
    )
    assert check.worst == 0
    assert list(check.errors) == [name for name, _ in model.named_parameters()]
    text = str(check)
    assert "on 2 ranks against the unsplit model" in text
    assert "0.weight" in text
    assert "0 (bit for bit)" in text
    assert not grads_of(model)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


class Counted(nn.Module):
    """A layer that does not do the same twice in one process: what a check has to find."""

    calls = 0

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        Counted.calls += 1
        return self.linear(x) * Counted.calls


def test_what_differs_is_shown_by_parameter_the_worst_first():
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), Counted()).double()
    check = check_against_reference(model, mse, *batch(8), num_ranks=2, num_microbatches=4)
    assert check.worst > 0.1
    errors = [float(line.split()[-1]) for line in str(check).splitlines()[2:]]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 0.1


def test_a_gradient_that_is_missing_counts_unless_it_is_zero():
    from penstock.testing import _relative_error

    zeros, ones = torch.zeros(2), torch.ones(2)
    assert _relative_error(None, zeros) == _relative_error(zeros, None) == _relative_error(ones, ones) == 0
    assert _relative_error(None, ones) == _relative_error(ones, None) == _relative_error(ones, zeros) == math.inf
    assert _relative_error(ones, torch.full((2,), math.nan)) == math.inf
    assert _relative_error(ones, 2 * ones) == 0.5
    assert _relative_error(ones, torch.ones(3)) == math.inf
