"""Every rule: the two halves give the bits of autograd's own backward, and the weight's part waits for W."""

from collections.abc import Callable

import pytest
import torch
from tests.runtime.split_backward.halves import assert_bitwise, split
from torch import Tensor, nn
from torch.nn import functional

from penstock.runtime.split_backward import Operands, Rule, register_weight_gradient


class With(nn.Module):
    """A module of one weight (and one bias) around `function(input, weight, bias)`."""

    def __init__(self, shape: tuple[int, ...], function: Callable[..., Tensor], bias: int = 0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape))
        self.bias = nn.Parameter(torch.randn(bias)) if bias else None
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.weight, self.bias)


def conv1d_of_gpt2() -> nn.Module:
    from transformers.pytorch_utils import Conv1D

    return Conv1D(4, 6)


CASES = {
    "linear": (lambda: nn.Linear(6, 4), (5, 6)),
    "linear 3d": (lambda: nn.Linear(6, 4), (2, 5, 6)),
    "linear 4d without bias": (lambda: nn.Linear(6, 4, bias=False), (2, 3, 5, 6)),
    "linear of one row": (lambda: nn.Linear(6, 4), (1, 6)),
    "linear of width one": (lambda: nn.Linear(1, 1), (3, 1)),
    "linear by keywords": (
        lambda: With((4, 6), lambda x, w, b: functional.linear(input=x, weight=w, bias=b), 4),
        (5, 6),
    ),
    "linear in place after": (lambda: nn.Sequential(nn.Linear(6, 4), nn.ReLU(inplace=True), nn.Linear(4, 2)), (5, 6)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1), (2, 4, 9)),
    "conv2d in groups": (lambda: nn.Conv2d(4, 6, (3, 2), dilation=2, groups=2), (2, 4, 9, 8)),
    "conv3d without bias": (lambda: nn.Conv3d(2, 3, 2, bias=False), (2, 2, 4, 4, 4)),
    "transposed conv1d": (lambda: nn.ConvTranspose1d(4, 6, 3, stride=2, output_padding=1), (2, 4, 5)),
    "transposed conv2d": (lambda: nn.ConvTranspose2d(4, 6, 3, groups=2), (2, 4, 5, 5)),
    "Hugging Face's Conv1D": (conv1d_of_gpt2, (2, 5, 6)),
    "addmm": (lambda: With((6, 4), lambda x, w, b: torch.addmm(b, x, w), 4), (5, 6)),
    "x @ w": (lambda: With((6, 4), lambda x, w, b: x @ w), (2, 5, 6)),
    "x @ w.T": (lambda: With((4, 6), lambda x, w, b: x @ w.T), (5, 6)),
    "matmul of batches": (lambda: With((3, 6, 4), lambda x, w, b: x.matmul(w)), (3, 5, 6)),
    "bmm on swapped weights": (lambda: With((3, 4, 6), lambda x, w, b: torch.bmm(x, w.transpose(1, 2))), (3, 5, 6)),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_both_halves_give_the_bits_of_the_full_backward(name: str, dtype: torch.dtype):
    torch.manual_seed(0)
    make, shape = CASES[name]
    halves = split(make().to(dtype), torch.randn(shape, dtype=dtype), backwards=2)
    assert_bitwise(halves)
    assert set(halves.deferred) >= {name for name in halves.full if name.endswith("weight")}


def test_a_linear_layer_on_a_strided_input_gives_the_same_gradients():
    """Not the same bits: torch itself takes another way where the weight needs no gradient."""
    torch.manual_seed(0)
    module = With((4, 6), lambda x, w, b: functional.linear(x.mT, w, b), 4).double()
    halves = split(module, torch.randn(3, 6, 5, dtype=torch.float64))
    for name, expected in halves.full.items():
        torch.testing.assert_close(halves.after_both[name], expected, rtol=1e-13, atol=1e-15)


