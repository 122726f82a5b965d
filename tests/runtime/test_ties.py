"""A parameter that stages of several ranks share stays one parameter: equal, stepped once, counted once."""

import copy

import pytest
import torch
from tests.runtime.runs import mse
from torch import Tensor, nn

import penstock as ps
from penstock.errors import ModelError
from penstock.testing import reference_gradients

WIDTH = 6


def tied() -> nn.Sequential:
    """Layers 0, 2 and 3 have one weight; layer 3 is nested."""
    torch.manual_seed(5)
    model = nn.Sequential(
        *(nn.Linear(WIDTH, WIDTH) for _ in range(3)), nn.Sequential(nn.Tanh(), nn.Linear(WIDTH, WIDTH))
    )
    model[2].weight = model[0].weight
    model[3][1].weight = model[0].weight
    return model.double()


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(6)  # not torch's own, which threads of ranks share
    return tuple(torch.randn(8, WIDTH, dtype=torch.float64, generator=generator) for _ in range(2))


SCHEDULES = [("one_f_one_b", 2), ("gpipe", 4), ("zb_h1", 3), ("zb_v", 2), ("interleaved_1f1b", 2)]


@pytest.mark.parametrize(("schedule", "p"), SCHEDULES)
def test_every_holder_has_the_whole_gradient_and_stays_equal_over_steps(schedule: str, p: int):
    model, reference = tied(), tied()
    optimizer = torch.optim.AdamW(reference.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        _, grads = reference_gradients(reference, mse, *data(), num_microbatches=4)
        for name, parameter in reference.named_parameters():
            parameter.grad = grads[name]
        norm = nn.utils.clip_grad_norm_(reference.parameters(), 0.5)
        optimizer.step()

    def rank(transport: ps.LoopbackTransport) -> tuple[dict[str, Tensor], Tensor]:
        pipe = ps.Pipeline(model, mse, transport=transport, schedule=schedule, num_microbatches=4)
        own = torch.optim.AdamW(pipe.parameters(), lr=0.1)
        for _ in range(3):
            own.zero_grad()
            pipe.step(*data())
            total = pipe.clip_grad_norm_(0.5)
            own.step()
        return pipe.state_dict(), total

    expected = reference.state_dict()
    for state, total in ps.run_ranks(rank, p, timeout_seconds=20):
        torch.testing.assert_close(total, norm, rtol=1e-9, atol=0)
        for name, value in state.items():
            torch.testing.assert_close(value, expected[name], rtol=1e-9, atol=1e-12, msg=name)
    assert model[2].weight is model[0].weight, "the user's own model stays tied"


def test_copies_start_from_the_first_holders_numbers_and_two_steps_add():
    models = [tied(), tied()]

    def rank(transport: ps.LoopbackTransport) -> dict[str, Tensor]:
        model = models[transport.rank]
        with torch.no_grad():
            model[0].weight += transport.rank  # a model that was not made alike on every rank
        pipe = ps.Pipeline(model, mse, transport=transport, num_microbatches=4)
        pipe.step(*data())
        pipe.step(*data())
        return {name: parameter.grad for name, parameter in pipe.named_parameters()}

    _, grads = reference_gradients(tied(), mse, *data(), num_microbatches=4)
    for found in ps.run_ranks(rank, 2, timeout_seconds=20):
        for name in found.keys() & {"0.weight", "2.weight"}:
            torch.testing.assert_close(found[name], 2 * grads["0.weight"], rtol=1e-12, atol=1e-14)


def test_a_frozen_tie_gets_no_gradient_and_two_directions_are_refused():
    frozen = tied()
    frozen[0].weight.requires_grad_(False)

    def rank(transport: ps.LoopbackTransport) -> None:
        pipe = ps.Pipeline(frozen, mse, transport=transport, num_microbatches=4)
        pipe.step(*data())
        assert all(parameter.grad is None for _, parameter in pipe.named_parameters() if not parameter.requires_grad)
        with pytest.raises(ModelError, match=r"0\.weight on stage 0 and 2\.weight on stage 1 .* are one tied .* two"):
            ps.Pipeline(copy.deepcopy(frozen), mse, transport=transport, schedule="chimera", num_microbatches=4)

    ps.run_ranks(rank, 2, timeout_seconds=20)
