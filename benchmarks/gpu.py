"""One stage on a GPU: the engine beside a plain loop over the same microbatches, and I and W beside B.

python benchmarks/gpu.py [--layers 4] [--microbatches 8] [--windows 9]

A stage of decoder layers in bf16, as wide as in models of 1 and 7 billion parameters, 2048 tokens a microbatch.
Contenders take turns in windows of steps; figures are medians over windows, timed by events. Asked: the engine at least
0.99 of the plain loop's speed, I and W together at most 1.02 of B, the host ahead of the device.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

import penstock as ps

SHAPES = {"1 B": (2048, 16, 5632), "7 B": (4096, 32, 11008)}
"""Name -> width, heads, width of the feed-forward layer."""
TOKENS = 2048


class Layer(nn.Module):
    """A decoder layer with RMSNorm, fused causal attention and a gated feed-forward layer."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.norm_inner = nn.RMSNorm(width), nn.RMSNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.gate_up, self.down = nn.Linear(width, 2 * inner, bias=False), nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        split = self.qkv(self.norm(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(*split.unbind(0), is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        gate, up = self.gate_up(self.norm_inner(x)).chunk(2, dim=-1)
        return x + self.down(functional.silu(gate) * up)


def loss_fn(output: Tensor, target: Tensor) -> Tensor:
    """Returns the mean squared error."""
    return functional.mse_loss(output, target)


def delayed(num_microbatches: int) -> ps.Schedule:
    """Returns the order of one rank in which every W comes after the next microbatch's I."""
    ops = [ps.Op(kind, 0, 0) for kind in (ps.OpKind.F, ps.OpKind.I)]
    for i in range(1, num_microbatches):
        ops += [ps.Op(ps.OpKind.F, 0, i), ps.Op(ps.OpKind.I, 0, i), ps.Op(ps.OpKind.W, 0, i - 1)]
    ops.append(ps.Op(ps.OpKind.W, 0, num_microbatches - 1))
    return ps.Schedule("I and W", ps.Placement.looped(1), num_microbatches, (tuple(ops),))


def seconds_a_step(steps: dict[str, Callable[[], object]], windows: int) -> dict[str, tuple[float, float]]:
    """Returns for each contender the device's and the host's seconds a step, medians over windows that take turns."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for _ in range(windows):
        for name, step in steps.items():
            torch.cuda.synchronize()
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin = time.perf_counter()
            first.record()
            for _ in range(3):
                step()
            last.record()
            host = time.perf_counter() - begin
            last.synchronize()
            found[name].append((first.elapsed_time(last) / 3e3, host / 3))
    return {name: tuple(map(statistics.median, zip(*rows, strict=True))) for name, rows in found.items()}  # type: ignore[misc]


def compare(name: str, layers: int, microbatches: int, windows: int) -> None:
    """Prints the figures of one shape."""
    model = nn.Sequential(*(Layer(*SHAPES[name]) for _ in range(layers))).to("cuda", torch.bfloat16)
    x, y = (torch.randn(microbatches, TOKENS, SHAPES[name][0], device="cuda", dtype=torch.bfloat16) for _ in range(2))

    def plain() -> None:
        for inputs, targets in zip(x.split(1), y.split(1), strict=True):
            (loss_fn(model(inputs), targets) / microbatches).backward()
        model.zero_grad(set_to_none=False)

    def rank(transport: ps.LoopbackTransport) -> None:
        steps: dict[str, Callable[[], object]] = {"plain loop": plain}
        for schedule in (ps.gpipe(1, microbatches), ps.one_f_one_b(1, microbatches), delayed(microbatches)):
            pipe = ps.Pipeline(model, loss_fn, transport=transport, schedule=schedule)

            def step(pipe: ps.Pipeline = pipe) -> None:
                pipe.step(x, y)
                model.zero_grad(set_to_none=False)

            steps[schedule.name] = step
        for step in steps.values():
            for _ in range(3):
                step()
        found = seconds_a_step(steps, windows)
        floor = found["plain loop"][0]
        for contender, (device, host) in found.items():
            print(
                f"{name}  {contender:14} {device * 1e3:8.2f} ms  {floor / device:5.3f} of the plain loop's speed, "
                f"host {host / device:4.2f} of the device's time",
                flush=True,
            )

    ps.run_ranks(rank, 1, timeout_seconds=600)


def main() -> None:
    """Prints all figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--microbatches", type=int, default=8)
    parser.add_argument("--windows", type=int, default=9)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.exit(1, "no CUDA device here\n")
    print(f"penstock {ps.__version__}, torch {torch.__version__}, {torch.cuda.get_device_name()}")
    for name in SHAPES:
        compare(name, options.layers, options.microbatches, options.windows)


if __name__ == "__main__":
    main()
