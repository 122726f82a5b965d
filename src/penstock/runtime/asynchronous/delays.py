"""What asynchronous methods do to the optimizer against the age of their gradients: small functions for `Pipeline`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from penstock.errors import ModelError, ScheduleError
from penstock.ir.schedule import Schedule, WeightRule
from penstock.runtime.asynchronous.step_shares import step_groups
from penstock.runtime.asynchronous.stepping import OptimizerFunction


def pipemare_delays(schedule: Schedule) -> tuple[float, ...]:
    """Returns τ_k = (2(s-1-k)+1)/n of every stage k of s, in optimizer steps of n microbatches.

    Source: Yang et al. 2021 (PipeMare), section 2, which counts stages from 1.

    Raises:
        ScheduleError: a schedule that flushes, or whose backwards use the weights of their forwards.
    """
    if schedule.weight_rule is not WeightRule.LATEST:
        raise ScheduleError(
            f"{schedule.name} has the weight rule {schedule.weight_rule.value}; PipeMare's delays are those of "
            "the rule latest, e.g. of penstock.pipemare"
        )
    last = schedule.num_stages - 1
    per_step = [len(groups[0]) for groups in step_groups(schedule)]
    return tuple((2 * (last - stage) + 1) / per_step[stage] for stage in range(schedule.num_stages))


def pipemare_learning_rate(schedule: Schedule, *, anneal_steps: int) -> Callable[[Optimizer, int], LambdaLR]:
    """Returns PipeMare's rule for the learning rate, for `Pipeline(…, lr_scheduler=…)`.

    At optimizer step t stage k runs at lr · τ_k^(-q) with q = 1 - min(t / anneal_steps, 1): old gradients take small
    steps at first, and the rate of the optimizer in the end. A delay below one step leaves the rate as it is.

    Source: Yang et al. 2021 (PipeMare), section 3.1, technique T1.

    Args:
        schedule: what the Pipeline runs.
        anneal_steps: optimizer steps until the rate is the optimizer's own; a quarter of the training's is usual.

    Raises:
        ScheduleError: as for `pipemare_delays`, or anneal_steps below 1.
    """
    if anneal_steps < 1:
        raise ScheduleError(f"anneal_steps={anneal_steps}; use at least 1, e.g. a quarter of all optimizer steps")
    delays = pipemare_delays(schedule)

    def scheduler(optimizer: Optimizer, stage: int) -> LambdaLR:
        return LambdaLR(optimizer, partial(pipemare_share, delay=delays[stage], anneal_steps=anneal_steps))

    return scheduler


def nesterov_look_ahead(
    parameters: Sequence[nn.Parameter], *, lr: float, weight_decay: float = 0.01, beta1: float = 0.99
) -> Optimizer:
    """Returns the optimizer of the Nesterov variant of `pipedream`: NAdamW with a long momentum.

    The look-ahead of its step stands in for the steps that a stale gradient has not seen. Make it a function of the
    parameters alone with `functools.partial(nesterov_look_ahead, lr=3e-4)`.

    Source: Ajanthan et al. 2025, Nesterov method for asynchronous pipeline parallel optimization, with β₁ = 0.99.
    """
    return torch.optim.NAdam(
        parameters, lr=lr, betas=(beta1, 0.999), weight_decay=weight_decay, decoupled_weight_decay=True
    )


def pipemare_share(step: int, *, delay: float, anneal_steps: int) -> float:
    """Returns the share of its learning rate at which a stage of this delay makes optimizer step `step`."""
    exponent = 1 - min(step / anneal_steps, 1)
    return float(max(delay, 1.0) ** -exponent)


def clip_by_stage(make: OptimizerFunction, max_norm: float) -> OptimizerFunction:
    """Returns an optimizer function whose optimizers bound the norm of their stage's gradient before each step.

    For `Pipeline(…, optimizer=…)`. The norm is that of one stage, not of the whole model, for which every step would
    have to wait for all stages; copies of a stage clip alike.

    Args:
        make: a stage's parameters -> its optimizer.
        max_norm: the largest norm of one stage's gradient.

    Raises:
        ModelError: max_norm is not above 0.
    """
    if not max_norm > 0:
        raise ModelError(f"max_norm={max_norm}; use a number above 0, e.g. 1.0")

    def clipped(parameters: Sequence[nn.Parameter]) -> Optimizer:
        held = list(parameters)
        optimizer = make(held)
        optimizer.register_step_pre_hook(lambda *_: _clip(held, max_norm))
        return optimizer

    return clipped


def _clip(parameters: Sequence[nn.Parameter], max_norm: float) -> None:
    nn.utils.clip_grad_norm_(parameters, max_norm)
