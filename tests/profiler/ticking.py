"""Layers whose time is counted in ticks, so that what a profile should say is known exactly."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from penstock.profiler.values import (
    Boundary,
    HostCosts,
    LayerProfile,
    LinkLevel,
    MessageCosts,
    OpTimings,
    Profile,
    Timing,
)


class Ticks:
    """A clock that goes on when a layer says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class _Count(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, ticks: Ticks, forward: float, backward: float) -> Tensor:
        ctx.ticks, ctx.seconds = ticks, backward
        ctx.save_for_backward(x)  # so that a forward that is repeated comes this far
        ticks.now += forward
        return x * 1

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        assert ctx.saved_tensors
        ctx.ticks.now += ctx.seconds
        return grad, None, None, None


class Ticking(nn.Module):
    """Takes `forward` ticks in F and `backward` in B."""

    def __init__(self, ticks: Ticks, forward: float, backward: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(()))
        self._ticks, self.ahead, self.back = ticks, forward, backward

    def forward(self, x: Tensor) -> Tensor:
        return _Count.apply(x * self.factor, self._ticks, self.ahead, self.back)


def timing(seconds: float) -> Timing:
    return Timing(seconds, seconds, seconds, 5)


def by_hand(num_layers: int = 4, *, messages: MessageCosts | None = None, step_seconds: float = 0.0) -> Profile:
    """A profile of layers that take F 10, B 20, I 12, W 8, 1 less behind another."""
    seconds = OpTimings(*map(timing, (10.0, 20.0, 11.0, 12.0, 8.0, 30.0, 22.0)))
    layer = LayerProfile(
        "layer",
        0,
        seconds,
        accumulate_seconds=4.0,
        parameter_bytes=100,
        gradient_bytes=100,
        activation_bytes=50,
        keeps_input=True,
        input_bytes=8,
        deferred_bytes=30,
        output=Boundary(8, 1, 8, 1),
        forward_peak_bytes=70,
        backward_peak_bytes=40,
        recompute_peak_bytes=90,
        saved=OpTimings(*[timing(1.0)] * 7),
    )
    return Profile(
        "by hand",
        True,
        1,
        (layer,) * num_layers,
        HostCosts(0.0, step_seconds),
        (LinkLevel(2, messages),) if messages else (),
    )
