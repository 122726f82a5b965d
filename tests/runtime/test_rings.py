"""What lies in a ring buffer is safe until it has been used and has left."""

import time

import torch
from tests.runtime.runs import assert_same, grads_of, mse
from tests.runtime.zoo import WIDTH, batch
from torch import Tensor, nn

import penstock as ps
from penstock.testing import reference_gradients


class SlowBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        time.sleep(0.01)
        return grad


class Slow(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return SlowBackward.apply(x)


def test_a_gradient_that_only_changes_its_shape_is_not_overwritten_before_it_leaves():
    """Symptom: from the second step on gradients of later microbatches in place of earlier ones. Cause: autograd hands
    on a view of what came in; the gradient left from the ring buffer into which the next one was received."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Sequential(nn.Linear(WIDTH, WIDTH), Slow()),
        nn.Unflatten(1, (2, 3)),
        nn.Flatten(),
        nn.Linear(WIDTH, WIDTH),
    ).double()
    data = batch(8)
    _, grads = reference_gradients(model, mse, *data, num_microbatches=8)

    def rank(transport: ps.LoopbackTransport) -> dict[str, Tensor]:
        pipe = ps.Pipeline(model, mse, transport=transport, schedule="gpipe", num_microbatches=8)
        for _ in range(2):
            for parameter in pipe.parameters():
                parameter.grad = None
            pipe.step(*data)
        return grads_of(pipe)

    parts = ps.run_ranks(rank, 4, timeout_seconds=20)
    assert_same({name: grad for part in parts for name, grad in part.items()}, grads)
