"""Hooks on parameters fire once a step, on the gradient of the whole step, whatever the schedule.

Autograd fires them for every microbatch, and a split backward may have two parts a microbatch. An optimizer that
steps in a hook would then see a part of the gradient. So the hooks are taken off for the step and fired after it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import nn

Hooks = dict[int, Callable[..., Any]]


class _Held(NamedTuple):
    """Hooks of one parameter, and its gradient from before the step."""

    parameter: nn.Parameter
    on_grad: Hooks
    after_accumulation: Hooks
    earlier: torch.Tensor | None


class HeldHooks:
    """The hooks of a rank's parameters during one step.

    Those of `register_hook` fire on the gradient, those of `register_post_accumulate_grad_hook` once it is in `.grad`.
    """

    def __init__(self) -> None:
        self._held: list[_Held] = []

    def take(self, parameters: Iterable[nn.Parameter]) -> None:
        """Takes the hooks off, and the gradients of earlier steps with them."""
        for parameter in parameters:
            if parameter._backward_hooks or parameter._post_accumulate_grad_hooks:
                on_grad, after = map(_emptied, _tables(parameter))
                self._held.append(_Held(parameter, on_grad, after, parameter.grad))
                parameter.grad = None

    def put_back(self) -> None:
        """Puts hooks and earlier gradients back without firing, after a step that did not finish."""
        for held in self._held:
            _put_back(held)
            held.parameter.grad = held.earlier
        self._held.clear()

    def fire_for(self, parameters: Iterable[nn.Parameter]) -> None:
        """Puts the hooks of these parameters back and fires them, before an optimizer step of the program."""
        wanted = set(parameters) if self._held else set()
        ready = [held for held in self._held if held.parameter in wanted]
        self._held = [held for held in self._held if held.parameter not in wanted]
        for held in ready:
            _put_back(held)
            _fire(held)

    def fire(self) -> None:
        """Puts the hooks back and fires them on the step's gradients, which are then added to those of earlier steps.

        A hook may change its gradient by what it returns, as in autograd. A parameter without gradient is left out.
        """
        ready, self._held = self._held, []
        for held in ready:
            _put_back(held)
        for held in ready:
            _fire(held)


def _tables(parameter: nn.Parameter) -> tuple[Hooks | None, Hooks | None]:
    """Returns torch's own tables of a parameter's hooks, which autograd reads."""
    return parameter._backward_hooks, parameter._post_accumulate_grad_hooks


def _emptied(table: Hooks | None) -> Hooks:
    hooks = dict(table or {})
    if table:
        table.clear()
    return hooks


def _put_back(held: _Held) -> None:
    for table, hooks in zip(_tables(held.parameter), (held.on_grad, held.after_accumulation), strict=True):
        if table is not None:
            added_meanwhile = _emptied(table)
            table.update(hooks | added_meanwhile)


def _fire(held: _Held) -> None:
    parameter, grad = held.parameter, held.parameter.grad
    if grad is None:
        parameter.grad = held.earlier
        return
    with torch.no_grad():
        for hook in list(held.on_grad.values()):
            changed = hook(grad)
            grad = grad if changed is None else changed
        parameter.grad = grad if held.earlier is None else held.earlier.add_(grad)
        for hook in list(held.after_accumulation.values()):
            hook(parameter)
