"""Buffers see each microbatch exactly once; evaluation sees none of them."""

import copy

import pytest
import torch
from tests.runtime.runs import SCHEDULES, assert_same, grads_of, mse
from tests.runtime.zoo import WIDTH, batch
from torch import Tensor, nn

import penstock as ps
from penstock.testing import reference_step


class Counter(nn.Module):
    """Counts its forwards, those in training apart."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.register_buffer("trained", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.training:
            self.trained += 1
        return x


def normed() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), Counter()) for _ in range(4)]
    return nn.Sequential(*layers).double()


def counters(model: nn.Sequential) -> list[Counter]:
    return [layer[2] for layer in model]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("num_ranks", [1, 3, 4])
def test_batch_norm_runs_as_in_the_unsplit_model(schedule: str, num_ranks: int):
    model, batches = normed(), [batch(8, seed=seed) for seed in (1, 2)]
    oracle = copy.deepcopy(model)
    for data in batches:
        reference_step(oracle, mse, *data, num_microbatches=4)

    def rank(transport: ps.LoopbackTransport) -> tuple[dict, dict]:
        pipe = ps.Pipeline(model, mse, transport=transport, schedule=schedule, num_microbatches=4)
        for data in batches:
            pipe.step(*data)
        return grads_of(pipe), pipe.state_dict()

    parts = ps.run_ranks(rank, num_ranks, timeout_seconds=20)
    assert_same({name: grad for grads, _ in parts for name, grad in grads.items()}, grads_of(oracle))
    state = {name: value for _, state in parts for name, value in state.items()}
    expected = oracle.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    assert [counter.calls for counter in counters(model)] == [8] * 4  # 2 steps of 4 microbatches, nothing hidden


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_evaluation_before_between_and_after_steps_leaves_no_trace(schedule: str):
    model, data = normed(), batch(8)
    model[1].eval()  # a layer the user holds in eval mode stays there
    oracle = copy.deepcopy(model)
    expected = []
    for _ in range(2):
        expected.append(mse(copy.deepcopy(oracle).eval()(data[0]), data[1]).item())
        reference_step(oracle, mse, *data, num_microbatches=4)
    expected.append(mse(copy.deepcopy(oracle).eval()(data[0]), data[1]).item())

    def rank(transport: ps.LoopbackTransport) -> tuple[list[float], dict, dict, list[bool]]:
        pipe = ps.Pipeline(model, mse, transport=transport, schedule=schedule, num_microbatches=4)
        losses = [float(pipe.evaluate(*data))]
        assert not grads_of(pipe)
        for _ in range(2):
            pipe.step(*data)
            before = {name: grad.clone() for name, grad in grads_of(pipe).items()}
            losses.append(float(pipe.evaluate(*data)))
            pipe.forward(data[0])
            assert_same(grads_of(pipe), before)
        return losses, grads_of(pipe), pipe.state_dict(), []

    parts = ps.run_ranks(rank, 4, timeout_seconds=20)
    assert_same({name: grad for part in parts for name, grad in part[1].items()}, grads_of(oracle))
    assert parts[0][0] == pytest.approx(expected, rel=1e-12)
    state, wanted = {name: value for part in parts for name, value in part[2].items()}, oracle.state_dict()
    assert all(torch.equal(state[name], wanted[name]) for name in wanted)
    assert [(name, m.training) for name, m in model.named_modules()] == [
        (name, m.training) for name, m in oracle.named_modules()
    ]
