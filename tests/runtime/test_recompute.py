"""Activation checkpointing composes with every schedule: the bits of the run without it, one more forward a block."""

import threading
import time
from typing import Any

import pytest
import torch
from tests.runtime.runs import assert_same, mse, run
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy

import penstock as ps
from penstock.errors import ModelError
from penstock.runtime import own_stages
from penstock.runtime.memory.recompute import Recompute
from penstock.runtime.shared_weights.owners import copy_of

WIDTH = 6


class Part(nn.Module):
    """A layer with a batch norm and a dropout, whose forwards and products are counted."""

    products: list[str]

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 9), nn.Tanh(), nn.Dropout(0.3), nn.Linear(9, WIDTH))
        self.register_buffer("forwards", torch.zeros(1), persistent=False)
        self.calls: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append(1)
        return x + self.mlp(self.norm(x))


def model(layers: int = 4) -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(*(Part() for _ in range(layers))).double()


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    return tuple(torch.randn(16, WIDTH, dtype=torch.float64, generator=generator) for _ in range(2))


CHOICES: dict[str, Any] = {
    "full": "full",
    "by name": [r"\d+\.mlp"],
    "one stage": {1: "full"},
    "policy": Recompute(policy=lambda ctx, op, *args, **kwargs: CheckpointPolicy.PREFER_RECOMPUTE),
    "products kept": Recompute(
        policy=lambda ctx, op, *args, **kwargs: (
            CheckpointPolicy.MUST_SAVE
            if op in (torch.ops.aten.addmm.default, torch.ops.aten.mm.default)
            else CheckpointPolicy.PREFER_RECOMPUTE
        )
    ),
}


@pytest.mark.parametrize("schedule", ["one_f_one_b", "zb_h1", "zb_v", "gpipe"])
@pytest.mark.parametrize("choice", CHOICES)
def test_recomputation_changes_no_bit(schedule: str, choice: str):
    common: dict[str, Any] = {"num_ranks": 2, "schedule": schedule, "num_microbatches": 4, "seed": 7}
    plain = run(model(), [data(), data()], **common)
    found = run(model(), [data(), data()], recompute=CHOICES[choice], **common)
    assert_same(found.grads, plain.grads)
    assert [[loss.item() for loss in rank] for rank in found.losses] == [
        [loss.item() for loss in rank] for rank in plain.losses
    ]


@pytest.mark.parametrize(("schedule", "choice", "calls"), [
    ("one_f_one_b", "none", 4),
    ("one_f_one_b", "full", 8),
    ("zb_h1", "full", 8),
    ("zb_h1", [r"\d+\.mlp"], 4),
])  # fmt: skip
def test_a_layer_runs_once_more_and_its_statistics_see_each_microbatch_once(schedule: str, choice: Any, calls: int):
    whole = model(2)

    def rank(transport: ps.LoopbackTransport) -> None:
        pipe = ps.Pipeline(
            whole, mse, transport=transport, schedule=schedule, num_microbatches=4, recompute=choice, seed=1
        )
        pipe.step(*data())

    ps.run_ranks(rank, 2, timeout_seconds=20)
    for part in whole:
        assert len(part.calls) == calls
        assert part.norm.num_batches_tracked == 4


def test_evaluation_recomputes_nothing():
    whole = model(2)

    def rank(transport: ps.LoopbackTransport) -> None:
        ps.Pipeline(whole, mse, transport=transport, num_microbatches=4, recompute="full").evaluate(*data())

    ps.run_ranks(rank, 2, timeout_seconds=20)
    assert [len(part.calls) for part in whole] == [4, 4]


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ("all", 'recompute=\'all\'; use "none", "full", a list'),
        ([r"7\.mlp"], r"matches no module; there are e.g. 1.mlp"),
        (["("], "is no regular expression"),
        ({5: "full"}, "recompute names stage 5; use stages from 0 to 1"),
    ],
)
def test_what_cannot_be_recomputed_is_said_at_the_start(choice: Any, words: str):
    def rank(transport: ps.LoopbackTransport) -> str:
        with pytest.raises(ModelError) as caught:
            ps.Pipeline(model(2), mse, transport=transport, num_microbatches=4, recompute=choice)
        return str(caught.value)

    for text in ps.run_ranks(rank, 2, timeout_seconds=20):
        assert words.replace("\\", "") in text


