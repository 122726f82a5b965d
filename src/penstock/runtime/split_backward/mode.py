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
from penstock.runtime.split_backward.rules import RULES, Operands, Rule
from penstock.runtime.split_backward.tape import Entry, Piece, Tape, Weights, accumulate

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
                weights = _weights_of(rule, call)
                if weights is not None:
                    return _defer(self._tape, weights, call)
        composite = COMPOSITES.get(func)
        if composite is not None and _PLAIN.issuperset(types) and not torch.compiler.is_compiling():
            with self:
                return composite(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _weights_of(rule: Rule, call: Operands) -> Weights | None:
    """Returns whose gradients a call owes; None where one of them flows on, into what was computed or sent here."""
    weight, bias = call.weight, call.bias
    if type(weight) is Parameter:
        if not (weight.is_leaf and weight.requires_grad):
            return None
        parameter, swapped, piece = weight, False, None
    else:
        base = weight._base
        if type(base) is not Parameter or not (base.is_leaf and base.requires_grad and weight.requires_grad):
            return None
        parameter, swapped = base, _is_swapped(weight, base)
        piece = None if swapped else _piece_of(weight, base)
        if not swapped and piece is None:
            return None
    if bias is None or not bias.requires_grad:
        return Weights(rule, parameter, None, swapped, piece)
    if type(bias) is Parameter and bias.is_leaf:
        return Weights(rule, parameter, bias, swapped, piece)
    whole = bias._base
    if type(whole) is not Parameter or not whole.is_leaf or (rest := _piece_of(bias, whole)) is None:
        return None
    return Weights(rule, parameter, whole, swapped, piece, rest)


def _is_swapped(weight: Tensor, base: Parameter) -> bool:
    other = base.transpose(-2, -1) if base.dim() >= 2 else base
    swapped = weight.shape == other.shape and weight.stride() == other.stride()
    return swapped and weight.dim() == base.dim() >= 2 and base.shape[-1] != 1


def _piece_of(view: Tensor, base: Parameter) -> Piece | None:
    """Returns where `view` lies in `base`, as after a split, a chunk or an index; None where it meets numbers twice.

    A view that was taken without gradients, or whose numbers are read as others, has a gradient of its own.
    """
    if view.grad_fn is None or view.dtype != base.dtype or view.is_complex() or not base.is_contiguous():
        return None
    reach = 1
    for stride, size in sorted(zip(view.stride(), view.shape, strict=True)):
        if size > 1 and stride < reach:
            return None
        reach = max(reach, stride * size)
    return Piece(tuple(view.shape), view.stride(), int(view.storage_offset() - base.storage_offset()))


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
            weight = cast.transpose(-2, -1) if weights.swapped else weights.piece.of(cast) if weights.piece else cast
            return Operands(input.to(dtype), weight, _cast_bias(tape, weights, bias, dtype), options)
    return Operands(input, weight.detach(), None if bias is None else bias.detach(), options)


def _cast_bias(tape: Tape, weights: Weights, bias: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    if bias is None or weights.bias is None or weights.bias_piece is None:
        return None if bias is None else tape.cast(bias, dtype)
    return weights.bias_piece.of(tape.cast(weights.bias, dtype))


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
