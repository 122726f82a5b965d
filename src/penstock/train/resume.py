"""Which checkpoint a run goes on from, and whether it is one of this model, this optimizer and this text."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from penstock.checkpoint import Manifest, latest, read_manifest
from penstock.errors import CheckpointError
from penstock.train.config import Config
from penstock.train.config_file import to_toml
from penstock.train.planned import asynchronous_schedule

MUST_AGREE = ("model.hf", "model.layers", "model.width", "model.heads", "run.dtype", "optimizer.name")
"""What the saved tensors presume, whether or not their shapes would show it."""

CURVE = (
    "pipeline.microbatches",
    "pipeline.replicas",
    "model.context",
    "model.dropout",
    "optimizer.learning_rate",
    "optimizer.warmup_steps",
    "optimizer.floor",
    "optimizer.weight_decay",
    "optimizer.betas",
    "optimizer.clip_norm",
    "optimizer.anneal_steps",
    "optimizer.discrepancy_decay",
    "run.steps",
    "run.batch_size",
    "run.seed",
)
"""What may be changed on purpose, but makes the run another one than if it had not been interrupted."""

ASYNCHRONOUS_CURVE = (
    "pipeline.ranks",
    "pipeline.schedule",
    "pipeline.partition",
    "checkpoint.every",
    "evaluate.every",
)
"""The same, where the schedule steps inside: how old gradients are, and where what is in flight is drained."""


def checkpoint_root(config: Config) -> Path:
    """Returns where the run keeps its checkpoints."""
    return Path(config.run.output) / "checkpoints"


def goes_on_in_place(config: Config) -> bool:
    """Returns whether the run continues the one in its own output directory."""
    resume = config.run.resume
    if resume in ("", "latest"):
        return bool(resume)
    return Path(resume).resolve().is_relative_to(checkpoint_root(config).resolve())


def resume_path(config: Config) -> Path | None:
    """Returns the checkpoint to go on from, None for a run that starts anew.

    Raises:
        CheckpointError: there is none, or it is damaged, or beyond the last step.
    """
    if not config.run.resume:
        return None
    path = latest(checkpoint_root(config)) if config.run.resume == "latest" else Path(config.run.resume)
    if path is None:
        raise CheckpointError(f"{checkpoint_root(config)} holds no checkpoint to resume; start without --run.resume")
    manifest = read_manifest(path)
    if manifest.step > config.run.steps:
        raise CheckpointError(
            f"{path} is of step {manifest.step} and run.steps={config.run.steps}; "
            f"ask for more steps to go on, e.g. --run.steps {2 * manifest.step}"
        )
    return path


def check_same_run(config: Config, path: Path, *, data_digest: str) -> None:
    """Refuses a checkpoint of another model, optimizer or text.

    Raises:
        CheckpointError: names what differs, with both values.
    """
    manifest = read_manifest(path)
    if "config" not in manifest.extra:
        raise CheckpointError(f"{path} was not saved by penstock train; name a checkpoint that was")
    for key, saved, now in _differing(config, manifest, MUST_AGREE):
        raise CheckpointError(
            f"{path} was saved with {key}={saved} and this run has {now}; "
            f"resume with --{key.replace('_', '-')} {saved}, or start anew without --run.resume"
        )
    if manifest.extra.get("data_digest") != data_digest:
        raise CheckpointError(
            f"{path} was trained on other text than data.paths and data.held_out name now; "
            "resume with the same text, or start anew without --run.resume"
        )


def changes_of_curve(config: Config, path: Path) -> list[str]:
    """Returns in words what was changed so that the run is not the one that was interrupted."""
    keys = CURVE if asynchronous_schedule(config) is None else (*CURVE, *ASYNCHRONOUS_CURVE)
    return [f"{key} is {now}, it was {saved}" for key, saved, now in _differing(config, read_manifest(path), keys)]


def nothing_left(config: Config) -> str:
    """Returns what to say if the run to be resumed has made its last step already, else an empty string."""
    path = resume_path(config)
    if path is None or read_manifest(path).step < config.run.steps:
        return ""
    return (
        f"{path} is of step {config.run.steps}, the last of run.steps={config.run.steps}: nothing is left to do; "
        f"ask for more steps to go on, e.g. --run.steps {2 * config.run.steps}"
    )


def _differing(config: Config, manifest: Manifest, keys: Sequence[str]) -> Iterator[tuple[str, Any, Any]]:
    """Yields key, saved value and present value; keys that the checkpoint does not know are passed over."""
    saved, now = tomllib.loads(manifest.extra.get("config", "")), tomllib.loads(to_toml(config))
    for path in keys:
        section, key = path.split(".")
        values = saved.get(section, {})
        if key in values and values[key] != now[section][key]:
            yield path, values[key], now[section][key]
