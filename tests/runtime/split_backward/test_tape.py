"""What I leaves on the tape: an op's input and its output's gradient, shared ones once, at a cost linear in depth."""

from __future__ import annotations

import gc
import sys
from contextlib import nullcontext

import pytest
import torch
from tests.runtime.split_backward.halves import assert_bitwise, split
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from penstock.runtime.split_backward.tape import Entry
from penstock.runtime.stage_work import StageWork, backward_in_one_thread

WIDTH, LENGTH, BATCH = 32, 8, 2


class Attention(nn.Module):
    """Queries, keys and values are three layers that read one normed input."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        heads = [each(normed).view(BATCH, LENGTH, 4, -1).transpose(1, 2) for each in (self.q, self.k, self.v)]
        mixed = functional.scaled_dot_product_attention(*heads)
        return self.out(mixed.transpose(1, 2).reshape(x.shape))


def sequences() -> Tensor:
    torch.manual_seed(0)
    return torch.randn(BATCH, LENGTH, WIDTH)


def bytes_of(entries: list[Entry]) -> int:
    """Returns what the tape keeps alive, weights apart: each storage once, however many ops share it."""
    tensors = [each for entry in entries for each in (entry.grad, entry.call.input)]
    return sum({each.untyped_storage()._cdata: each.untyped_storage().nbytes() for each in tensors}.values())


def split_once(stage: StageWork, x: Tensor) -> None:
    """Runs F, I and W of microbatch 0."""
    output = stage.forward(x, split=True)
    stage.keep(0, (), (output,))
    stage.input_grads(0, [torch.ones_like(output)])
    stage.weight_grads(0)


def deferring(module: nn.Module, x: Tensor, *, bf16: bool) -> list[Entry]:
    """Returns what I leaves of `module`'s forward on `x`."""
    stage = StageWork(module, loss_fn=None)
    with torch.autocast("cpu", dtype=torch.bfloat16) if bf16 else nullcontext(), backward_in_one_thread(True):
        output = stage.forward(x, split=True)
        stage.keep(0, (), (output,))
    with backward_in_one_thread(True):
        stage.input_grads(0, [torch.randn_like(output)])
    return stage.deferred(0)


@pytest.mark.parametrize("bf16", [False, True])
def test_an_input_that_queries_keys_and_values_share_is_kept_once(bf16: bool) -> None:
    """Six tensors of the input's size: that input, the three gradients of what was made of it, and those of `out`.

    Symptom under autocast: eight. Cause: each layer casts the input for itself.
    """
    entries = deferring(Attention(), sequences(), bf16=bf16)
    assert len(entries) == 4
    assert bytes_of(entries) == 6 * BATCH * LENGTH * WIDTH * (2 if bf16 else 4)


def test_an_input_that_changed_between_two_layers_is_not_shared() -> None:
    class Changing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                y = x * 2
                first = self.first(y)
                return first + self.second(y.mul_(3))

    halves = split(Changing(), sequences(), backwards=2)
    assert_bitwise(halves)
    assert halves.deferred == ["second.weight", "first.weight"]


@pytest.mark.parametrize("same", [True, False])
def test_pieces_of_packed_projections_wait_under_autocast_too(same: bool) -> None:
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(WIDTH, 4, batch_first=True)
    memory, other = torch.randn(2, BATCH, 5, WIDTH)

    def run(module: nn.Module, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = module(x, memory, memory if same else other, need_weights=False)[0]
        assert output.dtype == torch.bfloat16
        return output

    halves = split(layer, sequences(), backwards=2, run=run)
    assert halves.deferred == ["out_proj.weight"] + ["in_proj_weight"] * (2 if same else 3)
    assert_bitwise(halves)
    assert halves.after_both["in_proj_weight"].dtype == torch.float32


def test_both_halves_together_do_the_products_of_the_full_backward() -> None:
    """Each half of those with weights; nothing is computed twice."""
    module, x = Attention(), sequences().requires_grad_()
    flops = {}
    stage = StageWork(module, loss_fn=None)
    for what, calls in (("full", [stage.backward]), ("halves", [stage.input_grads, stage.weight_grads])):
        with backward_in_one_thread(True):
            output = stage.forward(x, split=what == "halves")
            stage.keep(0, (x,), (output,))
            for call in calls:
                with FlopCounterMode(display=False) as counter:
                    call(0, *[[torch.ones_like(output)]] * (call != stage.weight_grads))
                flops[call.__name__] = counter.get_total_flops()
    products = 4 * 2 * BATCH * LENGTH * WIDTH**2
    assert flops["weight_grads"] == products
    assert flops["input_grads"] + flops["weight_grads"] == flops["backward"]


class _Calls:
    """Counts the calls of Python and builtin functions in this thread; the collector's are none of them."""

    def __enter__(self) -> _Calls:
        self.count = 0
        gc.disable()
        sys.setprofile(self._note)
        return self

    def _note(self, _: object, event: str, __: object) -> None:
        self.count += event in ("call", "c_call")

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)
        gc.enable()


def test_the_host_cost_of_both_halves_grows_linearly_with_depth() -> None:
    """In calls, which no busy machine changes: as many for layers 17 to 32 as twice those for layers 9 to 16."""
    calls = {}
    for depth in (8, 16, 32):
        stage = StageWork(nn.Sequential(*(Attention() for _ in range(depth))), loss_fn=None)
        x = sequences()
        with backward_in_one_thread(True):
            split_once(stage, x)  # from the second on there are gradients to add to
            with _Calls() as calls_of_all:
                split_once(stage, x)
        calls[depth] = calls_of_all.count
    assert calls[32] - calls[16] == 2 * (calls[16] - calls[8]) > 0, calls
