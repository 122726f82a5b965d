"""A dynamic loss scale: the same gradients, and a step that overflowed is skipped on all ranks or on none."""

import copy

import pytest
import torch
from tests.runtime.runs import mse
from torch import Tensor, nn

import penstock as ps
from penstock.errors import BatchError


def model() -> nn.Sequential:
    torch.manual_seed(2)
    return nn.Sequential(*(nn.Linear(6, 6) for _ in range(4)))


def data() -> tuple[Tensor, Tensor]:
    torch.manual_seed(3)
    return torch.randn(8, 6), torch.randn(8, 6)


@pytest.mark.parametrize("schedule", ["one_f_one_b", "zb_v", "chimera"])
def test_scaled_and_unscaled_gradients_and_the_loss_are_those_without_a_scale(schedule: str):
    whole, batch = model(), data()  # made here: threads share torch's generator

    def rank(transport: ps.LoopbackTransport) -> None:
        pipe = ps.Pipeline(whole, mse, transport=transport, schedule=schedule, num_microbatches=4)
        loss = pipe.step(*batch)
        expected = {name: p.grad.clone() for name, p in pipe.named_parameters()}
        for parameter in pipe.parameters():
            parameter.grad = None
        scaler = ps.LossScaler(initial=2.0**12)
        assert torch.equal(pipe.step(*batch, loss_scale=scaler.scale), loss)
        assert any(not torch.equal(p.grad, expected[name]) for name, p in pipe.named_parameters())
        assert scaler.unscale_(pipe)
        for name, parameter in pipe.named_parameters():
            assert torch.equal(parameter.grad, expected[name]), "a power of two changes no bit"

    ps.run_ranks(rank, 2, timeout_seconds=20)


def test_an_overflow_on_one_rank_skips_the_step_on_all_and_lowers_the_scale():
    whole, batch = model(), data()

    def rank(transport: ps.LoopbackTransport) -> list[tuple[bool, float]]:
        pipe = ps.Pipeline(whole, mse, transport=transport, num_microbatches=4)
        scaler, seen = ps.LossScaler(initial=8.0, interval=2), []
        for step in range(4):
            pipe.step(*batch, loss_scale=scaler.scale)
            if step == 1 and transport.rank == 1:
                next(pipe.parameters()).grad[0, 0] = float("nan")
            seen.append((scaler.unscale_(pipe), scaler.scale))
            for parameter in pipe.parameters():
                parameter.grad = None
        again = ps.LossScaler()
        again.load_state_dict(scaler.state_dict())
        assert again.state_dict() == scaler.state_dict()
        return seen

    first, second = ps.run_ranks(rank, 2, timeout_seconds=20)
    assert first == second == [(True, 8.0), (False, 4.0), (True, 4.0), (True, 8.0)]


def test_bf16_autocast_around_a_step_gives_the_unsplit_models_gradients_under_autocast():
    whole, batch = model(), data()
    twin = copy.deepcopy(whole)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for inputs, targets in zip(*(part.chunk(4) for part in batch), strict=True):
            (mse(whole(inputs).float(), targets) / 4).backward()

    def rank(transport: ps.LoopbackTransport, schedule: str) -> dict[str, Tensor]:
        pipe = ps.Pipeline(
            copy.deepcopy(twin),
            lambda out, to: mse(out.float(), to),
            transport=transport,
            schedule=schedule,
            num_microbatches=4,
        )
        with torch.autocast("cpu", dtype=torch.bfloat16):
            pipe.step(*batch)
        return {name: parameter.grad for name, parameter in pipe.named_parameters()}

    for schedule in ("one_f_one_b", "zb_h1"):
        parts = ps.run_ranks(lambda transport, s=schedule: rank(transport, s), 2, timeout_seconds=20)
        for name, grad in {n: g for part in parts for n, g in part.items()}.items():
            assert grad.dtype == torch.float32
            assert torch.equal(grad, whole.get_parameter(name).grad), name


@pytest.mark.parametrize("schedule", [ps.pipedream(1, 4), ps.pipemare(1, 4)])
def test_a_step_inside_autocast_is_met_by_the_next_microbatch(schedule: ps.Schedule):
    """Symptom: all microbatches of a call met the weights of its begin. Cause: autocast keeps its copies of weights
    until its region ends, and a version that is put in their place is no other tensor to it."""
    whole, (inputs, targets) = model(), data()
    twin = copy.deepcopy(whole)
    optimizer = torch.optim.SGD(whole.parameters(), lr=0.5)
    for x, y in zip(inputs.chunk(4), targets.chunk(4), strict=True):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mse(whole(x).float(), y).backward()
        optimizer.step()
        optimizer.zero_grad()

    def rank(transport: ps.LoopbackTransport) -> dict[str, Tensor]:
        pipe = ps.Pipeline(
            twin,
            lambda out, to: mse(out.float(), to),
            transport=transport,
            schedule=schedule,
            optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.5),
        )
        with torch.autocast("cpu", dtype=torch.bfloat16):
            pipe.step(inputs, targets)
        return pipe.state_dict()

    (state,) = ps.run_ranks(rank, 1, timeout_seconds=20)
    for name, value in state.items():
        assert torch.equal(value, whole.state_dict()[name]), name


def test_a_scale_that_cannot_work_is_refused():
    for arguments in ({"initial": 0.0}, {"backoff": 1.5}, {"interval": 0}, {"growth": 0.5}):
        with pytest.raises(BatchError, match="use a scale above 0"):
            ps.LossScaler(**arguments)
