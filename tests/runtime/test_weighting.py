"""The one rule of normalisation: the gradient of Σ loss_i · w_i / Σ w_i."""

import pytest
import torch
from tests.runtime.runs import SCHEDULES, assert_close, assert_same, run
from torch import Tensor, nn

import penstock as ps
from penstock.errors import BatchError
from penstock.testing import reference_gradients

IGNORED = -100


def token_loss(output: Tensor, target: Tensor) -> Tensor:
    return nn.functional.cross_entropy(output.flatten(0, 1), target.flatten(), ignore_index=IGNORED)


def tokens(target: Tensor) -> float:
    return float((target != IGNORED).sum())


@pytest.fixture
def uneven() -> tuple[nn.Sequential, Tensor, Tensor]:
    """A language model's batch of 4 whose samples keep 5, 1, 3 and 0 of 6 targets."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 9)).double()
    inputs, targets = torch.randint(9, (4, 6)), torch.randint(9, (4, 6))
    for row, kept in enumerate((5, 1, 3, 0)):
        targets[row, kept:] = IGNORED
    return model, inputs, targets


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_tokens_count_alike_in_whichever_microbatch_they_are(schedule: str, uneven):
    model, *data = uneven
    _, whole = reference_gradients(model, token_loss, *data, num_microbatches=1)
    loss, grads = reference_gradients(model, token_loss, *data, num_microbatches=2, weight_fn=tokens)
    for num_ranks in (1, 2, 4):
        arguments = {"num_ranks": num_ranks, "schedule": schedule, "num_microbatches": 2, "weight_fn": tokens}
        found = run(model, [data], loss_fn=token_loss, **arguments)
        assert_same(found.grads, grads)
        assert_close(found.grads, whole)
        assert torch.equal(found.losses[0][0], loss)


def test_without_weights_every_sample_counts_alike(uneven):
    model, inputs, targets = uneven
    targets = targets.where(targets != IGNORED, 0)
    _, whole = reference_gradients(model, token_loss, inputs, targets, num_microbatches=1)
    found = run(model, [(inputs, targets)], num_ranks=2, num_microbatches=4, loss_fn=token_loss)
    assert_close(found.grads, whole)


@pytest.mark.parametrize("weight", [-1.0, float("nan"), 0.0, float("inf")])
def test_weights_that_make_no_sense_are_shown(weight: float, uneven):
    model, *data = uneven
    with pytest.raises(BatchError, match="weight_fn gave"):
        run(model, [data], num_ranks=2, num_microbatches=2, loss_fn=token_loss, weight_fn=lambda _: weight)


def test_what_the_weight_function_raises_reaches_all_ranks(uneven):
    """Symptom: the other ranks waited for their deadline. Cause: only UserErrors went into the agreement."""
    model, *data = uneven
    told: dict[int, str] = {}

    def weight(_: Tensor) -> float:
        raise KeyError("mask")

    def rank(transport: ps.LoopbackTransport) -> None:
        pipe = ps.Pipeline(model, token_loss, transport=transport, num_microbatches=2, weight_fn=weight)
        try:
            pipe.step(*data)
        except Exception as error:
            told[transport.rank] = f"{type(error).__name__} {error}"

    ps.run_ranks(rank, 2, timeout_seconds=5)
    assert told == {0: "BatchError rank 1: KeyError: 'mask'", 1: "KeyError 'mask'"}


@pytest.mark.parametrize("schedule", ["one_f_one_b", "chimera"])
def test_a_microbatch_without_a_token_counts_for_nothing(schedule: str, uneven):
    """Symptom: the loss was no number. Cause: the mean over no token is none, and 0 times that is none either."""
    model, *data = uneven
    loss, grads = reference_gradients(model, token_loss, *data, num_microbatches=2, weight_fn=tokens)

    def rank(transport: ps.LoopbackTransport) -> dict[str, Tensor]:
        arguments = {"transport": transport, "schedule": schedule, "num_microbatches": 4, "weight_fn": tokens}
        pipe = ps.Pipeline(model, token_loss, **arguments)
        torch.testing.assert_close(pipe.step(*data), loss, rtol=1e-12, atol=0)
        torch.testing.assert_close(pipe.evaluate(*data), loss, rtol=1e-12, atol=0)
        return {name: parameter.grad for name, parameter in pipe.named_parameters()}

    parts = ps.run_ranks(rank, 2, timeout_seconds=20)
    assert_close({name: grad for found in parts for name, grad in found.items()}, grads)
