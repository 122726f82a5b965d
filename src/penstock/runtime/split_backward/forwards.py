"""Where a stage's forward is watched for ops that owe weight gradients: at first everywhere, then where weights are.

A mode meets every call of torch, and each costs some microseconds: for narrow layers as much as the layers
themselves. Most weights belong to a module whose forward uses them, and most of these are `nn.Linear`:

    stage ── its own code, norms, attention ────────────── no mode
          ── nn.Linear, nn.MultiheadAttention ── their products go to the tape, without a mode
          ── another module that holds weights ── a mode over its forward alone

In the first forward a second mode is over everything. If it meets a weight that none of these has met, e.g. a head
that borrows the embedding's, it stays, and so it does where torch.compile has a hand in the stage.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from penstock.runtime.split_backward.mode import PLAIN, DeferWeightGradients
from penstock.runtime.split_backward.tape import Tape


class DeferredForward:
    """While entered, forwards of `stage` leave their weight gradients on `tape` when their backward comes.

    Args:
        stage: a module; those in it whose forward is torch's class's own get another one as long as this is entered.
        tape: as for `DeferWeightGradients`.
    """

    def __init__(self, stage: nn.Module, tape: Tape) -> None:
        self._stage = stage
        self._everywhere, self._inside = DeferWeightGradients(tape), DeferWeightGradients(tape)
        self._forwards: list[tuple[dict[str, Any], _Forward]] | None = None
        self._looks_everywhere, self._compiled = True, False

    def __enter__(self) -> None:
        if self._forwards is None:
            self._compiled = any(map(_may_be_compiled, self._stage.modules()))
            self._forwards = [] if self._compiled else _forwards(self._stage, self._inside)
        for attributes, forward in self._forwards:
            attributes["forward"] = forward
        if self._looks_everywhere:
            self._everywhere.__enter__()  # type: ignore[no-untyped-call]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._looks_everywhere:
            self._everywhere.__exit__(kind, error, trace)  # type: ignore[no-untyped-call]
        for attributes, _ in self._forwards or ():
            attributes.pop("forward", None)
        # Code that torch.compile has traced under a mode is traced anew without it.
        self._looks_everywhere = self._everywhere.met or self._compiled


class _Forward:
    """A module's forward whose weight gradients go to the tape; a copy of the module gets its class's forward."""

    def __init__(self, module: nn.Module, mode: DeferWeightGradients) -> None:
        self._module, self._mode = module, mode

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self._mode:
            return type(self._module).forward(self._module, *args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., Any]:
        module = copy.deepcopy(self._module, memo)
        return partial(type(module).forward, module)


class _LinearForward(_Forward):
    """That of `nn.Linear`, which needs no mode to be met."""

    def __call__(self, input: Tensor) -> Any:
        module = self._module
        return self._mode.run(functional.linear, (input, module.weight, module.bias), {})


class _AttentionForward(_Forward):
    """That of `nn.MultiheadAttention`, whose code is known: its products go to the tape, the rest needs no mode."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        given = (*args, *kwargs.values())
        if torch.compiler.is_compiling() or any(isinstance(each, Tensor) and type(each) not in PLAIN for each in given):
            return super().__call__(*args, **kwargs)
        return self._mode.composites[nn.MultiheadAttention.forward](self._module, *args, **kwargs)


_OWN: dict[Callable[..., Any], type[_Forward]] = {
    nn.Linear.forward: _LinearForward,
    nn.MultiheadAttention.forward: _AttentionForward,
}
"""The forward of a class of torch's -> what takes its place; any other is run under a mode."""


def _forwards(stage: nn.Module, mode: DeferWeightGradients) -> list[tuple[dict[str, Any], _Forward]]:
    """Returns the attributes of each module that holds weights, and its forward."""
    return [
        (vars(module), _OWN.get(type(module).forward, _Forward)(module, mode))
        for module in stage.modules()
        if any(weight is not None and weight.dim() > 1 for weight in module._parameters.values())
    ]


def _may_be_compiled(module: nn.Module) -> bool:
    """Returns whether torch.compile has a hand in `module`: to change what it has traced makes it trace again."""
    return module._compiled_call_impl is not None or "_orig_mod" in module._modules or "forward" in vars(module)
