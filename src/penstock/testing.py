"""Is the pipeline right? The unsplit model over the same microbatches is the oracle for loss and gradients."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from penstock.errors import ModelError, PenstockError, told
from penstock.ir.schedule import Schedule
from penstock.models import LayerSpec, Stage, cut
from penstock.models.lazy import built
from penstock.partition import Partition
from penstock.runtime import LoopbackTransport, Pipeline, run_ranks
from penstock.runtime.batch.feed import WeightFunction
from penstock.runtime.batch.microbatches import BatchRule, BatchRules, even_sizes
from penstock.runtime.randomness import keyed_layers
from penstock.runtime.stage_work import LossFunction
from penstock.schedules.sizes import check_sizes


def reference_step(  # noqa: PLR0913  # the arguments of a Pipeline and of its step, in one call
    model: Any,
    loss_fn: LossFunction,
    inputs: Any,
    targets: Any,
    *,
    num_microbatches: int,
    weight_fn: WeightFunction | None = None,
    seed: int | None = None,
    step: int = 0,
    first_microbatch: int = 0,
    batch_rules: Mapping[str, BatchRule] | None = None,
) -> torch.Tensor:
    """Returns the loss of one step of the unsplit model itself: gradients are added to `.grad`, buffers move.

    The microbatches run one after another. The gradient is that of Σ loss_i · w_i / Σ w_i, added up in their order.

    Args:
        model: what a Pipeline takes.
        loss_fn: as for Pipeline.
        inputs: the batch.
        targets: likewise.
        num_microbatches: m.
        weight_fn: as for Pipeline.
        seed: as for Pipeline.
        step: number of the step, a key of its random numbers.
        first_microbatch: number of the first microbatch, likewise: r · m where the batch is that of data-parallel
            replica r.
        batch_rules: as for Pipeline.
    """
    rules = BatchRules(batch_rules)
    divide = partial(even_sizes, num_microbatches=num_microbatches)
    sizes = rules.sizes(inputs, name="inputs", divide=divide, num_microbatches=num_microbatches)
    counts = rules.sizes(targets, name="targets", divide=divide, num_microbatches=num_microbatches)
    microbatches = rules.split(inputs, sizes, name="inputs")
    answers = rules.split(targets, counts, name="targets")
    weights = [float(weight_fn(answer)) for answer in answers] if weight_fn else [float(count) for count in counts]
    total = math.fsum(weights)
    forward = _unsplit(model, seed=seed, step=step)
    losses = []
    for number, (microbatch, answer) in enumerate(zip(microbatches, answers, strict=True)):
        loss = loss_fn(forward(microbatch, first_microbatch + number), answer)
        scale = weights[number] / total
        if loss.requires_grad:
            (loss * scale).backward()
        value = loss.detach().double().reshape(())
        losses.append(value * scale if scale else torch.zeros_like(value))  # of weight 0: perhaps the mean of nothing
    return torch.stack(losses).sum()


def reference_gradients(  # noqa: PLR0913  # as above
    model: Any,
    loss_fn: LossFunction,
    inputs: Any,
    targets: Any,
    *,
    num_microbatches: int,
    weight_fn: WeightFunction | None = None,
    seed: int | None = None,
    batch_rules: Mapping[str, BatchRule] | None = None,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Returns the loss of one step of a copy of the unsplit model, and the gradient of each parameter that has one.

    Arguments as for `reference_step`; random numbers are those of a pipeline's first step. The model stays as it is.
    """
    model = _with_numbers(model, seed)
    whole = _whole(model)
    whole.zero_grad()
    loss = reference_step(
        model,
        loss_fn,
        inputs,
        targets,
        num_microbatches=num_microbatches,
        weight_fn=weight_fn,
        seed=seed,
        batch_rules=batch_rules,
    )
    return loss, {name: value.grad for name, value in whole.named_parameters() if value.grad is not None}


@dataclass(frozen=True)
class ReferenceCheck:
    """How far a pipeline is from the unsplit model; print it.

    Attributes:
        schedule: name of the schedule that ran.
        num_ranks: p.
        loss_error: relative error of the loss.
        errors: parameter -> its gradient's largest deviation, relative to its largest entry; 0 is bit for bit.
    """

    schedule: str
    num_ranks: int
    loss_error: float
    errors: Mapping[str, float]

    @property
    def worst(self) -> float:
        """The largest error of all gradients and the loss."""
        return max([self.loss_error, *self.errors.values()])

    def __str__(self) -> str:
        width = max(map(len, ["loss", *self.errors]))
        rows = sorted(self.errors.items(), key=lambda item: -item[1])
        lines = [f"{self.schedule} on {self.num_ranks} ranks against the unsplit model, relative errors:"]
        lines += [f"  {name:<{width}}  {_shown(error)}" for name, error in [("loss", self.loss_error), *rows]]
        return "\n".join(lines)


