"""What I leaves for W: per linear-like op its output gradient and its input."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from penstock.runtime.split_backward.rules import Operands, Rule

_GATHERED_NUMBERS = 1 << 18
"""How many gradients may wait to be added by one call."""


class Weights(NamedTuple):
    """Whose gradients an op owes.

    Attributes:
        rule: how they are computed.
        weight: the parameter behind the op's weight.
        bias: the bias where it is a parameter that needs a gradient, else None.
        swapped: the op took the weight with its last two dimensions swapped.
    """

    rule: Rule
    weight: Tensor
    bias: Tensor | None
    swapped: bool


class Entry(NamedTuple):
    """One op whose weight gradients are still to come: whose they are, the output gradient, the operands."""

    weights: Weights
    grad: Tensor
    call: Operands


class Tape:
    """The entries of the I under way, and the weights that autocast has cast in this step.

    Attributes:
        entries: filled by the I under way; None outside of one, when ops give their weight gradients at once.
        casts: (parameter, dtype) -> its copy in the lower precision.
    """

    def __init__(self) -> None:
        self.entries: list[Entry] | None = None
        self.casts: dict[tuple[Tensor, torch.dtype], Tensor] = {}

    def cast(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """Returns the weight in `dtype`, converted once a step."""
        if weight.dtype == dtype:
            return weight
        key = (weight, dtype)
        if key not in self.casts:
            self.casts[key] = weight.detach().to(dtype)
        return self.casts[key]


class _Sums:
    """Adds gradients to `.grad`: those of one parameter's uses are summed first, as autograd does it.

    Small ones are gathered and added by one call: for narrow layers a call costs more than the addition.
    """

    def __init__(self, uses: dict[int, int]) -> None:
        self._uses = uses
        self._partial: dict[int, Tensor] = {}
        self._sources: list[Tensor] = []
        self._targets: list[Tensor] = []
        self._gathered = 0

    def add(self, parameter: Tensor, grad: Tensor) -> None:
        key = id(parameter)
        if self._uses[key] > 1 or key in self._partial:
            self._uses[key] -= 1
            earlier = self._partial.pop(key, None)
            grad = grad if earlier is None else earlier + grad
            if self._uses[key]:
                self._partial[key] = grad
                return
        target = parameter.grad
        if target is None:
            parameter.grad = _as_laid_out(parameter, grad)
        elif target.dtype == grad.dtype:
            self._targets.append(target)
            self._sources.append(grad)
            self._gathered += grad.numel()
            if self._gathered > _GATHERED_NUMBERS:
                self.flush()
        else:
            target.add_(grad)  # autocast computed in a lower precision

    def flush(self) -> None:
        if self._targets:
            torch._foreach_add_(self._targets, self._sources)
        self._targets, self._sources, self._gathered = [], [], 0


def accumulate(entries: list[Entry]) -> None:
    """Adds the weight gradients of `entries`, one microbatch's, to `.grad`, and empties the list as it goes."""
    sums = _Sums(_uses(entries))
    entries.reverse()
    with torch.no_grad():
        while entries:
            (rule, weight, bias, swapped), grad, call = entries.pop()
            weight_grad, bias_grad = rule.weight_grads(grad, call, bias is not None)
            sums.add(weight, weight_grad.transpose(-2, -1) if swapped else weight_grad)
            if bias is not None and bias_grad is not None:
                sums.add(bias, bias_grad)
        sums.flush()


def _uses(entries: list[Entry]) -> dict[int, int]:
    """Returns how often each parameter, by its id, is used."""
    uses: dict[int, int] = {}
    for (_, weight, bias, _), _, _ in entries:
        uses[id(weight)] = uses.get(id(weight), 0) + 1
        if bias is not None:
            uses[id(bias)] = uses.get(id(bias), 0) + 1
    return uses


def _as_laid_out(parameter: Tensor, grad: Tensor) -> Tensor:
    """Returns the first gradient of a parameter in its type and layout, as autograd leaves it."""
    if grad.dtype == parameter.dtype and grad.stride() == parameter.stride():
        return grad
    return torch.empty_like(parameter, requires_grad=False).copy_(grad)
