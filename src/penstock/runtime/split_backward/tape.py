"""What I leaves for W: per linear-like op its output gradient and its input."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from penstock.runtime.split_backward.rules import Operands, Rule


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

    def grads(self, grad: Tensor, call: Operands) -> list[tuple[Tensor, Tensor]]:
        """Returns (parameter, its gradient from this op), from the op's output gradient and operands."""
        weight_grad = self.rule.weight_grad(grad, call)
        found = [(self.weight, weight_grad.transpose(-2, -1) if self.swapped else weight_grad)]
        if self.bias is not None and self.rule.bias_grad is not None:
            found.append((self.bias, self.rule.bias_grad(grad, call)))
        return found


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


def accumulate(entries: list[Entry]) -> None:
    """Adds the weight gradients of `entries`, one microbatch's, to `.grad`, and empties the list as it goes.

    The uses of one parameter are summed first, then added, as autograd does it.
    """
    sums: dict[Tensor, Tensor] = {}
    entries.reverse()
    with torch.no_grad():
        while entries:
            entry = entries.pop()
            for parameter, grad in entry.weights.grads(entry.grad, entry.call):
                earlier = sums.get(parameter)
                sums[parameter] = grad if earlier is None else earlier + grad
        for parameter, grad in sums.items():
            if parameter.grad is not None:
                parameter.grad.add_(grad)  # converts where autocast computed in a lower precision
            elif grad.dtype == parameter.dtype and grad.stride() == parameter.stride():
                parameter.grad = grad
            else:
                parameter.grad = torch.empty_like(parameter, requires_grad=False).copy_(grad)