def test_a_copy_is_made_before_its_original_is_changed(monkeypatch: pytest.MonkeyPatch):
    """Symptom: one run in many ended with an AssertionError without words, inside torch's checkpointing.

    Cause: of two threads that share a stage one copied the modules while the other registered its hooks on them.
    """
    hooked: list[bool] = []

    def slow_copy(stage: Any) -> Any:
        deadline = time.monotonic() + (0.2 if threading.current_thread().name == "rank 1" else 0.0)
        while time.monotonic() < deadline and not any(part._forward_pre_hooks for part in stage.modules()):
            time.sleep(0.01)
        hooked.append(any(part._forward_pre_hooks for part in stage.modules()))
        return copy_of(stage)

    monkeypatch.setattr(own_stages, "copy_of", slow_copy)
    whole = model(2)

    def rank(transport: ps.LoopbackTransport) -> None:
        ps.Pipeline(whole, mse, transport=transport, schedule="dualpipe", num_microbatches=4, recompute="full", seed=1)

    ps.run_ranks(rank, 2, timeout_seconds=20)
    assert hooked == [False, False]


def parts_of(pipe: ps.Pipeline) -> list[Part]:
    return [part for work in pipe._stages.values() for part in work.module.modules() if isinstance(part, Part)]


def test_a_second_pipeline_of_the_same_modules_recomputes_what_it_says():
    """Symptom: without recompute= it recomputed all the same; a copy's statistics counted microbatches twice.

    Cause: hooks stay on the modules, and go with them into copies, but they acted on what they were registered on.
    """
    whole = model(2)

    def rank(transport: ps.LoopbackTransport) -> list[tuple[int, int]]:
        found = []
        for choice in ("full", "none", [r"\d+\.mlp"], "full"):
            pipe = ps.Pipeline(
                whole, mse, transport=transport, schedule="dualpipe", num_microbatches=4, recompute=choice, seed=1
            )
            parts = parts_of(pipe)
            before = [(len(part.calls), int(part.norm.num_batches_tracked)) for part in parts]
            pipe.step(*data())
            for part, (calls, tracked) in zip(parts, before, strict=True):
                found.append((len(part.calls) - calls, int(part.norm.num_batches_tracked) - tracked))
        return found

    for found in ps.run_ranks(rank, 2, timeout_seconds=20):
        assert found == [(4, 2)] * 2 + [(2, 2)] * 4 + [(4, 2)] * 2


class Drawing(nn.Module):
    """Draws when others have had time to draw, and notes what."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH, dtype=torch.float64))
        self.drawn: list[float] = []

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(0.003)
        noise = torch.rand(WIDTH, dtype=torch.float64)
        self.drawn.append(float(noise[0]))
        return x * self.weight.exp() * noise


def test_without_a_seed_too_a_layer_draws_its_numbers_again():
    """Symptom: gradients of a dropout that was not the forward's, where ranks are threads and there is no seed.

    Cause: they share a generator, and another rank drew between the note of where it stood and the draw.
    """
    whole = nn.Sequential(Drawing(), Drawing())

    def rank(transport: ps.LoopbackTransport) -> None:
        pipe = ps.Pipeline(whole, mse, transport=transport, schedule="gpipe", num_microbatches=8, recompute="full")
        for _ in range(2):  # in the first something is imported, and the ranks take turns
            pipe.step(*data())

    ps.run_ranks(rank, 2, timeout_seconds=20)
    for layer in whole:
        drawn = layer.drawn[16:]
        assert len(set(drawn)) == 8
        assert sorted(drawn[:8]) == sorted(drawn[8:])
