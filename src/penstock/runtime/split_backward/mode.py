"""The mode under which a stage's forward runs, and the autograd node that it gives to linear-like ops."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C._autograd import _top_saved_tensors_default_hooks
from torch.nn import Parameter, functional
from torch.overrides import TorchFunctionMode

from penstock.runtime.split_backward import linear, lookups  # noqa: F401  # they fill the table
from penstock.runtime.split_backward.composites import composites
from penstock.runtime.split_backward.rules import RULES, Operands, Rule
from penstock.runtime.split_backward.tape import Entry, Owed, Piece, Tape, Weights, accumulate
from penstock.runtime.spread import is_spread

PLAIN = frozenset({Tensor, Parameter})


class DeferWeightGradients(TorchFunctionMode):
    """While active, ops that have a rule leave their weight gradients on `tape` when their backward comes.

    It is active in a forward whose backward is split, and in I, where activation checkpointing runs a forward
    once more. Code that torch.compile traces keeps autograd's own nodes.

    Attributes:
        met: whether an op that owes weight gradients has come by.
        composites: function -> its twin whose products leave their weight gradients, too.
    """

    def __init__(self, tape: Tape) -> None:
        super().__init__()
        self._tape = tape
        self.composites = composites(lambda *operands: self.run(functional.linear, operands, {}))
        self.met = False

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func in RULES:
            return self.run(func, args, kwargs or {})
        composite = self.composites.get(func)
        if composite is not None and PLAIN.issuperset(types) and not torch.compiler.is_compiling():
            return composite(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def run(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Returns what `func`, which has a rule, gives; its weight gradients go to the tape where it owes any."""
        if not torch.compiler.is_compiling():
            rule = RULES[func]
            call = rule.parse(*args, **kwargs)
            if call is not None and (type(call.input) in PLAIN or is_spread(call.input)):
                weights = _weights_of(rule, call)
                if weights is not None:
                    self.met = True
                    if torch.is_grad_enabled():
                        return _defer(self._tape, weights, call)
        return func(*args, **kwargs)


def _weights_of(rule: Rule, call: Operands) -> Weights | None:
    """Returns whose gradients a call owes; None where one of them flows on, into what was computed or sent here."""
    swapped = _swapped(call.weight)
    weight = _owed(call.weight if swapped is None else swapped)
    if weight is None:
        return None
    if call.bias is None or not call.bias.requires_grad:
        return Weights(rule, weight, None, swapped is not None)
    bias = _owed(call.bias)
    return None if bias is None else Weights(rule, weight, bias, swapped is not None)


def _owed(tensor: Tensor) -> Owed | None:
    """Returns what of a parameter `tensor` is; None where its gradient flows on, or where it needs none."""
    if type(tensor) is Parameter or is_spread(tensor):
        return Owed(tensor) if tensor.is_leaf and tensor.requires_grad else None
    base = tensor._base
    if type(base) is not Parameter or not (base.is_leaf and base.requires_grad and tensor.requires_grad):
        return None
    piece = _piece_of(tensor, base)
    return None if piece is None else Owed(base, piece)


def _swapped(weight: Tensor) -> Parameter | None:
    """Returns the parameter of which `weight` is all, with the last two dimensions swapped; None if it is not so."""
    base = None if type(weight) is Parameter else weight._base
    if type(base) is not Parameter or not weight.requires_grad or not weight.dim() == base.dim() >= 2:
        return None
    other = base.transpose(-2, -1)
    alike = weight.shape == other.shape and weight.stride() == other.stride() and base.shape[-1] != 1
    return base if alike else None


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
    call = kept = _detached(tape, weights, given)
    if call.input is not given.input:
        kept = call._replace(input=tape.shared(given.input, call.input))
    if not call.input.requires_grad or _top_saved_tensors_default_hooks(False) is not None:
        apply: Callable[..., Tensor] = DeferredOp.apply
        bias = None if weights.bias is None else weights.bias.parameter
        return apply(tape, weights, kept, call.input, weights.weight.parameter, bias)
    output = weights.rule.forward(call)
    if output.grad_fn is not None:
        output.grad_fn.register_prehook(_Taker(tape, weights, kept))
    return output


def _detached(tape: Tape, weights: Weights, call: Operands) -> Operands:
    """Returns the operands as the op computes with them: weights without gradients, in autocast's precision."""
    input, weight, bias, options = call
    if weights.rule.autocasts and torch._C._is_any_autocast_enabled() and _is_cast(input):
        dtype = torch.get_autocast_dtype(input.device.type)
        weight = weights.weight.of(tape.cast(weights.weight.parameter, dtype))
        if weights.swapped:
            weight = weight.transpose(-2, -1)
        if weights.bias is not None:
            bias = weights.bias.of(tape.cast(weights.bias.parameter, dtype))
        elif bias is not None:
            bias = tape.cast(bias, dtype)
        return Operands(input.to(dtype), weight, bias, options)
    return Operands(input, weight.detach(), None if bias is None else bias.detach(), options)


def _is_cast(input: Tensor) -> bool:
    """Returns whether the autocast in force is of the input's device, and takes numbers like these."""
    device = input.device.type
    autocasts = device != "meta" and torch.is_autocast_enabled(device)
    return autocasts and input.is_floating_point() and input.dtype != torch.float64


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
        ctx.save_for_backward(call.input)
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
