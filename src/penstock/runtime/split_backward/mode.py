"""The mode under which a stage's forward runs, and the autograd node that it gives to linear-like ops."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C._autograd import _top_saved_tensors_default_hooks
from torch.nn import Parameter
from torch.overrides import TorchFunctionMode

from penstock.runtime.split_backward import linear, lookups  # noqa: F401  # they fill the table
from penstock.runtime.split_backward.composites import COMPOSITES
from penstock.runtime.split_backward.rules import RULES, Operands
from penstock.runtime.split_backward.tape import Entry, Tape, Weights, accumulate

_PLAIN = frozenset({Tensor, Parameter})


class DeferWeightGradients(TorchFunctionMode):
    """While active, ops that have a rule leave their weight gradients on `tape` when their backward comes.

    It is active in a forward whose backward is split, and in I, where activation checkpointing runs a forward
    once more. Code that torch.compile traces keeps autograd's own nodes.
    """

    def __init__(self, tape: Tape) -> None:
        super().__init__()
        self._tape = tape

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        rule = RULES.get(func)
        if rule is not None and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            call = rule.parse(*args, **(kwargs or {}))
            if call is not None and type(call.input) in (Tensor, Parameter):
                parameter, swapped = _parameter_of(call.weight)
                if parameter is not None and _is_known(call.bias):
                    bias = call.bias if call.bias is not None and call.bias.requires_grad else None
                    return _defer(self._tape, Weights(rule, parameter, bias, swapped), call)
        composite = COMPOSITES.get(func)
        if composite is not None and _PLAIN.issuperset(types) and not torch.compiler.is_compiling():
            with self:
                return composite(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _parameter_of(weight: Tensor) -> tuple[Tensor | None, bool]:
    """Returns the parameter that an op's weight is, and whether the op takes it with its last dimensions swapped.

    A gradient that flows on, into a tensor that is computed or came from the stage before, cannot wait for W.
    """
    if type(weight) is Parameter:
        return (weight, False) if weight.is_leaf and weight.requires_grad else (None, False)
    base = weight._base
    if type(base) is not Parameter or not (base.is_leaf and base.requires_grad and weight.requires_grad):
        return None, False
    other = base.transpose(-2, -1)
    swapped = weight.shape == other.shape and weight.stride() == other.stride()
    return (base, True) if swapped and weight.dim() == base.dim() >= 2 and base.shape[-1] != 1 else (None, False)


def _is_known(bias: Tensor | None) -> bool:
    return bias is None or not bias.requires_grad or (type(bias) is Parameter and bias.is_leaf)


def _defer(tape: Tape, weights: Weights, given: Operands) -> Tensor:
    """Runs the op so that its weight gradients are left on the tape.

    Where the input needs a gradient, autograd's own node serves, on a weight that needs none; a hook on it takes
    the output gradient. Where the input needs none there would be no node, and under hooks on saved tensors
    (activation checkpointing, offloading) it is autograd that must keep the input. Both get a node of ours.
    """
    call = _detached(tape, weights, given)
    if not call.input.requires_grad or _top_saved_tensors_default_hooks(False) is not None:
        apply: Callable[..., Tensor] = DeferredOp.apply
        return apply(tape, weights, call, call.input, weights.weight, weights.bias)
    output = weights.rule.forward(call)
    if output.grad_fn is not None:
        output.grad_fn.register_prehook(_Taker(tape, weights, call))
    return output


def _detached(tape: Tape, weights: Weights, call: Operands) -> Operands:
    """Returns the operands as the op computes with them: weights without gradients, in autocast's precision."""
    input, weight, bias, options = call
    device = input.device.type
    if weights.rule.autocasts and device != "meta" and torch.is_autocast_enabled(device) and input.is_floating_point():
        dtype = torch.get_autocast_dtype(device)
        if input.dtype != torch.float64:
            cast = tape.cast(weights.weight, dtype)
            weight = cast.transpose(-2, -1) if weights.swapped else cast
            return Operands(input.to(dtype), weight, None if bias is None else tape.cast(bias, dtype), options)
    return Operands(input, weight.detach(), None if bias is None else bias.detach(), options)


class _Taker:
    """The hook of one op's node: puts what W needs on the tape when the output gradient comes by."""

    __slots__ = ("_call", "_tape", "_version", "_weights")

    def __init__(self, tape: Tape, weights: Weights, call: Operands) -> None:
        self._tape, self._weights, self._call = tape, weights, call
        self._version = call.input._version

    def __call__(self, grads: tuple[Tensor | None, ...]) -> None:
        grad = grads[0]
        if grad is None:
            return
        if self._call.input._version != self._version:
            raise RuntimeError(
                "an input of a linear layer was modified by an inplace operation before its backward, which needs it"
            )
        entry = Entry(self._weights, grad, self._call)
        if self._tape.entries is None:
            accumulate([entry])
        else:
            self._tape.entries.append(entry)


class DeferredOp(torch.autograd.Function):
    """A linear-like op whose backward gives the input gradient and leaves the weight gradients for W."""

    @staticmethod
    def forward(
        ctx: Any, tape: Tape, weights: Weights, call: Operands, input: Tensor, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        """Returns the op's output; `input`, `weight` and `bias` are there for autograd to see."""
        ctx.save_for_backward(input)
        ctx.set_materialize_grads(False)
        ctx.op = (tape, weights, call[1:])
        return weights.rule.forward(call)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        """Returns the input gradient; the output gradient goes on the tape."""
        if grad is None:
            return (None,) * 6
        (input,) = ctx.saved_tensors
        with torch._C.DisableTorchFunction():
            tape, weights, others = ctx.op
            call = Operands(input, *others)
            input_grad = weights.rule.input_grad(grad, call) if ctx.needs_input_grad[3] else None
            entry = Entry(weights, grad, call)
            if tape.entries is None:
                accumulate([entry])
            else:
                tape.entries.append(entry)
        return None, None, None, input_grad, None, None
