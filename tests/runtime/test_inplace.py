"""A layer may write into what enters it, wherever the model is cut."""

import pytest
import torch
from tests.runtime.runs import assert_same, mse, run
from tests.runtime.test_any_schedule import shuffled
from tests.runtime.zoo import WIDTH, batch
from torch import Tensor, nn

import penstock as ps
from penstock.ir import Placement
from penstock.testing import reference_gradients


class AddsInPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        update = self.linear(x + 1)
        x += update
        return x


def chain(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(*layers).double()


def linear() -> nn.Linear:
    return nn.Linear(WIDTH, WIDTH)


MODELS = {
    "relu": lambda: chain(linear(), nn.ReLU(inplace=True), linear(), nn.ReLU(inplace=True)),
    "residual": lambda: chain(linear(), AddsInPlace(), AddsInPlace(), linear()),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_first_layer_of_a_stage_may_write_in_place(name: str) -> None:
    """Symptom: `a leaf Variable that requires grad is being used in an in-place operation`. Cause: what enters a stage
    is a leaf of its graph, and was handed to the layers as such."""
    torch.manual_seed(0)
    model, data = MODELS[name](), batch(8)
    loss, grads = reference_gradients(model, mse, *data, num_microbatches=4)
    for schedule in (ps.one_f_one_b(4, 4), ps.gpipe(2, 4), ps.interleaved_1f1b(2, 4)):
        found = run(model, [data], num_ranks=schedule.num_ranks, schedule=schedule)
        assert_same(found.grads, grads)
        assert all(torch.equal(losses[0], loss) for losses in found.losses)
        twice = run(model, [data, data], num_ranks=schedule.num_ranks, schedule=schedule)
        for key, grad in twice.grads.items():
            torch.testing.assert_close(grad, 2 * grads[key], rtol=1e-12, atol=1e-14)


def test_a_write_into_what_the_stage_before_needs_is_seen_as_in_the_unsplit_model() -> None:
    """Neighbouring stages of one rank share the boundary's memory; Tanh needs its result for its backward."""
    model = chain(linear(), nn.Tanh(), nn.ReLU(inplace=True), linear())
    placement = Placement.replicas((0, 0, 0, 1))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        reference_gradients(model, mse, *batch(4), num_microbatches=2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        run(model, [batch(4)], num_ranks=2, schedule=shuffled(placement, 2, 0))
