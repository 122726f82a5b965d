"""evaluate() and forward(): any batch size, the unsplit model's numbers, nothing overwritten on the way."""

import time
from typing import Any

import pytest
import torch
from tests.runtime.runs import SCHEDULES, Poisoning, mse
from tests.runtime.test_any_schedule import shuffled
from tests.runtime.zoo import MODELS, WIDTH, batch, made
from torch import Tensor, nn

import penstock as ps
from penstock.errors import BatchError, ModelError
from penstock.ir import Placement


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_ragged_batches_give_the_unsplit_sample_mean(schedule: str):
    model = made("attention")
    sizes = [8, 7, 3, 1, 8, 5]

    def rank(transport: ps.LoopbackTransport) -> list[Tensor]:
        pipe = ps.Pipeline(model, mse, transport=transport, schedule=schedule, num_microbatches=4)
        return [pipe.evaluate(*batch(size)) for size in sizes]

    # Attention mixes the samples of a microbatch, so the oracle takes the same ones.
    def unsplit(size: int) -> Tensor:
        pieces = [each.tensor_split(min(size, 4)) for each in batch(size)]
        with torch.no_grad():
            return sum(mse(model(x), y) * len(x) for x, y in zip(*pieces, strict=True)) / size

    for losses in ps.run_ranks(rank, 3, timeout_seconds=20):
        assert [float(loss) for loss in losses] == pytest.approx([float(unsplit(size)) for size in sizes], rel=1e-12)


@pytest.mark.parametrize("name", MODELS)
def test_forward_is_the_unsplit_output(name: str):
    model = made(name)
    samples = [batch(size)[0] for size in (8, 3, 8)]

    def rank(transport: ps.LoopbackTransport) -> list[tuple[Any, Tensor]]:
        pipe = ps.Pipeline(model, transport=transport, num_microbatches=8)
        x = samples if pipe.has_first_stage else [None] * 3
        return [(pipe.forward(each), pipe.forward(each, broadcast=True)) for each in x]

    parts = ps.run_ranks(rank, 4, timeout_seconds=20)
    with torch.no_grad():
        expected = [torch.cat([model(row) for row in each.tensor_split(len(each))]) for each in samples]
    for rank_number, part in enumerate(parts):
        for (own, everywhere), output in zip(part, expected, strict=True):
            assert torch.equal(everywhere, output)
            assert own is None if rank_number < 3 else torch.equal(own, output)


def test_forward_keeps_the_structure_of_the_output():
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), *made("plain_values")[:1]).double()

    def rank(transport: ps.LoopbackTransport) -> Any:
        return ps.Pipeline(model, transport=transport, num_microbatches=2).forward(batch()[0], broadcast=True)

    for output in ps.run_ranks(rank, 2, timeout_seconds=20):
        assert output["rest"] == [None, 3, True, "tanh", 0.5, []]
        assert output["hidden"].shape == (8, WIDTH)
        assert not output["hidden"].requires_grad


class Slow(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        time.sleep(0.01)
        return x + 1


def views() -> nn.Sequential:
    """Two stages in the middle that only look at their input, before a slow one; the last looks at its own."""
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Identity(), nn.Flatten(), Slow(), nn.Identity()).double()


@pytest.mark.parametrize("placement", [Placement.looped(5), Placement.replicas((0, 1, 1, 0, 1))])
def test_a_received_tensor_that_is_passed_on_is_not_overwritten_meanwhile(placement: Placement):
    """Symptom: evaluate and forward gave the numbers of later microbatches. Cause: a stage that passes its input on
    sent, or returned, the ring buffer itself, into which the next message was received before it had left."""
    torch.manual_seed(0)
    model, (inputs, targets) = views(), batch(8)
    with torch.no_grad():
        expected = torch.cat([model(row) for row in inputs.tensor_split(8)])

    def rank(transport: ps.LoopbackTransport) -> tuple[Tensor, float]:
        pipe = ps.Pipeline(model, mse, transport=transport, schedule=shuffled(placement, 8, 0))
        for _ in range(2):  # receives go into rings from the second time on
            output = pipe.forward(inputs, broadcast=True)
            loss = pipe.evaluate(inputs, targets)
        return output, float(loss)

    for output, loss in ps.run_ranks(rank, placement.num_ranks, timeout_seconds=20):
        assert torch.equal(output, expected)
        assert loss == pytest.approx(float(mse(expected, targets)), rel=1e-12)


@pytest.mark.parametrize("schedule", ["interleaved_1f1b", "breadth_first", "gis", "wave"])
def test_a_skip_over_several_stages_of_a_rank_is_not_overwritten_before_it_is_sent(schedule: str):
    """Symptom: from the second time on evaluate gave other numbers. Cause: what a stage passes on was copied when it
    was sent, but where a rank has several stages, receives may be posted between a forward and its send."""
    model, data = made("skips"), batch(8)
    with torch.no_grad():
        expected = float(mse(model(data[0]), data[1]))

    def rank(transport: ps.LoopbackTransport) -> list[float]:
        pipe = ps.Pipeline(model, mse, transport=Poisoning(transport), schedule=schedule, num_microbatches=4)
        return [float(pipe.evaluate(*data)) for _ in range(3)]

    for losses in ps.run_ranks(rank, 2, timeout_seconds=20):
        assert losses == pytest.approx([expected] * 3, rel=1e-12)


def test_outputs_that_do_not_join_fail_on_every_rank():
    """Symptom: with broadcast=True the other ranks waited for their deadline."""
    model = nn.Sequential(nn.Identity(), Rows())
    told: dict[int, Exception] = {}

    def rank(transport: ps.LoopbackTransport) -> None:
        try:
            ps.Pipeline(model, transport=transport, num_microbatches=2).forward(batch(3)[0], broadcast=True)
        except Exception as error:
            told[transport.rank] = error

    ps.run_ranks(rank, 2, timeout_seconds=5)
    assert isinstance(told[1], ModelError)
    assert "differ in structure" in str(told[1])
    assert "rank 1 failed in forward(broadcast=True)" in str(told[0])


class Rows(nn.Module):
    """As many tensors as samples."""

    def forward(self, x: Tensor) -> list[Tensor]:
        return list(x)


def test_a_pipeline_without_a_loss_says_so():
    def rank(transport: ps.LoopbackTransport) -> None:
        pipe = ps.Pipeline(made("dense"), transport=transport, num_microbatches=2)
        for call in (pipe.step, pipe.evaluate):
            with pytest.raises(ModelError, match="loss_fn="):
                call(*batch())

    ps.run_ranks(rank, 2, timeout_seconds=5)


def test_an_empty_batch_is_refused():
    def rank(transport: ps.LoopbackTransport) -> None:
        pipe = ps.Pipeline(made("dense"), mse, transport=transport, num_microbatches=2)
        with pytest.raises(BatchError, match="empty"):
            pipe.evaluate(*batch(0))

    ps.run_ranks(rank, 2, timeout_seconds=5)
