"""Activations kept by another rank: they leave, come back bit for bit, and memory is what was proven."""

from __future__ import annotations

import weakref

import pytest
import torch
from tests.runtime.runs import Poisoning, assert_same, grads_of, mse, run
from tests.runtime.zoo import WIDTH, batch, made
from torch import Tensor, nn

import penstock as ps
from penstock.ir.ops import OpKind
from penstock.testing import reference_gradients


@pytest.mark.parametrize("name", ["dense", "attention", "skips", "mixed_dtypes"])
def test_bpipe_gives_the_bits_of_1f1b(name: str) -> None:
    """Three steps: the first learns how much there is to send, the others receive where the program says."""
    model, data = made(name), [batch(8, seed=seed) for seed in (1, 2, 3)]
    plain = run(model, data, num_ranks=4, schedule=ps.one_f_one_b(4, 8))
    found = run(model, data, num_ranks=4, schedule=ps.bpipe(4, 8))
    assert_same(found.grads, plain.grads)
    if name == "dense":  # Tanh keeps its result; a lone Linear keeps nothing but what entered it
        kinds = {channel.kind for sent in found.sent for channel, _ in sent}
        assert {OpKind.OFFLOAD, OpKind.RELOAD} <= kinds


def test_every_rank_holds_as_many_activations_as_was_proven() -> None:
    model = made("attention")
    for num_microbatches in (4, 8, 16):
        schedule = ps.bpipe(4, num_microbatches)

        def rank(transport: ps.LoopbackTransport, schedule: ps.Schedule = schedule) -> int:
            pipe = ps.Pipeline(model, mse, transport=Poisoning(transport), schedule=schedule)
            for _ in range(2):
                pipe.step(*batch(schedule.num_microbatches))
            return pipe._training._offloading.most_held

        held = ps.run_ranks(rank, 4, timeout_seconds=20)
        assert tuple(held) == ps.verify(schedule).peak_activations


class Wide(nn.Module):
    """Keeps one large tensor a microbatch, and knows which of them are in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.made: list[weakref.ref] = []
        self.most = 0

    def forward(self, x: Tensor) -> Tensor:
        large = torch.tanh(self.linear(x).repeat(1, 50))
        self.made.append(weakref.ref(large.untyped_storage()))
        self.most = max(self.most, sum(storage() is not None for storage in self.made))
        return large[:, :WIDTH] * 1.0


@pytest.mark.parametrize(("schedule", "most"), [(ps.one_f_one_b(4, 12), 4), (ps.bpipe(4, 12), 3)])
def test_what_left_is_free(schedule: ps.Schedule, most: int) -> None:
    """⌈(p+2)/2⌉ = 3 microbatches of rank 0 in memory at once, where 1F1B has 4."""
    torch.manual_seed(0)
    model = nn.Sequential(Wide(), *(nn.Linear(WIDTH, WIDTH) for _ in range(3))).double()
    data = batch(12)
    _, grads = reference_gradients(model, mse, *data, num_microbatches=12)
    for module in model.modules():
        if isinstance(module, Wide):
            module.made.clear()

    def rank(transport: ps.LoopbackTransport) -> dict[str, Tensor]:
        pipe = ps.Pipeline(model, mse, transport=transport, schedule=schedule)
        pipe.step(*data)
        model[0].most = 0
        pipe.step(*data)
        return grads_of(pipe)

    parts = ps.run_ranks(rank, 4, timeout_seconds=20)
    assert model[0].most == most
    for name, grad in (item for part in parts for item in part.items()):
        torch.testing.assert_close(grad, 2 * grads[name], rtol=1e-12, atol=1e-14)


def test_other_shapes_are_learned_and_old_ones_remembered() -> None:
    model = made("attention")
    data = [batch(size, seed=size) for size in (8, 16, 8, 16)]
    found = run(model, data, num_ranks=4, schedule=ps.bpipe(4, 8))
    assert_same(found.grads, run(model, data, num_ranks=4, schedule=ps.one_f_one_b(4, 8)).grads)


class Grows(nn.Module):
    """Saves more from the second step on, with inputs of the same shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        x = self.linear(x)
        return x.sin().sin() if self.calls > 8 else x.sin()


def test_a_stage_that_saves_more_than_before_is_told_in_words() -> None:
    model = nn.Sequential(Grows(), *(nn.Linear(WIDTH, WIDTH) for _ in range(3))).double()
    with pytest.raises(ps.UserError, match=r"stage 0 saved .* bytes of microbatch 2 for its backward, before it were"):
        run(model, [batch(8), batch(8)], num_ranks=4, schedule=ps.bpipe(4, 8))


def test_evaluation_and_inference_offload_nothing() -> None:
    model, data = made("attention"), batch(8)

    def rank(transport: ps.LoopbackTransport) -> tuple[float, dict[str, Tensor]]:
        pipe = ps.Pipeline(model, mse, transport=transport, schedule=ps.bpipe(4, 8))
        losses = [float(pipe.evaluate(*data))]
        pipe.step(*data)
        losses.append(float(pipe.evaluate(*data)))
        assert losses[0] == losses[1]
        return losses[0], grads_of(pipe)

    parts = ps.run_ranks(rank, 4, timeout_seconds=20)
    _, grads = reference_gradients(model, mse, *data, num_microbatches=8)
    assert_same({name: grad for _, found in parts for name, grad in found.items()}, grads)
