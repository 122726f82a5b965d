"""Which operations defer their weight gradient, and how each half of their backward is computed.

The halves call the same kernels on the same layouts as autograd's own formulas, so that a split backward gives
the bits of a full one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor


class Operands(NamedTuple):
    """One call of a linear-like operation, in its rule's terms.

    Attributes:
        input: what the weight is applied to.
        weight: the weight as the operation takes it: a parameter, or one with its last two dimensions swapped.
        bias: a parameter, a tensor without gradient, or None.
        options: everything else that the rule needs.
    """

    input: Tensor
    weight: Tensor
    bias: Tensor | None
    options: Any = None


@dataclass(frozen=True)
class Rule:
    """How one linear-like operation is split.

    Attributes:
        parse: the operation's own arguments -> operands; None where this call is better left to autograd.
        forward: operands -> the operation's output.
        input_grad: output gradient, operands -> gradient of the input.
        weight_grads: output gradient, operands, whether the bias needs one -> gradient of the weight, in the weight's
            shape, and of the bias.
        autocasts: whether autocast runs the operation in its lower precision.
    """

    parse: Callable[..., Operands | None]
    forward: Callable[[Operands], Tensor]
    input_grad: Callable[[Tensor, Operands], Tensor]
    weight_grads: Callable[[Tensor, Operands, bool], tuple[Tensor, Tensor | None]]
    autocasts: bool = True


RULES: dict[Callable[..., Any], Rule] = {}
"""The function as `__torch_function__` names it -> its rule."""


def register_weight_gradient(function: Callable[..., Any], rule: Rule) -> None:
    """Lets a split backward defer the weight gradient of `function`, a torch function or one that dispatches so."""
    RULES[function] = rule
