"""Models that are no list of layers: what several stages use is saved once, and goes on in any layout."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models.traced_models import batch_of, loss_of, made
from torch import Tensor, nn

import penstock as ps
from penstock import checkpoint
from penstock.checkpoint import read_manifest

TARGETS = torch.linspace(0.2, 1, 4, dtype=torch.float64)
Run = tuple[list[float], dict[str, Tensor], Path | None]


class Masked(nn.Module):
    """One mask, a buffer, that code between all blocks uses; and a parameter that it uses twice."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(6, 6) for _ in range(4)])
        self.register_buffer("mask", torch.tensor([1.0, 0, 1, 1, 0, 1]))
        self.scale = nn.Parameter(torch.rand(6))

    def forward(self, x: Tensor) -> Tensor:
        for at, block in enumerate(self.blocks):
            x = block(x * self.mask).tanh()
            if at % 3 == 0:
                x = x * self.scale
        return x


def model_of(name: str) -> nn.Module:
    if name != "Masked":
        return made(name)
    torch.manual_seed(3)
    return Masked().double()


def inputs_of(name: str) -> Any:
    if name != "Masked":
        return batch_of(name)
    return torch.randn(4, 6, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def trained(name: str, p: int, schedule: str, *, steps: int, save: Path | None = None, load: Path | None = None) -> Run:
    """Returns losses, the whole state and the checkpoint; saved after the first step, or loaded before it."""
    model, inputs = model_of(name), inputs_of(name)
    if load is not None:
        with torch.no_grad():
            for tensor in (*model.parameters(), *model.buffers()):
                tensor.mul_(0) if tensor.dtype == torch.int64 else tensor.mul_(0.5)

    def rank(transport: ps.LoopbackTransport) -> Run:
        pipe = ps.Pipeline(model, loss_of, transport=transport, schedule=schedule, num_microbatches=2, seed=1)
        optimizer = torch.optim.AdamW(pipe.parameters(), lr=0.01)
        losses, path = [], None
        if load is not None:
            checkpoint.load(load, pipe, optimizer=optimizer)
        for step in range(steps):
            losses.append(pipe.step(inputs, TARGETS).item())
            optimizer.step()
            optimizer.zero_grad()
            if save is not None and step == 0:
                path = checkpoint.save(save, pipe, optimizer=optimizer)
        return losses, copy.deepcopy(pipe.state_dict()), path

    parts = ps.run_ranks(rank, p, timeout_seconds=60)
    return parts[0][0], {name: value for _, own, _ in parts for name, value in own.items()}, parts[0][2]


@pytest.mark.parametrize("name", ["Tied", "Masked", "ResNet"])
def test_what_several_stages_use_is_saved_once_and_goes_on_anywhere(name: str, tmp_path: Path) -> None:
    """Symptom: no checkpoint of a model whose block runs twice. Cause: both stages saved it, under the same name."""
    losses, state, path = trained(name, 4, "gpipe", steps=3, save=tmp_path)
    assert path is not None
    stored = {each.removeprefix("model/") for each in read_manifest(path).tensors() if each.startswith("model/")}
    assert stored == set(model_of(name).state_dict())
    for p, schedule in ((1, "naive"), (2, "zb_v")):
        found, values, _ = trained(name, p, schedule, steps=2, load=path)
        assert found == pytest.approx(losses[1:], rel=1e-12)
        assert values.keys() == state.keys()
        for each, value in values.items():
            torch.testing.assert_close(value, state[each], rtol=1e-9, atol=1e-12, msg=each)
