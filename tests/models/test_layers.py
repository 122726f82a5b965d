"""A list of layers or a Sequential as named layers."""

from collections import OrderedDict

import pytest
from torch import nn

from penstock.errors import ModelError
from penstock.models import from_layers


def test_layers_have_the_names_of_the_sequential_or_their_number():
    layers = [nn.Linear(1, 1), nn.Tanh(), nn.Sequential(nn.ReLU())]
    assert list(from_layers(layers).layers) == ["0", "1", "2"]
    assert list(from_layers(tuple(layers)).layers.values()) == layers
    assert list(from_layers(nn.ModuleList(layers)).layers) == ["0", "1", "2"]
    named = nn.Sequential(OrderedDict(zip(["in", "act", "out"], layers, strict=True)))
    assert list(from_layers(named).layers.items()) == [("in", layers[0]), ("act", layers[1]), ("out", layers[2])]


def test_the_same_module_twice_is_refused_though_a_sequential_allows_it():
    layer = nn.Linear(1, 1)
    with pytest.raises(ModelError, match="layers 0 and 1 are the same module"):
        from_layers(nn.Sequential(layer, layer))


@pytest.mark.parametrize("wrong", [None, "Linear", nn.Linear])
def test_what_is_no_module_is_named_with_its_type(wrong: object):
    with pytest.raises(ModelError, match=rf"layer 1 is a {type(wrong).__name__}"):
        from_layers([nn.Linear(1, 1), wrong])


def test_a_sequential_that_is_more_than_its_layers_is_refused():
    """Symptom: gradients of another model. Cause: only the layers were run, not the forward around them."""

    class Residual(nn.Sequential):
        def forward(self, x):
            return x + super().forward(x)

    class Plain(nn.Sequential):
        pass

    with pytest.raises(ModelError, match="Residual has a forward of its own"):
        from_layers(Residual(nn.Linear(1, 1)))
    assert len(from_layers(Plain(nn.Linear(1, 1))).layers) == 1
    scaled = nn.Sequential(nn.Linear(1, 1))
    scaled.register_buffer("scale", None)
    with pytest.raises(ModelError, match="holds scale"):
        from_layers(scaled)
