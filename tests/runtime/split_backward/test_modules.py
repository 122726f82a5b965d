"""Whole modules in two halves: checkpointed, compiled, under autocast; what stays in memory between the halves."""

import warnings
from collections.abc import Callable, Iterable

import pytest
import torch
from tests.runtime.split_backward.halves import assert_bitwise, split
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from penstock.runtime.split_backward import DeferWeightGradients, Tape, accumulate

WIDTH = 32


class Block(nn.Module):
    """A pre-norm transformer block with fused attention."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        self.forwards = 0

    def forward(self, x: Tensor) -> Tensor:
        self.forwards += 1
        batch, length, _ = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(batch, length, 3, 4, -1).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(x.shape))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


LINEARS = {"qkv.weight", "out.weight", "up.weight", "down.weight"}


def blocks(n: int) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(Block() for _ in range(n)))


def inputs() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(2, 8, WIDTH)


def test_transformer_blocks_give_the_bits_of_the_full_backward():
    halves = split(blocks(3), inputs(), backwards=2)
    assert_bitwise(halves)
    assert {name.split(".", 1)[1] for name in halves.deferred} == LINEARS


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpointed_block_is_recomputed_once_and_its_weights_still_wait(reentrant: bool):
    model = blocks(2)
    counts = []

    def run(module: nn.Module, x: Tensor) -> Tensor:
        for block in module:
            x = checkpoint(block, x, use_reentrant=reentrant)
        counts.append(module)
        return x

    halves = split(model, inputs(), backwards=2, run=run)
    assert_bitwise(halves)
    assert {name.split(".", 1)[1] for name in halves.deferred} == LINEARS
    twin = counts[-1]
    assert twin is not model
    assert [block.forwards for block in twin] == [4, 4]  # two backwards: each a forward and one recomputation


@pytest.mark.parametrize("batch_first", [False, True])
def test_torchs_own_attention_leaves_its_weights_for_w(batch_first: bool):
    """Symptom: they had their gradients in I. Cause: the function is written in Python, and a mode that meets it as one
    call does not see the products inside. To 1e-12, since what is inside has strided inputs."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, dropout=0.0, batch_first=batch_first).double()
    halves = split(layer, inputs().double(), backwards=2)
    for name, expected in halves.full.items():
        torch.testing.assert_close(halves.after_both[name], expected, rtol=1e-12, atol=1e-14, msg=name)
    products = {"self_attn.in_proj_weight", "self_attn.out_proj.weight", "linear1.weight", "linear2.weight"}
    assert set(halves.deferred) == products


@pytest.mark.parametrize("same", [True, False])
def test_attention_across_two_sequences_leaves_its_weights_for_w(same: bool):
    """Its packed weight is used in pieces, of which each waits: two where keys are the values, else three."""
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(WIDTH, 4, batch_first=True).double()
    memory, other = torch.randn(2, 2, 5, WIDTH, dtype=torch.float64)
    values = memory if same else other
    halves = split(
        layer, inputs().double(), backwards=2, run=lambda module, x: module(x, memory, values, need_weights=False)[0]
    )
    for name, expected in halves.full.items():
        torch.testing.assert_close(halves.after_both[name], expected, rtol=1e-12, atol=1e-14, msg=name)
    assert halves.deferred == ["out_proj.weight"] + ["in_proj_weight"] * (2 if same else 3)


