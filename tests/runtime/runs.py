"""A pipeline over loopback and what it left behind, beside the unsplit model's."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import penstock as ps
from penstock.ir.ops import Channel
from penstock.runtime.transport.loopback import LoopbackTransport
from penstock.runtime.transport.protocol import Pending

mse = nn.functional.mse_loss
SCHEDULES = ("naive", "gpipe", "one_f_one_b")
SIZES = [(p, m) for p in (1, 2, 3, 4) for m in (1, 2, 4, 8)]


class Counting:
    """A loopback transport that notes what is sent and what is under way."""

    def __init__(self, transport: LoopbackTransport) -> None:
        self._transport = transport
        self.sent: list[tuple[Channel, tuple[int, ...]]] = []
        self.under_way: list[Pending] = []
        self.most_under_way = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def send(self, channel: Channel, tensor: Tensor) -> Pending:
        pending = self._transport.send(channel, tensor)
        self.sent.append((channel, tuple(tensor.shape)))
        self.under_way = [*(each for each in self.under_way if not each.done()), pending]
        self.most_under_way = max(self.most_under_way, len(self.under_way))
        return pending


class Outcome(NamedTuple):
    """What all ranks had after their steps; `sent` is per rank."""

    losses: list[list[Tensor]]
    grads: dict[str, Tensor]
    sent: list[list[tuple[Channel, tuple[int, ...]]]]


def grads_of(modules: ps.Pipeline | nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in modules.named_parameters() if p.grad is not None}


def run(
    model: Any,
    batches: Sequence[tuple[Any, Any]],
    *,
    num_ranks: int,
    loss_fn: Callable[[Any, Any], Tensor] = mse,
    **arguments: Any,
) -> Outcome:
    """Returns what steps over `batches` leave behind, on a copy of `model`."""
    twin = copy.deepcopy(model)

    def rank(transport: LoopbackTransport) -> tuple[list[Tensor], dict[str, Tensor], list]:
        counting = Counting(transport)
        pipe = ps.Pipeline(twin, loss_fn, transport=counting, **arguments)
        losses = [
            pipe.step(inputs if pipe.has_first_stage else None, targets if pipe.has_last_stage else None)
            for inputs, targets in batches
        ]
        return losses, grads_of(pipe), counting.sent

    parts = ps.run_ranks(rank, num_ranks, timeout_seconds=20)
    grads = [item for _, found, _ in parts for item in found.items()]
    assert len(grads) == len(dict(grads)), "a parameter lies on two ranks"
    return Outcome([losses for losses, _, _ in parts], dict(grads), [sent for _, _, sent in parts])


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Bit for bit. A gradient of zeros may stand where the unsplit model has none."""
    assert expected.keys() <= found.keys()
    for name, grad in found.items():
        assert torch.equal(grad, expected.get(name, torch.zeros_like(grad))), name


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """To 1e-12 of the largest entry, in fp64."""
    assert found.keys() == expected.keys()
    for name, grad in found.items():
        torch.testing.assert_close(grad, expected[name], rtol=0, atol=1e-12 * float(expected[name].abs().max()))


class Poisoning(Counting):
    """Fills every buffer with NaN when its receive is posted: whoever still reads what was there computes NaN."""

    def recv(self, channel: Channel, tensor: Tensor) -> Pending:
        if tensor.is_floating_point():
            tensor.fill_(float("nan"))
        return self._transport.recv(channel, tensor)
