"""Rules of convolutions and embeddings."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from penstock.runtime.split_backward.rules import RULES, Operands, Rule

Sizes = int | tuple[int, ...] | list[int]


class _Convolution(NamedTuple):
    """The arguments of aten::convolution behind the bias."""

    stride: list[int]
    padding: list[int]
    dilation: list[int]
    transposed: bool
    output_padding: list[int]
    groups: int


def _each(size: Sizes, dimensions: int) -> list[int]:
    sizes = [size] if isinstance(size, int) else list(size)
    return sizes * dimensions if len(sizes) == 1 else sizes


def _convolution(  # noqa: PLR0913  # the arguments of torch's function
    dimensions: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sizes = 1,
    padding: Sizes | str = 0,
    dilation: Sizes = 1,
    groups: int = 1,
) -> Operands | None:
    if isinstance(padding, str) or input.dim() != dimensions + 2:
        return None
    strides, paddings, dilations = (_each(size, dimensions) for size in (stride, padding, dilation))
    none = [0] * dimensions
    return Operands(input, weight, bias, _Convolution(strides, paddings, dilations, False, none, groups))


def _transposed(  # noqa: PLR0913
    dimensions: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sizes = 1,
    padding: Sizes = 0,
    output_padding: Sizes = 0,
    groups: int = 1,
    dilation: Sizes = 1,
) -> Operands | None:
    if input.dim() != dimensions + 2:
        return None
    strides, paddings, dilations, outputs = (
        _each(size, dimensions) for size in (stride, padding, dilation, output_padding)
    )
    return Operands(input, weight, bias, _Convolution(strides, paddings, dilations, True, outputs, groups))


def _halves(grad: Tensor, call: Operands, wanted: list[bool]) -> tuple[Tensor, Tensor, Tensor]:
    sizes = None if call.bias is None else list(call.bias.shape)
    halves: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
        grad, call.input, call.weight, sizes, *call.options, wanted
    )
    return halves


def _convolution_rule(parse: Callable[..., Operands | None]) -> Rule:
    return Rule(
        parse,
        lambda call: torch.convolution(call.input, call.weight, call.bias, *call.options),
        lambda grad, call: _halves(grad, call, [True, False, False])[0],
        lambda grad, call, with_bias: _halves(grad, call, [False, True, with_bias])[1:],
    )


def _embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Operands | None:
    if max_norm is not None or sparse:
        return None
    index = -1 if padding_idx is None else padding_idx % len(weight)
    return Operands(input, weight, None, (index, scale_grad_by_freq))


def _no_input_grad(grad: Tensor, call: Operands) -> Tensor:
    raise NotImplementedError("an embedding's indices have no gradient")


def _embedding_weight_grad(grad: Tensor, call: Operands, _: bool) -> tuple[Tensor, None]:
    weight: Tensor = torch.ops.aten.embedding_dense_backward(grad, call.input, len(call.weight), *call.options)
    return weight, None


EMBEDDING = Rule(
    _embedding,
    lambda call: torch.embedding(call.weight, call.input, *call.options),
    _no_input_grad,
    _embedding_weight_grad,
    autocasts=False,
)

RULES[functional.embedding] = EMBEDDING
for _dimensions, _plain, _back in (
    (1, functional.conv1d, functional.conv_transpose1d),
    (2, functional.conv2d, functional.conv_transpose2d),
    (3, functional.conv3d, functional.conv_transpose3d),
):
    RULES[_plain] = _convolution_rule(partial(_convolution, _dimensions))
    RULES[_back] = _convolution_rule(partial(_transposed, _dimensions))