def test_an_embedding_waits_for_w_too():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Embedding(9, 4, padding_idx=-2), nn.Linear(4, 3))
    halves = split(module, torch.tensor([[1, 7, 3], [7, 7, 0]]), backwards=2)
    assert_bitwise(halves)
    assert halves.deferred == ["1.weight", "0.weight"]


def test_grouped_products_of_experts_wait_for_w():
    torch.manual_seed(0)
    ends = torch.tensor([4, 16], dtype=torch.int32)
    for shape, swap in (((2, 16, 8), False), ((2, 8, 16), True)):
        module = With(
            shape, lambda x, w, b, s=swap: functional.grouped_mm(x, w.transpose(-2, -1) if s else w, offs=ends)
        )
        halves = split(module.to(torch.bfloat16), torch.randn(16, 16, dtype=torch.bfloat16))
        assert_bitwise(halves)
        assert halves.deferred == ["weight"]


def test_after_the_input_half_no_deferred_weight_has_a_gradient():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6), nn.Linear(6, 2))
    halves = split(module, torch.randn(3, 6))
    present = {name for name, grad in halves.after_input_half.items() if grad is not None}
    assert present == {"(input)", "1.weight", "1.bias"}


@pytest.mark.parametrize(
    "function",
    [
        lambda x, w, b: functional.linear(x, w * 2),
        lambda x, w, b: functional.linear(x, w, b * 2),
        lambda x, w, b: functional.linear(x[0], w),
        lambda x, w, b: torch.addmm(b, x, w.T, alpha=2),
        lambda x, w, b: functional.linear(x, w[:1].expand(4, 6)),
        lambda x, w, b: x @ w.T[:, 0],
    ],
)
def test_calls_without_a_rule_get_their_gradients_at_once(function: Callable[..., Tensor]):
    torch.manual_seed(0)
    halves = split(With((4, 6), function, 4), torch.randn(5, 6))
    assert_bitwise(halves)
    assert halves.deferred == []


def test_a_weight_used_twice_and_by_other_ops_is_complete_after_w():
    torch.manual_seed(0)
    module = With((6, 6), lambda x, w, b: functional.linear(functional.linear(x, w).tanh(), w) + w.square().sum())
    halves = split(module.double(), torch.randn(5, 6, dtype=torch.float64), backwards=2)
    assert halves.deferred == ["weight", "weight"]
    torch.testing.assert_close(halves.after_both["weight"], halves.full["weight"], rtol=1e-12, atol=1e-14)


def test_frozen_weights_and_biases_get_none():
    torch.manual_seed(0)
    for frozen in ("0.weight", "0.bias", "1.weight"):
        module = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
        module.get_parameter(frozen).requires_grad_(False)
        halves = split(module, torch.randn(3, 6), backwards=2)
        assert_bitwise(halves)
        assert halves.after_both[frozen] is None


def test_an_input_overwritten_before_its_backward_is_an_error_as_in_autograd():
    module = With((6, 6), lambda x, w, b: functional.linear(y := x * 1, w) + y.mul_(2))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        module(torch.randn(3, 6, requires_grad=True)).sum().backward()
    from penstock.runtime.split_backward import DeferWeightGradients, Tape

    with DeferWeightGradients(Tape()):
        output = module(torch.randn(3, 6, requires_grad=True))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_a_user_registers_an_operation_of_their_own():
    from penstock.runtime.split_backward.rules import RULES

    rule = Rule(
        lambda input, other: Operands(input, other, None),
        lambda call: torch.outer(call.input, call.weight),
        lambda grad, call: grad.mv(call.weight),
        lambda grad, call, _: (grad.t().mv(call.input), None),
    )
    register_weight_gradient(torch.outer, rule)
    try:
        halves = split(With((6,), lambda x, w, b: torch.outer(x, w)), torch.randn(4))
    finally:
        del RULES[torch.outer]
    assert halves.deferred == ["weight"]
    torch.testing.assert_close(halves.after_both["weight"], halves.full["weight"])
