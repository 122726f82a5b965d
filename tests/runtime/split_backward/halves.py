"""One module's backward in two halves, beside the full one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from penstock.runtime.split_backward import DeferWeightGradients, Tape, accumulate
from penstock.runtime.split_backward.tape import Entry

Gradients = dict[str, Tensor | None]


class Halves(NamedTuple):
    """What the full backward left, what I left, and what was there after W; `deferred` are the ops I put off."""

    full: Gradients
    after_input_half: Gradients
    after_both: Gradients
    deferred: list[str]


def gradients(module: nn.Module, inputs: Tensor) -> Gradients:
    found = {name: parameter.grad for name, parameter in module.named_parameters()}
    found = {name: None if grad is None else grad.clone() for name, grad in found.items()}
    return found | {"(input)": inputs.grad}


def split(
    module: nn.Module, inputs: Tensor, *, backwards: int = 1, run: Callable[[nn.Module, Tensor], Tensor] | None = None
) -> Halves:
    """Runs `module` twice `backwards` times: with a full backward each, and with split ones."""
    run = run or (lambda module, inputs: module(inputs))
    twin = copy.deepcopy(module)
    full_inputs, half_inputs = (inputs.clone().requires_grad_(inputs.is_floating_point()) for _ in range(2))
    for _ in range(backwards):
        output = run(module, full_inputs)
        torch.manual_seed(1)
        grad = torch.randn_like(output)
        output.backward(grad)
    tape = Tape()
    mode = DeferWeightGradients(tape)
    for _ in range(backwards):
        with mode:
            output = run(twin, half_inputs)
        entries: list[Entry] = []
        tape.entries = entries
        with mode:
            torch.autograd.backward([torch.autograd.graph.get_gradient_edge(output)], [grad])
        tape.entries = None
        after_input_half = gradients(twin, half_inputs)
        names = {id(parameter): name for name, parameter in twin.named_parameters()}
        deferred = [names[id(entry.weights.weight.parameter)] for entry in entries]
        accumulate(entries)
    return Halves(gradients(module, full_inputs), after_input_half, gradients(twin, half_inputs), deferred)


def assert_bitwise(halves: Halves) -> None:
    assert halves.full.keys() == halves.after_both.keys()
    for name, expected in halves.full.items():
        found = halves.after_both[name]
        assert (found is None) == (expected is None), name
        assert expected is None or torch.equal(found, expected), name
