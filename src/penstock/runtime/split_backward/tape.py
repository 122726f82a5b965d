"""What I leaves for W: per linear-like op its output gradient and its input."""

from __future__ import annotations

import weakref
from typing import NamedTuple

import torch
from torch import Tensor

from penstock.runtime.split_backward.rules import Operands, Rule

_GATHERED_NUMBERS = 1 << 18
"""How many gradients may wait to be added by one call."""


class Piece(NamedTuple):
    """Where a piece of a parameter lies in it: sizes, strides, and how many numbers come before it."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    def of(self, whole: Tensor) -> Tensor:
        """Returns this piece of `whole`, which is laid out as the parameter."""
        return whole.as_strided(self.size, self.stride, whole.storage_offset() + self.offset)


class Owed(NamedTuple):
    """A parameter that is owed a gradient, or a piece of one; None for all of it."""

    parameter: Tensor
    piece: Piece | None = None

    def of(self, whole: Tensor) -> Tensor:
        """Returns as much of `whole`, which is laid out as the parameter."""
        return whole if self.piece is None else self.piece.of(whole)


class Weights(NamedTuple):
    """Whose gradients an op owes.

    Attributes:
        rule: how they are computed.
        weight: what is behind the op's weight.
        bias: what is behind its bias where that needs a gradient, else None.
        swapped: the op took the weight with its last two dimensions swapped.
    """

    rule: Rule
    weight: Owed
    bias: Owed | None
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
        self._last: tuple[weakref.ref[Tensor], int, weakref.ref[Tensor]] | None = None

    def cast(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """Returns the weight in `dtype` without its gradient, converted once a step."""
        if weight.dtype == dtype:
            return weight.detach()
        key = (weight, dtype)
        if key not in self.casts:
            self.casts[key] = weight.detach().to(dtype)
        return self.casts[key]

    def shared(self, input: Tensor, cast: Tensor) -> Tensor:
        """Returns `cast`, made of `input`, or what the op before made of the same: layers that read one keep one for W.

        Each computes with a cast of its own all the same, since autograd adds up their gradients behind it.
        """
        if self._last is not None:
            before, version, made = self._last[0](), self._last[1], self._last[2]()
            if before is input and version == input._version and made is not None and made.dtype == cast.dtype:
                return made
        self._last = (weakref.ref(input), input._version, weakref.ref(cast))
        return cast


_Key = tuple[int, Piece | None]
"""A parameter's id, and which piece of it."""


class _Sums:
    """Adds gradients to `.grad`: those of one parameter's uses are summed first, as autograd does it.

    Small ones are gathered and added by one call: for narrow layers a call costs more than the addition.
    """

    def __init__(self, uses: dict[_Key, int]) -> None:
        self._uses = uses
        self._partial: dict[_Key, Tensor] = {}
        self._sources: list[Tensor] = []
        self._targets: list[Tensor] = []
        self._gathered = 0

    def add(self, owed: Owed, grad: Tensor) -> None:
        parameter, piece = owed
        key = (id(parameter), piece)
        if self._uses[key] > 1 or key in self._partial:
            self._uses[key] -= 1
            earlier = self._partial.pop(key, None)
            grad = grad if earlier is None else earlier + grad
            if self._uses[key]:
                self._partial[key] = grad
                return
        target = parameter.grad
        if piece is not None:
            if target is None:
                target = parameter.grad = torch.zeros_like(parameter, requires_grad=False)
            elif not target.is_contiguous():  # as the parameter is
                target = parameter.grad = target.contiguous()
            target = piece.of(target)
        if target is None:
            parameter.grad = _as_laid_out(parameter, grad)
        elif target.dtype == grad.dtype and type(target) is Tensor:
            self._targets.append(target)
            self._sources.append(grad)
            self._gathered += grad.numel()
            if self._gathered > _GATHERED_NUMBERS:
                self.flush()
        else:
            target.add_(grad)  # autocast computed in a lower precision, or a DTensor

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


def _uses(entries: list[Entry]) -> dict[_Key, int]:
    """Returns how often each parameter, or piece of one, is used."""
    uses: dict[_Key, int] = {}
    for (_, weight, bias, _), _, _ in entries:
        for owed in (weight,) if bias is None else (weight, bias):
            key = (id(owed.parameter), owed.piece)
            uses[key] = uses.get(key, 0) + 1
    return uses


def _as_laid_out(parameter: Tensor, grad: Tensor) -> Tensor:
    """Returns the first gradient of a parameter in its type and layout, as autograd leaves it."""
    if grad.dtype == parameter.dtype and grad.stride() == parameter.stride():
        return grad
    return torch.empty_like(parameter, requires_grad=False).copy_(grad)
