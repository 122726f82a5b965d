"""Rules of the products: linear layers, Hugging Face's Conv1D, matrix products, batched and grouped experts."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from penstock.runtime.split_backward.rules import RULES, Operands, Rule


def _rows(tensor: Tensor) -> Tensor:
    return tensor if tensor.dim() == 2 else tensor.reshape(-1, tensor.shape[-1])


def _linear_input_grad(grad: Tensor, call: Operands) -> Tensor:
    rows = _rows(grad).mm(call.weight)
    return rows if grad.dim() == 2 else rows.view(call.input.shape)


def _linear_weight_grads(grad: Tensor, call: Operands, with_bias: bool) -> tuple[Tensor, Tensor | None]:
    grads, rows = _rows(grad), _rows(call.input)
    weight = grads.t().mm(rows)
    if not with_bias:
        return weight, None
    if call.input.is_contiguous():
        return weight, grads.sum(0)
    # A strided input takes another way through torch, which adds the bias after the product.
    return weight, grad.sum(tuple(range(grad.dim() - 1)))


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Operands | None:
    return Operands(input, weight, bias) if input.dim() >= 2 and weight.dim() == 2 else None


def _addmm(
    input: Tensor, mat1: Tensor, mat2: Tensor, *, beta: float = 1, alpha: float = 1, out: Tensor | None = None
) -> Operands | None:
    plain = beta == 1 and alpha == 1 and out is None and input.dim() == 1 and len(input) == mat2.shape[1]
    return Operands(mat1, mat2, input) if plain else None


def _product(input: Tensor, other: Tensor, *, out: Tensor | None = None) -> Operands | None:
    if out is not None or input.dim() < 2:
        return None
    if other.dim() == 2 or (other.dim() == input.dim() == 3 and len(input) == len(other)):
        return Operands(input, other, None)
    return None


def _product_input_grad(grad: Tensor, call: Operands) -> Tensor:
    if call.weight.dim() == 3:
        return grad.bmm(call.weight.transpose(1, 2))
    rows = _rows(grad).mm(call.weight.t())
    return rows if grad.dim() == 2 else rows.view(call.input.shape)


def _product_weight_grad(grad: Tensor, call: Operands) -> Tensor:
    if call.weight.dim() == 3:
        return call.input.transpose(1, 2).bmm(grad)
    rows, grads = _rows(call.input), _rows(grad)
    columns_first = call.weight.stride(0) == 1 and call.weight.stride(1) == call.weight.shape[0]
    return grads.t().mm(rows).t() if columns_first else rows.t().mm(grads)


def _grouped(
    input: Tensor, mat2: Tensor, *, offs: Tensor | None = None, bias: None = None, out_dtype: None = None
) -> Operands | None:
    plain = input.dim() == 2 and mat2.dim() == 3 and offs is not None and bias is None and out_dtype is None
    return Operands(input, mat2, None, offs) if plain else None


def _grouped_product(input: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    return functional.grouped_mm(input, weight, offs=ends)


LINEAR = Rule(
    _linear,
    lambda call: functional.linear(*call[:3]),
    _linear_input_grad,
    _linear_weight_grads,
)
ADDMM = Rule(
    _addmm,
    lambda call: torch.addmm(call.bias, call.input, call.weight),  # type: ignore[arg-type]
    _product_input_grad,
    lambda grad, call, with_bias: (_product_weight_grad(grad, call), grad.sum(0) if with_bias else None),
)
PRODUCT = Rule(
    _product,
    lambda call: torch.matmul(call.input, call.weight),
    _product_input_grad,
    lambda grad, call, _: (_product_weight_grad(grad, call), None),
)
GROUPED = Rule(
    _grouped,
    lambda call: _grouped_product(call.input, call.weight, call.options),
    lambda grad, call: _grouped_product(grad, call.weight.transpose(-2, -1), call.options),
    lambda grad, call, _: (_grouped_product(call.input.t(), grad, call.options), None),
)

RULES[functional.linear] = LINEAR
RULES.update(dict.fromkeys((torch.addmm, Tensor.addmm), ADDMM))
RULES.update(dict.fromkeys((torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.mm, Tensor.mm), PRODUCT))
RULES.update(dict.fromkeys((torch.bmm, Tensor.bmm), PRODUCT))
RULES[torch._grouped_mm] = GROUPED  # what functional.grouped_mm calls
