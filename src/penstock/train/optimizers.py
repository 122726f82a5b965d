"""The optimizer of a run and its learning-rate curve, a pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch.nn import Parameter

from penstock.train.config import OptimizerConfig


def build_optimizer(config: OptimizerConfig, parameters: Iterable[Parameter]) -> torch.optim.Optimizer:
    """Returns AdamW, NAdamW or SGD; matrices are decayed, vectors are not."""
    held = list(parameters)
    groups = [
        {"params": [p for p in held if p.dim() > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in held if p.dim() <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.betas[0])
    if config.name == "nadamw":
        return torch.optim.NAdam(groups, lr=config.learning_rate, betas=config.betas, decoupled_weight_decay=True)
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas)


def learning_rate(config: OptimizerConfig, *, step: int, steps: int) -> float:
    """Returns the learning rate of `step` of `steps`, counted from 0: linear warm-up, then a cosine to the floor."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
    cosine = (1 + math.cos(math.pi * min(1.0, progress))) / 2
    return config.learning_rate * (config.floor + (1 - config.floor) * cosine)


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Gives all parameter groups the learning rate `value`."""
    for group in optimizer.param_groups:
        group["lr"] = value
