"""Training under a schedule that steps the weights inside: each stage's optimizer, its learning rate, its steps.

batches   0 1 2 … 169 │ 170 … 339 │      the pipeline drains only where something is evaluated or saved
steps     m/n in each batch and stage     n microbatches a step, at the learning rate of the batch
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from penstock.ir.schedule import Schedule, WeightRule
from penstock.runtime import Pipeline, clip_by_stage, pipemare_delays
from penstock.runtime.asynchronous.delays import pipemare_share
from penstock.runtime.asynchronous.optimizer_state import stepped_stages_of
from penstock.runtime.asynchronous.step_shares import step_groups
from penstock.runtime.asynchronous.stepping import OptimizerFunction
from penstock.train.config import Config
from penstock.train.data import Batch, Corpus, batch
from penstock.train.journal import Journal, StepFigures
from penstock.train.optimizers import build_optimizer, learning_rate, set_learning_rate
from penstock.train.state import save_state, saver_of


def stage_optimizer(config: Config) -> OptimizerFunction:
    """Returns what makes the optimizer of a stage, its gradient bounded by `optimizer.clip_norm`."""

    def make(parameters: Any) -> torch.optim.Optimizer:
        return build_optimizer(config.optimizer, parameters)

    return clip_by_stage(make, config.optimizer.clip_norm) if config.optimizer.clip_norm else make


def notes(config: Config, schedule: Schedule) -> Iterator[str]:
    """Yields what a reader of the run's numbers has to know."""
    steps = max(map(len, step_groups(schedule)))
    yield (
        f"{schedule.name} steps the weights inside, {steps} times a batch: a loss is the mean of its batch's, each "
        "under the weights that it met; a held-out loss is that of the newest weights"
    )
    if config.optimizer.clip_norm:
        yield f"optimizer.clip_norm={config.optimizer.clip_norm} bounds the gradient of each stage by itself"


def follow_curve(config: Config, pipe: Pipeline) -> None:
    """Lets each stage's optimizer step at the learning rate of its batch; called once, when a resumed run is loaded."""
    schedule, anneal = pipe.schedule, config.optimizer.anneal_steps
    delays = pipemare_delays(schedule) if schedule.weight_rule is WeightRule.LATEST else ()
    for stage, stepped in stepped_stages_of(pipe).items():
        if stepped.optimizer is None:
            continue
        a_batch = len(step_groups(schedule)[stage])
        share: Callable[[int], float] = _whole
        if anneal:
            share = partial(pipemare_share, delay=delays[stage], anneal_steps=anneal * a_batch)
        rate = StageRate(config, a_batch=a_batch, taken=pipe.steps_done * a_batch, share=share)
        stepped.optimizer.register_step_pre_hook(rate)


class StageRate:
    """Sets the learning rate of one stage's optimizer before each of its steps.

    Args:
        config: of the run.
        a_batch: optimizer steps in a batch.
        taken: optimizer steps already made.
        share: optimizer step -> the share of the curve's rate that the stage takes.
    """

    def __init__(self, config: Config, *, a_batch: int, taken: int, share: Callable[[int], float]) -> None:
        self._config, self._a_batch, self._taken, self._share = config, a_batch, taken, share

    def __call__(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        """Sets the rate of the optimizer step that is about to be made."""
        config = self._config
        rate = learning_rate(config.optimizer, step=self._taken // self._a_batch, steps=config.run.steps)
        set_learning_rate(optimizer, rate * self._share(self._taken))
        self._taken += 1


def run_batches(
    config: Config,
    corpus: Corpus,
    pipe: Pipeline,
    *,
    journal: Journal,
    evaluate: Callable[[], float],
    share: Callable[[Batch], Batch],
) -> tuple[Path | None, float]:
    """Runs the batches that are left, at least one; returns the last checkpoint and the last held-out loss.

    What is in flight is drained before something is evaluated or saved, and nowhere else. So a checkpoint opens in any
    layout, and a run that is resumed drains where the unbroken one does.

    Args:
        config: of the run.
        corpus: its text.
        pipe: the pipeline, with `follow_curve` on it.
        journal: told of each loss.
        evaluate: gives the held-out loss.
        share: a batch -> this data-parallel copy's part of it.
    """
    checkpoint, held_out = None, float("nan")
    saver = saver_of(pipe, config)
    while pipe.steps_done < config.run.steps:
        stop = next_stop(config, pipe.steps_done)
        _tell(config, pipe, _losses(pipe, map(share, _batches(config, corpus, pipe.steps_done, stop))), journal)
        if _due(stop, config.evaluate.every, config.run.steps):
            held_out = evaluate()
            journal.held_out(stop, held_out)
        if _due(stop, config.checkpoint.every, config.run.steps):
            checkpoint = save_state(saver, None, config=config, step=stop, data_digest=corpus.digest)
    saver.wait()
    return checkpoint, held_out


def next_stop(config: Config, done: int) -> int:
    """Returns the batch behind `done` after which something is evaluated or saved."""
    stops = [done - done % every + every for every in (config.evaluate.every, config.checkpoint.every) if every]
    return min([*stops, config.run.steps])


def _tell(config: Config, pipe: Pipeline, losses: Iterator[torch.Tensor], journal: Journal) -> None:
    tokens = config.run.batch_size * config.model.context
    begin = time.perf_counter()
    for done, loss in enumerate(losses, pipe.steps_done + 1):
        rate = learning_rate(config.optimizer, step=done - 1, steps=config.run.steps)
        now = time.perf_counter()
        journal.step(StepFigures(done, loss.item(), None, rate, tokens / (now - begin)))
        begin = now


def _losses(pipe: Pipeline, batches: Iterator[Batch]) -> Iterator[torch.Tensor]:
    """Yields the loss of each batch; stages that take turns on several ranks end each batch with a flush."""
    if pipe.schedule.placement.num_replicas == 1:
        yield from pipe.run(batches)
        return
    for inputs, targets in batches:
        yield pipe.step(inputs, targets)


def _batches(config: Config, corpus: Corpus, first: int, stop: int) -> Iterator[Batch]:
    for step in range(first, stop):
        yield batch(
            corpus,
            step=step,
            batch_size=config.run.batch_size,
            context=config.model.context,
            seed=config.run.seed,
        )


def _due(step: int, every: int, last: int) -> bool:
    return step == last or (every > 0 and step % every == 0)


def _whole(step: int) -> float:
    return 1.0
