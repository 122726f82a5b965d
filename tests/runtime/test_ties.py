"""A parameter that stages of several ranks share stays one parameter: equal, stepped once, counted once."""

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


@pytest.mark.parametrize(("schedule", "p"), [("chimera", 2), ("chimera", 4), ("dualpipe", 4), ("dualpipe_v", 2)])
def test_a_tie_holds_over_several_directions_too(schedule: str, p: int):
    """Every rank holds the parameter once, for the stages of both of its directions; it was refused."""
    model, reference = tied(), tied()
    m = 8
    _, grads = reference_gradients(reference, mse, *data(), num_microbatches=m)
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(grad) for grad in grads.values()]))

    def rank(transport: ps.LoopbackTransport) -> tuple[dict[str, nn.Parameter], Tensor]:
        pipe = ps.Pipeline(model, mse, transport=transport, schedule=schedule, num_microbatches=m)
        pipe.step(*data())
        total = pipe.clip_grad_norm_(1e9)
        pipe.step(*data())
        return dict(pipe.named_parameters()), total

    first: dict[str, Tensor] = {}
    for held, total in ps.run_ranks(rank, p, timeout_seconds=20):
        torch.testing.assert_close(total, norm, rtol=1e-12, atol=0)
        assert len({"0.weight", "2.weight", "3.1.weight"} & held.keys()) <= 1, "one parameter, however many stages"
        for own, parameter in held.items():
            name = "0.weight" if own in ("2.weight", "3.1.weight") else own
            torch.testing.assert_close(parameter.grad, 2 * grads[name], rtol=1e-12, atol=1e-14, msg=name)
            assert torch.equal(parameter.grad, first.setdefault(name, parameter.grad)), f"copies of {name} differ"


def test_a_frozen_tie_gets_no_gradient_and_keeps_the_one_it_had():
    frozen = tied()

    def rank(transport: ps.LoopbackTransport) -> None:
        pipe = ps.Pipeline(frozen, mse, transport=transport, num_microbatches=4)
        pipe.step(*data())
        before = {name: parameter.grad.clone() for name, parameter in pipe.named_parameters()}
        for name, parameter in pipe.named_parameters():
            parameter.requires_grad_("bias" in name)
        pipe.step(*data())
        for name, parameter in pipe.named_parameters():
            assert torch.equal(parameter.grad, before[name]) == ("weight" in name), name

    ps.run_ranks(rank, 2, timeout_seconds=20)


def test_a_tie_over_stages_that_step_by_themselves_is_refused():
    """Symptom: copies drifted apart in silence. Cause: each stage's step met its own part of the gradient."""

    def rank(transport: ps.LoopbackTransport) -> None:
        with pytest.raises(
            ModelError, match=r"0\.weight on stage 0 and 2\.weight on stage 1 .* are one tied .* steps each"
        ):
            ps.Pipeline(
                tied(),
                mse,
                transport=transport,
                schedule="pipedream",
                num_microbatches=4,
                optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
            )

    ps.run_ranks(rank, 2, timeout_seconds=20)
