"""Functions of torch that are written in Python out of ops with rules: a mode is to meet these ops.

A mode meets `multi_head_attention_forward` as one call, and what runs inside of it runs without the mode. So its
weights would get their gradients in I. Here the same code runs without that first look for modes, and with a
`linear` of the mode's own; everything else in it runs as if there were no mode, which costs nothing:

    mode ── multi_head_attention_forward ──> its code ── linear (in) ──> mode
                                                      ── fused attention
                                                      ── linear (out) ──> mode
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType, SimpleNamespace
from typing import Any

from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules import activation

_PARTS = ("_in_projection_packed", "_in_projection")
"""Functions of torch.nn.functional that it calls, and that call `linear`."""


def composites(linear: Callable[..., Tensor]) -> dict[Callable[..., Any], Callable[..., Any]]:
    """Returns function, as `__torch_function__` names it -> its twin, which takes `linear` for its products.

    That of `nn.MultiheadAttention.forward` is among them, which no mode meets: it calls the twin of its function.
    """
    names = vars(functional) | {"has_torch_function": _is_plain, "linear": linear}
    names |= {name: _twin(names[name], names) for name in _PARTS}
    attention = _twin(functional.multi_head_attention_forward, names)
    functions = SimpleNamespace(**vars(functional) | {"multi_head_attention_forward": attention})
    module = nn.MultiheadAttention.forward
    return {
        functional.multi_head_attention_forward: attention,
        module: _twin(module, vars(activation) | {"F": functions}),
    }


def _twin(function: Any, names: dict[str, Any]) -> Callable[..., Any]:
    twin = FunctionType(function.__code__, names, function.__name__, function.__defaults__, function.__closure__)
    twin.__kwdefaults__ = function.__kwdefaults__
    return twin


def _is_plain(_: object) -> bool:
    """Returns False: nobody wants the function as a whole."""
    return False
