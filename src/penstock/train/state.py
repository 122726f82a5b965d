"""What a run saves and resumes: weights, optimizer and step, keyed by the model's own names."""

from __future__ import annotations

from pathlib import Path

import torch

from penstock.checkpoint import Saver, load
from penstock.runtime import Pipeline
from penstock.runtime.asynchronous.optimizer_state import stepped_stages_of
from penstock.train.config import Config
from penstock.train.config_file import to_toml
from penstock.train.resume import checkpoint_root


def saver_of(pipe: Pipeline, config: Config) -> Saver:
    """Returns what saves the run's checkpoints while training goes on."""
    return Saver(checkpoint_root(config), pipe, keep=config.checkpoint.keep)


def save_state(
    saver: Saver, optimizer: torch.optim.Optimizer | None, *, config: Config, step: int, data_digest: str
) -> Path:
    """Returns the directory of the checkpoint of `step`, complete once the saver has waited. Every rank calls it.

    Optimizers inside the schedule are saved too.

    Raises:
        CheckpointError: a rank could not write, or could not the last time; earlier checkpoints are intact.
    """
    extra = {"config": to_toml(config), "data_digest": data_digest}
    return saver.save(optimizer=optimizer, step=step, extra=extra)


def resume_state(path: Path, pipe: Pipeline, optimizer: torch.optim.Optimizer | None) -> int:
    """Returns the step to go on with, having put weights and optimizer state of `path` in place.

    The checkpoint may have been saved by another number of ranks or under another schedule. Weight decay, betas and the
    like stay as the configuration has them now. Every rank calls it.

    Raises:
        CheckpointError: on every rank alike: a damaged file, or another model.
    """
    inside = [stage.optimizer for stage in stepped_stages_of(pipe).values()]
    groups = [group for each in [optimizer, *inside] if each is not None for group in each.param_groups]
    settings = [{key: value for key, value in group.items() if key != "params"} for group in groups]
    step = load(path, pipe, optimizer=optimizer).step
    for group, now in zip(groups, settings, strict=True):
        group.update(now)
    pipe.steps_done = step
    return step
