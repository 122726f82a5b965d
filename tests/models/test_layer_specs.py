"""A list of layers that are not built: a rank builds its own, with the same numbers in every layout."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import penstock as ps
from penstock.errors import ModelError
from penstock.models import cut
from penstock.models.lazy import built
from penstock.testing import check_against_reference

BUILT: list[int] = []


class Layer(nn.Module):
    """A layer whose constructor draws and takes part in a count."""

    def __init__(self, number: int, *, gain: float = 1.0) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)
        self.scale = nn.Parameter(gain * torch.rand(6))
        if not self.scale.is_meta:
            BUILT.append(number)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.linear(x)) * self.scale


def specs() -> list[nn.Module | ps.LayerSpec]:
    return [ps.LayerSpec(Layer, number, gain=0.5) for number in range(6)]


def weights(p: int, **more: object) -> dict[str, Tensor]:
    def rank(transport: ps.LoopbackTransport) -> dict[str, Tensor]:
        return ps.Pipeline(specs(), transport=transport, num_microbatches=2, **more).state_dict()

    return {name: value for own in ps.run_ranks(rank, p, timeout_seconds=20) for name, value in own.items()}


def test_a_rank_builds_the_layers_of_its_own_stages_and_no_others():
    BUILT.clear()
    weights(3, partition=[1, 2, 3])
    assert sorted(BUILT) == list(range(6)), "each layer once, over all ranks"

    def rank(transport: ps.LoopbackTransport) -> set[str]:
        return set(ps.Pipeline(specs(), transport=transport, num_microbatches=1, partition=[1, 5]).state_dict())

    assert ps.run_ranks(rank, 2, timeout_seconds=20)[0] == {"0.linear.weight", "0.linear.bias", "0.scale"}


def test_every_layout_starts_with_the_same_bits():
    expected = weights(1, seed=3)
    for found in (weights(3, seed=3), weights(2, seed=3, schedule="zb_v"), weights(2, seed=3, schedule="chimera")):
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert not torch.equal(weights(1, seed=4)["2.scale"], expected["2.scale"])
    assert not torch.equal(expected["1.scale"], expected["2.scale"])


def test_without_a_seed_torchs_own_counts():
    torch.manual_seed(11)
    one = weights(2)
    torch.rand(5)
    assert torch.equal(weights(3)["4.scale"], one["4.scale"])
    torch.manual_seed(12)
    assert not torch.equal(weights(3)["4.scale"], one["4.scale"])


def test_gradients_are_those_of_the_layers_built_all_together():
    batch = torch.rand(4, 6), torch.rand(4, 6)
    found = check_against_reference(specs(), nn.functional.mse_loss, *batch, num_ranks=3, num_microbatches=2, seed=1)
    assert found.worst == 0
    assert len(found.errors) == 18
    whole = built(specs(), seed=1)
    assert torch.equal(whole[2].scale, weights(2, seed=1)["2.scale"])


def test_specs_and_modules_may_be_mixed():
    head = nn.Linear(6, 2)
    model = [*specs()[:3], head]

    def rank(transport: ps.LoopbackTransport) -> bool:
        pipe = ps.Pipeline(model, transport=transport, num_microbatches=1)
        return any(parameter is head.weight for parameter in pipe.parameters())

    assert ps.run_ranks(rank, 2, timeout_seconds=20) == [False, True]


def test_what_is_no_spec_is_told():
    with pytest.raises(ModelError, match=r"LayerSpec\(Linear …\): give a class and its arguments"):
        ps.LayerSpec(nn.Linear(2, 2))
    assert repr(ps.LayerSpec(nn.Linear, 2, 3, bias=False)) == "LayerSpec(Linear, 2, 3, bias=False)"
    with pytest.raises(ModelError, match=r"LayerSpec\(dict, a=1\) gives a dict, not an nn\.Module"):
        cut([ps.LayerSpec(dict, a=1)])

    class Measuring(nn.Linear):
        def __init__(self) -> None:
            super().__init__(2, 2)
            self.size = self.weight.sum().item()

    with pytest.raises(ModelError, match="cannot be built without numbers"):
        cut([ps.LayerSpec(Measuring)])
