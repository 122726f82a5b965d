"""Sizes may change from step to step; shapes that were seen before cost nothing."""

import copy

import pytest
import torch
from tests.runtime.runs import SCHEDULES, Counting, assert_same, grads_of, mse
from tests.runtime.zoo import WIDTH, batch, made
from torch import Tensor, nn

import penstock as ps
from penstock.errors import ModelError, RankFailedError
from penstock.testing import reference_step


def sequences(size: int, length: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(size * length)
    return tuple(torch.randn(size, length, WIDTH, generator=generator, dtype=torch.float64) for _ in range(2))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_sequence_length_and_batch_size_vary_between_steps(schedule: str):
    model = made("dense")
    batches = [sequences(*sizes) for sizes in ((8, 3), (8, 5), (4, 3), (8, 3), (8, 5), (16, 1))]
    oracle, twin = copy.deepcopy(model), copy.deepcopy(model)
    for data in batches:
        reference_step(oracle, mse, *data, num_microbatches=4)

    def rank(transport: ps.LoopbackTransport) -> tuple[dict[str, Tensor], list[int]]:
        counting = Counting(transport)
        pipe = ps.Pipeline(twin, mse, transport=counting, schedule=schedule, num_microbatches=4)
        sends = []
        for data in batches:
            pipe.step(*data)
            sends.append(len(counting.sent))
            counting.sent.clear()
        return grads_of(pipe), sends

    parts = ps.run_ranks(rank, 3, timeout_seconds=20)
    assert_same({name: grad for grads, _ in parts for name, grad in grads.items()}, grads_of(oracle))
    # An output is one tensor; while its shape is new, a length and a header go before it. Gradients need none.
    new, seen = 4 * 3, 4
    assert [sends for _, sends in parts] == [
        [new, new, new, seen, seen, new],
        [new + 4, new + 4, new + 4, seen + 4, seen + 4, new + 4],
        [4] * 6,
    ]


class Kept(nn.Module):
    """A boundary whose shape hangs on the numbers in it."""

    def forward(self, x: Tensor) -> Tensor:
        return x[x[:, 0] > 0]


def test_a_shape_that_hangs_on_the_data_is_an_error_and_no_hang():
    model = nn.Sequential(Kept(), nn.Linear(WIDTH, WIDTH)).double()
    told: dict[int, Exception] = {}

    def rank(transport: ps.LoopbackTransport) -> None:
        pipe = ps.Pipeline(model, lambda output, _: output.sum(), transport=transport, num_microbatches=2)
        inputs, targets = batch(8)
        pipe.step(inputs.abs(), targets)
        try:
            pipe.step(-inputs.abs(), targets)
        except Exception as error:
            told[transport.rank] = error

    ps.run_ranks(rank, 2, timeout_seconds=5)
    assert isinstance(told[0], ModelError)
    assert "stage 0 on microbatch 0 changed from" in str(told[0])
    assert "[4, 6] float64" in str(told[0])
    assert "[0, 6] float64" in str(told[0])
    assert isinstance(told[1], RankFailedError)
    assert "rank 0 failed" in str(told[1])


def test_a_boundary_that_cannot_travel_is_named():
    model = nn.Sequential(Odd(), nn.Linear(WIDTH, WIDTH))

    def rank(transport: ps.LoopbackTransport) -> None:
        ps.Pipeline(model, mse, transport=transport, num_microbatches=2).step(*batch(4, torch.float32))

    with pytest.raises(ModelError, match=r'boundary\["a"\]\[1\] is a set'):
        ps.run_ranks(rank, 2, timeout_seconds=5)


class Odd(nn.Module):
    def forward(self, x: Tensor) -> dict:
        return {"a": [x, {1}]}
