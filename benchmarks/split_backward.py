"""What splitting a backward costs: (I + W) / B, against torch.distributed.pipelining's split, in one run.

python benchmarks/split_backward.py [--repeats 15]

One thread. B, penstock's halves and torch's halves take turns on the same blocks. Ratios are medians of those in a
turn, because cores change their speed: `F/F` is a forward whose backward will be split by one whose will not.
"""

from __future__ import annotations

import argparse
import copy
import os
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.distributed.pipelining._backward import stage_backward_input, stage_backward_weight
from torch.nn import functional

from penstock.runtime.split_backward import DeferredForward, Tape, accumulate

CASES = {"48 layers, d=64, 32 tokens": (48, 64, 1, 32), "12 layers, d=64, 32 tokens": (12, 64, 1, 32)}
CASES |= {"4 layers, d=256, 512 tokens": (4, 256, 4, 128), "4 layers, d=512, 2048 tokens": (4, 512, 8, 256)}
"""Name -> layers, width, sequences, length."""


class Block(nn.Module):
    """A pre-norm transformer block with fused attention."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Returns a tensor of the input's shape (batch, length, width)."""
        batch, length, _ = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(batch, length, 3, 4, -1).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(x.shape))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


Halves = tuple[float, float, float]
"""Seconds of the forward, of B or I, of W."""


def full(model: nn.Module, x: Tensor, grad: Tensor) -> Halves:
    """Returns the times of a forward and its full backward."""
    begin = time.perf_counter()
    output = model(x)
    middle = time.perf_counter()
    torch.autograd.backward([get_gradient_edge(output)], [grad])
    return middle - begin, time.perf_counter() - middle, 0.0


def halves_by_penstock(mode: DeferredForward, tape: Tape) -> Callable[[nn.Module, Tensor, Tensor], Halves]:
    """Returns what times penstock's halves."""

    def run(model: nn.Module, x: Tensor, grad: Tensor) -> Halves:
        begin = time.perf_counter()
        with mode:
            output = model(x)
        middle = time.perf_counter()
        tape.entries = entries = []
        with mode:
            torch.autograd.backward([get_gradient_edge(output)], [grad])
        tape.entries = None
        end = time.perf_counter()
        accumulate(entries)
        return middle - begin, end - middle, time.perf_counter() - end

    return run


def halves_by_torch(model: nn.Module, x: Tensor, grad: Tensor) -> Halves:
    """Returns the times of torch.distributed.pipelining's halves."""
    begin = time.perf_counter()
    output = model(x)
    middle = time.perf_counter()
    _, groups = stage_backward_input([output], [grad], [x], model.parameters())
    end = time.perf_counter()
    stage_backward_weight(model.parameters(), groups)
    return middle - begin, end - middle, time.perf_counter() - end


def main() -> None:
    """Prints a row per size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, one thread, medians of {repeats}, load {os.getloadavg()[0]:.1f}")
    print(f"{'':30}{'F ms':>8}{'B ms':>8}{'I+W ms':>9}{'(I+W)/B':>9}{'F/F':>7}{'torch (I+W)/B':>15}")
    for name, (layers, width, batch, length) in CASES.items():
        model = nn.Sequential(*(Block(width) for _ in range(layers)))
        tape = Tape()
        models = [copy.deepcopy(model) for _ in range(3)]
        contenders = (full, halves_by_penstock(DeferredForward(models[1], tape), tape), halves_by_torch)
        x, grad = torch.randn(2, batch, length, width)
        times: list[list[Halves]] = [[] for _ in contenders]
        for _ in range(repeats):
            for contender, own, rows in zip(contenders, models, times, strict=True):
                rows.append(contender(own, x.clone().requires_grad_(), grad))
        wholes, ours, torchs = ([row[1] + row[2] for row in rows] for rows in times)
        forwards = [[row[0] for row in rows] for rows in times]
        print(
            f"{name:30}{median(forwards[0]) * 1e3:8.1f}{median(wholes) * 1e3:8.1f}{median(ours) * 1e3:9.1f}"
            f"{_ratio(ours, wholes):9.3f}{_ratio(forwards[1], forwards[0]):7.2f}{_ratio(torchs, wholes):15.2f}",
            flush=True,
        )


def _ratio(some: list[float], others: list[float]) -> float:
    """Returns the median of the ratios in a turn, the first turns aside."""
    return median([one / other for one, other in zip(some, others, strict=True)][2:])


if __name__ == "__main__":
    main()
