"""Models by trace on the meta device, and lists whose layers drop: one seed gives every layout the same bits."""

from __future__ import annotations

import pytest
import torch
from tests.models.traced_models import MODELS, batch_of, loss_of, made
from torch import Tensor, nn

import penstock as ps
from penstock.models import cut

TARGETS = torch.linspace(0.2, 1, 4)


def trained(model: nn.Module, inputs: object, p: int, schedule: str = "one_f_one_b") -> dict[str, Tensor]:
    """Every tensor of the model over all ranks at the start, and every gradient after a step."""

    def rank(transport: ps.LoopbackTransport) -> dict[str, Tensor]:
        pipe = ps.Pipeline(model, loss_of, transport=transport, schedule=schedule, num_microbatches=2, seed=4)
        found = {name: value.clone() for name, value in pipe.state_dict().items()}
        pipe.step(inputs, TARGETS)
        return found | {f"grad of {n}": each.grad for n, each in pipe.named_parameters() if each.grad is not None}

    return {name: value for own in ps.run_ranks(rank, p, timeout_seconds=60) for name, value in own.items()}


@pytest.mark.parametrize("name", ["UNet", "Wrapped"])
def test_a_followed_model_on_the_meta_device_starts_with_the_same_bits_in_every_layout(name: str):
    """Running statistics, a dropout between blocks, a skip over stages."""
    with torch.device("meta"):
        model = MODELS[name]()
    inputs = batch_of(name).float()
    whole = trained(model, inputs, 1)
    assert {each for each in whole if not each.startswith("grad")} == set(model.state_dict())
    for p, schedule in ((3, "gpipe"), (2, "zb_v")):
        found = trained(model, inputs, p, schedule)
        assert found.keys() == whole.keys()
        for each, value in whole.items():
            assert torch.equal(found[each], value), each
    assert all(parameter.is_meta for parameter in model.parameters())


def test_a_rank_makes_what_its_own_stages_use_and_no_more():
    with torch.device("meta"):
        model = MODELS["UNet"]()
    held: dict[int, set[str]] = {}

    def rank(transport: ps.LoopbackTransport) -> None:
        pipe = ps.Pipeline(model, loss_of, transport=transport, num_microbatches=2, seed=4)
        held[transport.rank] = {name for name, _ in pipe.named_parameters()}
        assert not any(parameter.is_meta for parameter in pipe.parameters())

    ps.run_ranks(rank, 3, timeout_seconds=60)
    names = [name for own in held.values() for name in own]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters()), "each on one rank"


def test_a_model_with_numbers_of_its_own_kind_is_refused_by_name():
    with torch.device("meta"):
        model = MODELS["TwoTowers"]()

    def rank(transport: ps.LoopbackTransport) -> str:
        with pytest.raises(ps.UserError, match=r"initialises scale|initialises shift") as caught:
            ps.Pipeline(model, loss_of, transport=transport, num_microbatches=2, seed=4)
        return str(caught.value)

    ps.run_ranks(rank, 2, timeout_seconds=60)
    assert cut(made("TwoTowers")).fill is None
