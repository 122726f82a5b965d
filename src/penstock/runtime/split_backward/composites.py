"""Functions of torch that are written in Python out of ops with rules: a mode is to meet these ops.

A mode meets `multi_head_attention_forward` as one call, and what runs inside of it runs without the mode. So its
weights would get their gradients in I. Here the same code runs without that first look for modes:

    mode ── multi_head_attention_forward ──> its code ── linear (in), bmm or fused attention, linear (out) ──> mode
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any

from torch.nn import functional


def opened(function: Any) -> Callable[..., Any]:
    """Returns a twin of `function`, one of torch.nn.functional, that does not hand itself to modes as a whole."""
    names = {**function.__globals__, "has_torch_function": _is_plain}
    twin = FunctionType(function.__code__, names, function.__name__, function.__defaults__, function.__closure__)
    twin.__kwdefaults__ = function.__kwdefaults__
    return twin


def _is_plain(_: object) -> bool:
    """Returns False: nobody wants the function as a whole."""
    return False


COMPOSITES: dict[Callable[..., Any], Callable[..., Any]] = {
    function: opened(function) for function in (functional.multi_head_attention_forward,)
}
"""The function as `__torch_function__` names it -> its twin."""
