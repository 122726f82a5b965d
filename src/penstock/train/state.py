"""What a run saves and resumes: weights, optimizer and step, keyed by the model's own names."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from penstock.checkpoint import (
    Shard,
    check_fits,
    load,
    names_for,
    optimizer_tensors,
    read_manifest,
    restore_optimizer,
    save,
)
from penstock.errors import CheckpointError
from penstock.runtime import Pipeline
from penstock.train.config import Config
from penstock.train.config_file import to_toml
from penstock.train.resume import checkpoint_root

_MODEL = "model/"


def save_state(
    pipe: Pipeline, optimizer: torch.optim.Optimizer, *, config: Config, step: int, data_digest: str
) -> Path:
    """Returns the directory of the checkpoint of `step`. Every rank calls it.

    Raises:
        CheckpointError: a rank could not write; earlier checkpoints are intact.
    """
    owned = pipe.state_dict()
    names = {parameter: name for name, parameter in pipe.named_parameters() if name in owned}
    tensors = {f"{_MODEL}{name}": value for name, value in owned.items()}
    tensors |= optimizer_tensors(optimizer, names)
    return save(
        checkpoint_root(config),
        Shard(tensors, plan=pipe.plan.proof.program.digest),
        step=step,
        rank=pipe.rank,
        exchange=pipe.exchange,
        keep=config.checkpoint.keep,
        extra={"config": to_toml(config), "data_digest": data_digest},
    )


def resume_state(path: Path, pipe: Pipeline, optimizer: torch.optim.Optimizer) -> int:
    """Returns the step to go on with, having put weights and optimizer state of `path` in place.

    The checkpoint may have been saved by another number of ranks or under another schedule. Every rank calls it.

    Raises:
        CheckpointError: on every rank alike: a damaged file, or another model.
    """
    problem, step = "", 0
    tensors: dict[str, torch.Tensor] = {}
    try:
        step, tensors = _read(path, pipe)
    except CheckpointError as error:
        problem = str(error)
    problems = [json.loads(reply) for reply in pipe.exchange(json.dumps(problem).encode())]
    if any(problems):
        raise CheckpointError(next(text for text in problems if text))
    pipe.load_state_dict(
        {name.removeprefix(_MODEL): value for name, value in tensors.items() if name.startswith(_MODEL)}
    )
    restore_optimizer(optimizer, {parameter: name for name, parameter in pipe.named_parameters()}, tensors=tensors)
    pipe.steps_done = step
    return step


def _read(path: Path, pipe: Pipeline) -> tuple[int, dict[str, torch.Tensor]]:
    """Returns the step and what this rank needs: what it owns, and the optimizer's state of its copies too."""
    manifest = read_manifest(path)
    own = pipe.state_dict()
    check_fits(path, manifest, expected={f"{_MODEL}{name}": value for name, value in own.items()})
    held = {*own, *(name for name, _ in pipe.named_parameters())}
    return manifest.step, load(path, names_for(manifest, held))
