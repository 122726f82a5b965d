"""The columns of the matrix: what a user may want of a schedule. Each has a model, data and a loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from tests.runtime.matrix import loops, models
from tests.runtime.matrix.models import LENGTH, VOCABULARY, WIDTH
from tests.runtime.matrix.subjects import Found, Subject
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy

import penstock as ps
from penstock.ir.schedule import Schedule
from penstock.ir.steps import SYNCHRONOUS
from penstock.runtime.memory.recompute import Recompute

mse = nn.functional.mse_loss
Batch = tuple[Any, Any]


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _numbers(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=_generator(seed))


def rows(size: int, seed: int) -> Batch:
    return _numbers(size, WIDTH, seed=2 * seed), _numbers(size, WIDTH, seed=2 * seed + 1)


def single_rows(size: int, seed: int) -> Batch:
    inputs, targets = rows(size, seed)
    return inputs.float(), targets.float()


def overflowing_rows(size: int, seed: int) -> Batch:
    """Those of the second step have one target that no gradient survives."""
    inputs, targets = single_rows(size, seed)
    if seed // 10 == 1:
        targets[0, 0] = 1e30
    return inputs, targets


def sequences(size: int, seed: int) -> Batch:
    """Another length in each step."""
    shape = (size, 2 + seed // 10 % 3, WIDTH)
    return _numbers(*shape, seed=2 * seed), _numbers(*shape, seed=2 * seed + 1)


def single_sequences(size: int, seed: int) -> Batch:
    inputs, targets = sequences(size, seed)
    return inputs.float(), targets.float()


def microbatches(size: int, seed: int) -> Batch:
    """A list of microbatches, each with its own number of samples and its own length."""
    shapes = [(1 + (i + seed) % 3, 2 + (2 * i + seed) % 4, WIDTH) for i in range((size + 1) // 2)]
    inputs, targets = (
        [_numbers(*shape, seed=100 * seed + 2 * i + which) for i, shape in enumerate(shapes)] for which in (0, 1)
    )
    return inputs, targets


def sentences(size: int, seed: int) -> Batch:
    """Of the targets some are ignored, another number in each sentence; of every fourth sentence all are."""
    ids, targets = (torch.randint(VOCABULARY, (size, LENGTH), generator=_generator(2 * seed + i)) for i in (0, 1))
    for sentence in range(size):
        targets[sentence, (3 * sentence + seed) % LENGTH + 1 :] = -100
        if sentence % 4 > 1:
            targets[sentence] = -100
    return ids, targets


@dataclass(frozen=True)
class Case:
    """One column.

    Attributes:
        model: number of layers -> model.
        rows: number of samples, seed -> batch.
        loss_fn: as for Pipeline.
        loop: what is done; returns what is compared, tensors by what they are.
        arguments: of Pipeline alone.
        reference: of Pipeline and of `reference_step`.
        schedule: what becomes of the schedule first.
        tolerance: relative to the largest entry.
        tolerance_of_shares: likewise where data-parallel replicas share a step, or it has several optimizer steps: the
            gradient of a microbatch starts from another number there, which low precision rounds in another way.
        inside: whether a schedule that steps inside can show it.
        grows: the later data-parallel replica has more samples.
    """

    model: Callable[[int], nn.Sequential] = models.dense
    rows: Callable[[int, int], Batch] = rows
    loss_fn: Callable[[Any, Any], Tensor] = mse
    loop: Callable[[Subject], Found] = loops.accumulate
    arguments: Mapping[str, Any] = field(default_factory=dict)
    reference: Mapping[str, Any] = field(default_factory=dict)
    schedule: Callable[[Schedule], Schedule] = lambda schedule: schedule
    tolerance: float = 1e-12
    tolerance_of_shares: float = 1e-12
    inside: bool = True
    grows: bool = True

    def allowed(self, schedule: Schedule, *, replicas: int = 1) -> float:
        """Returns how large an error may be."""
        shared = replicas > 1 or schedule.weight_rule not in SYNCHRONOUS
        return self.tolerance_of_shares if shared else self.tolerance

    def data(self, num_microbatches: int, k: int, replica: int, *, ragged: bool = False) -> Batch:
        """Returns batch k of a data-parallel replica; a ragged one lacks a sample."""
        size = 2 * num_microbatches * (1 + replica * self.grows)
        return self.rows(size - ragged, 10 * k + replica)


def _offloaded(schedule: Schedule) -> Schedule:
    most = max(ps.verify(schedule).peak_activations)
    return ps.offloaded(schedule, max(1, most - 1))


def _products_kept(_: object, operation: object, *args: object, **kwargs: object) -> CheckpointPolicy:
    kept = operation in (torch.ops.aten.addmm.default, torch.ops.aten.mm.default)
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


SEEDED = {"seed": 5}
LISTS = {"batch_rules": {"inputs": "list", "targets": "list"}}
RECOMPUTED = partial(Case, models.normed, reference=SEEDED)

CASES: dict[str, Case] = {
    "mean": Case(),
    "tokens": Case(
        models.worded,
        sentences,
        models.word_loss,
        reference={"weight_fn": models.words},
        inside=False,
    ),
    "dropout": Case(models.dropped, reference=SEEDED),
    "batch norm": Case(models.normed, reference=SEEDED),
    "recompute full": RECOMPUTED(arguments={"recompute": "full"}),
    "recompute by policy": RECOMPUTED(arguments={"recompute": Recompute(policy=_products_kept)}),
    "recompute by module": RECOMPUTED(arguments={"recompute": [r"\d+\.inside", r"\d+\.down"]}),
    "recompute a stage": RECOMPUTED(arguments={"recompute": {0: "full"}}),
    "frozen start": Case(models.frozen_start),
    "frozen end": Case(models.frozen_end),
    "frozen here and there": Case(models.frozen_here_and_there),
    "biases alone": Case(models.biases_alone),
    "adapters": Case(models.adapted),
    "hooks": Case(loop=loops.hooked),
    "optimizer in backward": Case(loop=loops.stepping_in_backward, inside=False),
    "auxiliary loss": Case(models.auxiliary, loss_fn=models.summed_loss),
    "trees": Case(models.trees, loss_fn=models.tree_loss),
    "torch's attention": Case(models.attending, sequences),
    "lengths by step": Case(rows=sequences),
    "lengths by microbatch": Case(rows=microbatches, reference=LISTS, inside=False, grows=False),
    "tied": Case(models.tied, sentences, models.word_loss, reference={"weight_fn": models.words}, inside=False),
    "tied throughout": Case(models.tied_throughout, inside=False),
    "tied inside": Case(models.tied_inside, inside=False),
    "tied and recomputed": Case(models.tied_throughout, arguments={"recompute": "full"}, inside=False),
    "trained": Case(loop=loops.trained, tolerance=1e-9, tolerance_of_shares=1e-9, inside=False),
    "tied and trained": Case(
        models.tied_inside, loop=loops.trained, tolerance=1e-9, tolerance_of_shares=1e-9, inside=False
    ),
    "frozen and thawed": Case(loop=loops.thawed, inside=False),
    "bf16": Case(
        models.single, single_rows, models.float_loss, loops.in_bf16, tolerance=1e-4, tolerance_of_shares=3e-2
    ),
    "bf16, torch's attention": Case(
        models.single_attending,
        single_sequences,
        models.float_loss,
        loops.in_bf16,
        tolerance=1e-3,
        tolerance_of_shares=3e-2,
    ),
    "bf16 recomputed": Case(
        models.single,
        single_rows,
        models.float_loss,
        loops.in_bf16,
        {"recompute": "full"},
        tolerance=1e-4,
        tolerance_of_shares=3e-2,
    ),
    "fp16 with a scaler": Case(
        models.single,
        overflowing_rows,
        models.float_loss,
        loops.scaled,
        tolerance=1e-2,
        tolerance_of_shares=3e-2,
        inside=False,
    ),
    "offloaded": Case(schedule=_offloaded),
    "offloaded and recomputed": Case(
        models.dropped, arguments={"recompute": "full"}, reference=SEEDED, schedule=_offloaded
    ),
}
