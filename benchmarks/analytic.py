"""Computed layer times and bytes beside measured ones, on this machine's own core.

OMP_NUM_THREADS=1 python benchmarks/analytic.py

The core's rates (a product of matrices that caches hold, a pass over memory, a kernel that does nothing) are measured
right before and right after each profile, so that a machine whose speed changes is compared with itself. Printed are
medians of the ratio computed / measured, with the least and the most.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import nn

import penstock as ps
from penstock.profiler import Accelerator
from penstock.train.config import ModelConfig
from penstock.train.gpt import build_gpt, lm_loss

ROUNDS = 5
Subject = tuple[nn.Module, torch.Tensor, torch.Tensor, Callable[..., torch.Tensor]]


def seconds_of(work: Callable[[], Any], repeats: int) -> float:
    """Returns the median of five runs of `repeats` calls, for one call."""
    found = []
    for _ in range(5):
        begin = time.perf_counter()
        for _ in range(repeats):
            work()
        found.append((time.perf_counter() - begin) / repeats)
    return median(found)


def rates() -> tuple[float, float, float]:
    """Returns FLOPs a second, bytes a second, and the seconds of a kernel that does nothing."""
    square, long, short = torch.randn(256, 256), torch.randn(1 << 20), torch.randn(4)
    out, sums = torch.empty(256, 256), torch.empty(1 << 20)
    product = seconds_of(lambda: torch.mm(square, square, out=out), 20)
    passed = seconds_of(lambda: torch.add(long, 1, out=sums), 5)
    return 2 * 256**3 / product, 2 * long.nbytes / passed, seconds_of(lambda: short + 1, 300)


def linear() -> Subject:
    layers = [layer for _ in range(4) for layer in (nn.Linear(512, 512), nn.GELU())]
    return (
        nn.Sequential(*layers, nn.Linear(512, 512)),
        torch.randn(64, 512),
        torch.randn(64, 512),
        nn.functional.mse_loss,
    )


def decoder() -> Subject:
    tokens = torch.randint(0, 256, (2, 128))
    return build_gpt(ModelConfig(layers=3, width=256, heads=4, context=128), seed=0), tokens, tokens, lm_loss


def compared(subject: Subject) -> tuple[ps.Profile, ps.Profile]:
    """Returns the measured profile and the computed one."""
    model, inputs, targets, loss = subject
    before = rates()
    measured = ps.profile(model, inputs, targets, loss_fn=loss, seconds=0.3, recompute=False)
    peak, stream, launch = (sum(pair) / 2 for pair in zip(before, rates(), strict=True))
    core = Accelerator("core", peak, peak, stream, 1 << 33, most=1.0, half_flops=0.0, launch_seconds=launch, stream=1.0)
    return measured, ps.profile(model, inputs, targets, loss_fn=loss, target_device=core)


def main() -> None:
    """Prints a line a kind of layer, op and model."""
    for name, make in (("linear, width 512", linear), ("decoder, width 256", decoder)):
        pairs = [compared(make()) for _ in range(ROUNDS)]
        firsts = {layer.kind: index for index, layer in reversed(list(enumerate(pairs[0][0].layers)))}
        for index in sorted(firsts.values()):
            rows = [(real.layers[index], computed.layers[index]) for real, computed in pairs]
            for op in ("forward", "backward"):
                ratios = [getattr(two.seconds, op).seconds / getattr(one.seconds, op).seconds for one, two in rows]
                told = f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
                print(f"{name}, {rows[0][0].name}, {op}: {told}")
            one, two = rows[0]
            kept = two.activation_bytes / one.activation_bytes if one.activation_bytes else 1
            fields = ("parameter_bytes", "deferred_bytes", "output")
            same = all(getattr(one, field) == getattr(two, field) for field in fields)
            rest = "equal" if same else "differ"
            print(f"{name}, {one.name}, bytes: kept {kept:.3f}; weights, boundary, from I to W {rest}")


if __name__ == "__main__":
    main()
