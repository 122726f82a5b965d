"""Names are the original model's; each parameter lies on one rank; states fit any layout."""

import copy

import pytest
import torch
from tests.runtime.runs import mse
from tests.runtime.zoo import made
from torch import Tensor, nn

import penstock as ps
from penstock.errors import ModelError


def state_of(model: nn.Sequential, num_ranks: int, load: dict[str, Tensor] | None = None) -> list[dict[str, Tensor]]:
    def rank(transport: ps.LoopbackTransport) -> dict[str, Tensor]:
        pipe = ps.Pipeline(model, mse, transport=transport, num_microbatches=2)
        if load is not None:
            pipe.load_state_dict(load)
        assert pipe.state_dict().keys() == dict(pipe.named_parameters()).keys()
        assert {name: pipe.plan.parameter_stages[name] for name in pipe.state_dict()} == dict.fromkeys(
            pipe.state_dict(), transport.rank
        )
        return pipe.state_dict()

    return ps.run_ranks(rank, num_ranks, timeout_seconds=5)


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4])
def test_each_name_of_the_model_is_on_exactly_one_rank(num_ranks: int):
    model = made("attention")
    names = [name for state in state_of(model, num_ranks) for name in state]
    assert names == list(model.state_dict())


def test_names_of_a_dict_of_layers_and_of_a_list_are_kept():
    named = nn.Sequential()
    named.add_module("embed", nn.Linear(2, 2))
    named.add_module("head", nn.Sequential(nn.Linear(2, 2)))
    assert [list(state) for state in state_of(named, 2)] == [
        ["embed.weight", "embed.bias"],
        ["head.0.weight", "head.0.bias"],
    ]
    assert [list(state) for state in state_of([nn.Linear(2, 2), nn.Linear(2, 2, bias=False)], 2)] == [
        ["0.weight", "0.bias"],
        ["1.weight"],
    ]


def test_a_state_goes_into_any_number_of_ranks():
    first = made("dense")
    blank = copy.deepcopy(first)
    for parameter in blank.parameters():
        nn.init.zeros_(parameter)
    whole = {name: value.clone() for state in state_of(first, 4) for name, value in state.items()}
    parts = state_of(copy.deepcopy(blank), 2, load=whole)
    again = {name: value for state in parts for name, value in state.items()}
    assert all(torch.equal(again[name], value) for name, value in first.state_dict().items())
    assert torch.equal(state_of(blank, 1, load=again)[0]["4.weight"], first[4].weight)


def test_a_state_that_does_not_fit_is_explained_by_its_names():
    model = made("dense")
    state = model.state_dict()
    with pytest.raises(ModelError, match=r"has no 2\.weight, which rank 0 needs"):
        state_of(copy.deepcopy(model), 1, load={name: value for name, value in state.items() if name != "2.weight"})
    with pytest.raises(ModelError, match=r"(?s)does not fit.*2\.weight"):
        state_of(copy.deepcopy(model), 1, load={**state, "2.weight": torch.zeros(2, 2)})


def test_the_summary_shows_stages_layers_and_parameters():
    def rank(transport: ps.LoopbackTransport) -> str:
        return ps.Pipeline(made("dense"), mse, transport=transport, num_microbatches=2, partition=[1, 5]).summary()

    first, second = ps.run_ranks(rank, 2, timeout_seconds=5)
    assert first == second
    assert "stage 0 on rank 0: 1 layers" in first
    assert "84 parameters" in first  # two of the three linears of 6·6+6
