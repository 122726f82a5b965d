"""Stages are contiguous layers under their original names, and cover each parameter once."""

from contextlib import contextmanager

import pytest
import torch
from torch import nn

from penstock.errors import ModelError
from penstock.models import CutModel, Tie, cut
from penstock.partition import Partition


def layers(count: int) -> list[nn.Module]:
    return [nn.Linear(2, 2, bias=False) for _ in range(count)]


def test_a_stage_runs_its_layers_in_order_and_keeps_their_names():
    modules = layers(4)
    model = cut(modules)
    partition = Partition((0, 1, 4))
    stage = model.stage(partition, 1)
    assert [name for name, _ in stage.named_parameters()] == ["1.weight", "2.weight", "3.weight"]
    x = torch.randn(3, 2)
    assert torch.equal(stage(x), modules[3](modules[2](modules[1](x))))
    assert model.parameters_of(partition) == ({f"{i}.weight": int(i > 0) for i in range(4)}, ())


def test_what_surrounds_a_layer_gets_its_index_in_the_model():
    stage = cut(layers(4)).stage(Partition((0, 1, 4)), 1)
    seen = []

    @contextmanager
    def surrounding(layer: int):
        seen.append(layer)
        yield

    stage.surrounding = surrounding
    stage(torch.ones(1, 2))
    assert seen == [1, 2, 3]


def test_a_tie_is_counted_once_and_across_stages_it_is_named():
    modules = layers(4)
    modules[2].weight = modules[1].weight
    model = cut(modules)
    assert model.parameters_of(Partition((0, 1, 4))) == ({"0.weight": 0, "1.weight": 1, "3.weight": 1}, ())
    stages, ties = model.parameters_of(Partition((0, 2, 4)))
    assert stages == {"0.weight": 0, "1.weight": 0, "3.weight": 1}
    assert ties == (Tie(((0, "1.weight"), (1, "2.weight"))),)


def test_a_model_that_is_cut_already_is_taken_as_it_is():
    model = CutModel({"embed": nn.Linear(1, 1)})
    assert cut(model) is model
    with pytest.raises(ModelError, match="no layers"):
        CutModel({})


@pytest.mark.parametrize("model", [nn.Linear(1, 1), {}, None, 3, "gpt"])
def test_what_no_front_end_can_cut_is_named(model: object):
    with pytest.raises(ModelError, match=rf"a {type(model).__name__} cannot be cut into stages"):
        cut(model)


def test_statistics_that_two_stages_would_keep_apart_are_refused():
    """Symptom: running means unlike the unsplit model's. Cause: one batch norm on two stages saw half of its calls."""
    norm = nn.BatchNorm1d(2)
    model = cut([nn.Sequential(nn.Linear(2, 2), norm), nn.Linear(2, 2), nn.Sequential(norm, nn.Linear(2, 2))])
    with pytest.raises(ModelError, match=r"0\.1 on stage 0 and 2\.0 on stage 1 are one module, which keeps running"):
        model.parameters_of(Partition((0, 2, 3)))
    assert len(model.parameters_of(Partition((0, 3)))[0]) == 8, "on one stage it is the unsplit model's"
    without = nn.BatchNorm1d(2, track_running_stats=False)
    shared = cut([without, nn.Sequential(without)])
    assert [len(tie.holders) for tie in shared.parameters_of(Partition((0, 1, 2)))[1]] == [2, 2]