def check_against_reference(  # noqa: PLR0913  # as above
    model: Any,
    loss_fn: LossFunction,
    inputs: Any,
    targets: Any,
    *,
    num_ranks: int,
    num_microbatches: int,
    schedule: str | Path | Schedule = "one_f_one_b",
    partition: Partition | Sequence[int] | Sequence[str] | None = None,
    weight_fn: WeightFunction | None = None,
    seed: int | None = None,
    batch_rules: Mapping[str, BatchRule] | None = None,
) -> ReferenceCheck:
    """Returns how far the gradients of one step over loopback are from those of the unsplit model.

    The model stays as it is; copies of it run. Arguments as for Pipeline; `num_ranks` ranks are threads.

    Raises:
        UserError: what Pipeline raises for these arguments.
        ModelError: the unsplit model fails on this batch.
    """
    check_sizes("check", num_ranks=num_ranks, num_microbatches=num_microbatches)
    try:
        loss, expected = reference_gradients(
            model,
            loss_fn,
            inputs,
            targets,
            num_microbatches=num_microbatches,
            weight_fn=weight_fn,
            seed=seed,
            batch_rules=batch_rules,
        )
    except PenstockError:
        raise
    except Exception as error:  # the user's model or loss, which may raise anything
        raise ModelError(f"the unsplit model, or its loss, {told(error)}; it has to run by itself first") from error
    twin = copy.deepcopy(model)
    if cut(twin).fill is None:  # else the pipeline makes its parameters, without gradients
        _whole(twin).zero_grad()

    def rank(transport: LoopbackTransport) -> tuple[Pipeline, torch.Tensor, dict[str, torch.Tensor]]:
        pipe = Pipeline(
            twin,
            loss_fn,
            transport=transport,
            schedule=schedule,
            num_microbatches=num_microbatches,
            partition=partition,
            weight_fn=weight_fn,
            seed=seed,
            batch_rules=batch_rules,
        )
        loss = pipe.step(inputs, targets)
        return pipe, loss, {name: p.grad for name, p in pipe.named_parameters() if p.grad is not None}

    parts = run_ranks(rank, num_ranks)
    found = {name: grad for _, _, grads in parts for name, grad in grads.items()}
    names = [*expected, *(name for name in found if name not in expected)]
    pipe = parts[0][0]
    tied = {name: tie.holders[0][1] for tie in pipe.plan.ties for _, name in tie.holders}  # a copy -> whose it is
    errors = {name: _relative_error(found.get(name), expected.get(tied.get(name, name))) for name in names}
    return ReferenceCheck(pipe.schedule.name, num_ranks, _relative_error(parts[0][1], loss), errors)


def _with_numbers(model: Any, seed: int | None) -> Any:
    """Returns a copy of the model; what a pipeline of this seed would build or draw is there."""
    if isinstance(model, list | tuple) and any(isinstance(layer, LayerSpec) for layer in model):
        return copy.deepcopy(built(model, seed))
    layers = cut(copy.deepcopy(model))
    if layers.fill is None:
        return copy.deepcopy(model)
    layers.fill([_whole(layers)], seed)
    return replace(layers, fill=None)


def _whole(model: Any) -> Stage:
    """Returns all layers of `model` as one module, by their names; a tied parameter has one of them."""
    layers = cut(model)
    return layers.stage(Partition((0, layers.num_layers)), 0)


def _unsplit(model: Any, *, seed: int | None, step: int) -> Callable[[Any, int], Any]:
    """Returns (a microbatch, its number) -> what the unsplit model makes of it, by layer where there is a seed."""
    if seed is None and isinstance(model, torch.nn.Sequential):
        return lambda value, _: model(value)
    layers = cut(model)
    by_itself = layers.unsplit
    if seed is None and by_itself is not None:
        return lambda value, _: by_itself(value)
    whole = layers.stage(Partition((0, layers.num_layers)), 0)

    def forward(value: Any, number: int) -> Any:
        if seed is not None:
            whole.surrounding = keyed_layers(seed, step=step, microbatch=number)
        return whole(value)

    return forward


def _relative_error(found: torch.Tensor | None, expected: torch.Tensor | None) -> float:
    """Returns the largest deviation relative to the largest entry; a gradient that is not there counts as 0."""
    if found is None or expected is None:
        there = found if found is not None else expected
        return math.inf if there is not None and bool(there.any()) else 0.0
    if found.shape != expected.shape:
        return math.inf
    if torch.equal(found, expected):
        return 0.0
    error = (found.double() - expected.double()).abs().max() / expected.double().abs().max()
    return float(error) if not error.isnan() else math.inf


def _shown(error: float) -> str:
    return "0 (bit for bit)" if error == 0 else f"{error:.1e}"
