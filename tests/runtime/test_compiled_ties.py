"""Layers with a tied parameter may be compiled, or have a forward that was put in: a copy runs on its own parameter."""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType

import pytest
import torch
from tests.runtime.runs import mse
from tests.runtime.test_ties import data, tied
from torch import Tensor, nn

import penstock as ps
from penstock.testing import reference_gradients


def compiled_in_place(layer: nn.Module) -> nn.Module:
    layer.compile(backend="eager")
    return layer


def patched(layer: nn.Module) -> nn.Module:
    layer.forward = MethodType(type(layer).forward, layer)
    return layer


WRAPPED: dict[str, Callable[[nn.Module], nn.Module]] = {
    "compiled": lambda layer: torch.compile(layer, backend="eager"),
    "compiled in place": compiled_in_place,
    "patched": patched,
}


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch hides it, but not from threads
@pytest.mark.parametrize("how", WRAPPED)
def test_a_copy_of_a_wrapped_layer_runs_on_its_own_parameter(how: str) -> None:
    """Symptom: KeyError at the start, or a gradient that one holder did not add to. Cause: a shallow copy of what
    torch.compile or a patch has bound still runs the module that it was bound to."""
    _, grads = reference_gradients(tied(), mse, *data(), num_microbatches=4)
    model = nn.Sequential(*(WRAPPED[how](layer) for layer in tied()))
    before = set(model.state_dict())

    def rank(transport: ps.LoopbackTransport) -> dict[str, Tensor]:
        pipe = ps.Pipeline(model, mse, transport=transport, num_microbatches=4)
        pipe.step(*data())
        return {name.replace("_orig_mod.", ""): parameter.grad for name, parameter in pipe.named_parameters()}

    for found in ps.run_ranks(rank, 2, timeout_seconds=60):
        for name, grad in found.items():
            torch.testing.assert_close(grad, grads.get(name, grads["0.weight"]), rtol=1e-12, atol=1e-14, msg=name)
    assert set(model.state_dict()) == before, "the user's own model stays as it is"