def test_pieces_of_weights_wait_however_they_are_cut_out():
    class Pieces(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = nn.Parameter(torch.randn(3, WIDTH, WIDTH, dtype=torch.float64))
            self.packed = nn.Parameter(torch.randn(2 * WIDTH, WIDTH, dtype=torch.float64))
            self.biases = nn.Parameter(torch.randn(2 * WIDTH, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            up = nn.functional.linear(x, self.packed[:WIDTH], self.biases[:WIDTH]).tanh()
            down = nn.functional.linear(up, self.packed[WIDTH:], self.biases[WIDTH:])
            first = down @ self.experts[0]
            again = nn.functional.linear(first, self.experts[2])
            return again @ self.experts[2] @ self.experts[1].T + up

    torch.manual_seed(0)
    halves = split(Pieces(), inputs().double(), backwards=2)
    assert sorted(halves.deferred) == ["experts"] * 4 + ["packed"] * 2
    for name, expected in halves.full.items():
        torch.testing.assert_close(halves.after_both[name], expected, rtol=1e-12, atol=1e-14, msg=name)


def test_what_lies_in_a_weight_more_than_once_gets_its_gradient_at_once():
    weight = nn.Parameter(torch.randn(1, WIDTH, dtype=torch.float64))
    module = nn.Module()
    module.weight = weight
    spread = split(module, inputs().double(), run=lambda m, x: nn.functional.linear(x, m.weight.expand(5, WIDTH)))
    assert not spread.deferred
    assert_bitwise(spread)


def test_blocks_compiled_one_by_one_give_their_gradients():
    """Compiled code keeps autograd's own nodes, so these gradients come at once; the rest waits."""
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), blocks(1)[0], nn.Linear(WIDTH, WIDTH))
    model[1].compile(backend="aot_eager")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        halves = split(model, inputs(), backwards=2)
    for name, expected in halves.full.items():
        torch.testing.assert_close(halves.after_both[name], expected, msg=name)
    assert {"0.weight", "2.weight"} <= set(halves.deferred)


def test_autocast_runs_the_deferred_ops_in_the_lower_precision():
    def run(module: nn.Module, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = module(x)
        assert output.dtype == torch.float32  # the residual's
        return output

    halves = split(blocks(2), inputs(), backwards=2, run=run)
    assert_bitwise(halves)
    assert {name.split(".", 1)[1] for name in halves.deferred} == LINEARS
    assert halves.after_both["0.up.weight"].dtype == torch.float32


@pytest.mark.parametrize("bias", [True, False])
def test_weights_that_are_in_autocasts_precision_already_get_their_gradient_once(bias: bool):
    """Symptom: twice the gradient. Cause: a cast that had nothing to do gave the parameter itself to the op."""

    def run(module: nn.Module, inputs: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return module(inputs)  # type: ignore[no-any-return]

    torch.manual_seed(0)
    module = nn.Linear(6, 4, bias=bias).bfloat16()
    assert_bitwise(split(module, torch.randn(5, 6, dtype=torch.bfloat16), run=run))


def test_under_no_grad_nothing_is_put_off():
    def run(module: nn.Module, x: Tensor) -> Tensor:
        with torch.no_grad():
            frozen = module[0](x)
        return module[1](frozen) + x

    halves = split(blocks(2), inputs(), run=run)
    assert_bitwise(halves)
    assert {name.split(".")[0] for name in halves.deferred} == {"1"}


class _Live(TorchDispatchMode):
    """Counts the bytes of all tensors made under it that are still there, those of `known` left out."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self._known = {tensor.untyped_storage()._cdata for tensor in known}
        self._made: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Callable, types: object, args: tuple = (), kwargs: dict | None = None) -> object:
        output = func(*args, **(kwargs or {}))
        for tensor in output if isinstance(output, tuple | list) else (output,):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata in self._known:
                    continue
                self._made[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        return output

    def bytes(self) -> int:
        return sum(size for reference, size in self._made.values() if not reference.expired())


@pytest.mark.parametrize(("checkpointed", "bf16"), [(False, False), (True, False), (False, True)])
def test_the_input_half_frees_what_the_weight_half_does_not_need(checkpointed: bool, bf16: bool):
    """Without checkpoints never more bytes than after F; with them at most what an unchecked F holds.

    Weights in autocast's precision are kept for the step's other microbatches, biases too, which autograd drops.
    """
    model, x = blocks(2), inputs().requires_grad_()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    grad = torch.randn_like(x)
    known = [x, grad, *model.parameters(), *(parameter.grad for parameter in model.parameters())]
    plain = _Live(known)
    with plain, torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        output = model(x)
        held_by_a_plain_forward = plain.bytes()
    del output
    tape = Tape()
    mode = DeferWeightGradients(tape)
    live = _Live(known)
    with live:
        with mode, torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            output = x
            for block in model:
                output = checkpoint(block, output, use_reentrant=False) if checkpointed else block(output)
        after_forward = live.bytes()
        tape.entries = entries = []
        with mode:
            torch.autograd.backward([torch.autograd.graph.get_gradient_edge(output)], [grad])
        tape.entries = None
        del output
        x.grad = None
        after_input_half = live.bytes()
        accumulate(entries)
        after_weight_half = live.bytes()
    biases = sum(cast.nbytes for cast in tape.casts.values() if cast.dim() == 1)
    assert after_forward <= held_by_a_plain_forward + biases
    assert after_input_half <= held_by_a_plain_forward
    assert after_weight_half == sum(cast.nbytes for cast in tape.casts.values())
    assert bool(tape.casts) == bf16
