"""Arguments of a Pipeline as a new user gets them wrong: one sentence with the value and one that works."""

from typing import Any

import pytest
import torch
from torch import nn

import penstock as ps

ARGUMENTS: dict[str, tuple[dict[str, Any], str]] = {
    "no such device": ({"device": "gpu0"}, "device='gpu0' is no device; use e.g. \"cpu\""),
    "a seed in words": ({"seed": "a"}, "seed is 'a', not a whole number; give seed=0"),
    "a loss that is a number": ({"loss_fn": 3}, "loss_fn=3 is no function; give e.g. torch.nn.functional"),
    "weights that are a number": ({"weight_fn": 3}, "weight_fn=3 is no function; give e.g. lambda targets"),
    "rules that are a number": ({"batch_rules": 3}, "batch_rules is 3, not a Mapping; give e.g. {'inputs"),
    "a schedule that is a number": ({"schedule": 3}, 'schedule is 3, not a text or a Path or a Schedule; give "one_f'),
    "a schedule that nobody can wait for": ({"num_microbatches": 10**9}, "use at most e.g. num_microbatches=524288"),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_a_wrong_argument_is_refused_in_one_sentence(name: str) -> None:
    given, said = ARGUMENTS[name]
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))

    def rank(transport: ps.LoopbackTransport) -> str:
        usual: dict[str, Any] = {"loss_fn": nn.functional.mse_loss, "num_microbatches": 2}
        with pytest.raises(ps.UserError) as refused:
            ps.Pipeline(model, transport=transport, **usual | given)
        return str(refused.value)

    sentences = ps.run_ranks(rank, num_ranks=2)
    assert all(said in sentence and "\n" not in sentence for sentence in sentences), sentences


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a CUDA device")
def test_a_device_that_is_not_there_is_refused() -> None:
    def rank(transport: ps.LoopbackTransport) -> None:
        ps.Pipeline([nn.Linear(2, 2)], transport=transport, num_microbatches=2, device="cuda")

    with pytest.raises(ps.UserError, match=r'device="cuda" and this host has no CUDA device.*use device="cpu"'):
        ps.run_ranks(rank, num_ranks=1)


@pytest.mark.parametrize("number", [0, -1, 2.5, "2", None])
def test_ranks_are_a_number_of_at_least_one(number: Any) -> None:
    with pytest.raises(ps.UserError, match=r"num_ranks.*2"):
        ps.run_ranks(lambda transport: None, number)


def test_a_norm_to_clip_at_is_a_number() -> None:
    def rank(transport: ps.LoopbackTransport) -> None:
        model = nn.Sequential(nn.Linear(2, 2))
        pipe = ps.Pipeline(model, nn.functional.mse_loss, transport=transport, num_microbatches=2)
        pipe.step(torch.ones(2, 2), torch.ones(2, 2))
        pipe.clip_grad_norm_("all")  # type: ignore[arg-type]

    with pytest.raises(ps.UserError, match=r"max_norm is 'all'.*give 1.0"):
        ps.run_ranks(rank, num_ranks=1)


def test_a_transport_is_one() -> None:
    with pytest.raises(ps.UserError, match=r"transport=3; give the one that penstock.run_ranks hands to each rank"):
        ps.Pipeline([nn.Linear(2, 2)], transport=3, num_microbatches=2)  # type: ignore[arg-type]


def test_a_weight_is_a_number_and_a_state_a_mapping() -> None:
    def rank(transport: ps.LoopbackTransport) -> None:
        model = nn.Sequential(nn.Linear(2, 2))
        pipe = ps.Pipeline(
            model,
            nn.functional.mse_loss,
            transport=transport,
            num_microbatches=2,
            weight_fn=lambda targets: "heavy",  # type: ignore[arg-type,return-value]
        )
        with pytest.raises(ps.UserError, match="the state to load is 3, not a Mapping; give what state_dict returned"):
            pipe.load_state_dict(3)  # type: ignore[arg-type]
        pipe.step(torch.ones(2, 2), torch.ones(2, 2))

    with pytest.raises(ps.UserError, match="weight_fn gave 'heavy'; return one number a microbatch"):
        ps.run_ranks(rank, num_ranks=1)
