"""Everything that can be known to fail is found here, before a process is started."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from penstock.checkpoint import latest, read_manifest
from penstock.errors import CheckpointError, ConfigError
from penstock.partition import Partition
from penstock.schedules import named_schedule
from penstock.train.config import Config
from penstock.train.data import Corpus, batch, held_out_batches, read_corpus
from penstock.verifier import verify


def check_everything(config: Config) -> None:
    """Returns if a run of `config` can start on this host; makes its output directory.

    Raises:
        UserError: a schedule, partition, text, directory, checkpoint, device or library that cannot serve.
    """
    check_layout(config)
    check_device(config)
    check_output(Path(config.run.output))
    resume_path(config)
    check_corpus(config, read_corpus(config.data.paths, held_out=config.data.held_out))
    if config.log.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise ConfigError("log.tensorboard needs TensorBoard; pip install 'penstock[tensorboard]', or leave it off")


def check_layout(config: Config) -> None:
    """Refuses a schedule that is not defined at these sizes, and a partition that does not take every layer."""
    layout = config.pipeline
    schedule = named_schedule(layout.schedule, num_ranks=layout.ranks, num_microbatches=layout.microbatches)
    verify(schedule)
    num_layers = config.model.layers + 2  # embed, blocks, head
    if layout.partition:
        Partition.of_sizes(layout.partition).check(num_layers, schedule.num_stages)
    else:
        Partition.uniform(num_layers, schedule.num_stages)


def check_device(config: Config) -> None:
    """Refuses a device that this host does not have."""
    import torch

    if config.run.device == "cpu":
        return
    if not torch.cuda.is_available():
        raise ConfigError('run.device="cuda" and this host has no CUDA device; use --run.device cpu')
    if torch.cuda.device_count() < config.pipeline.ranks:
        raise ConfigError(
            f"pipeline.ranks={config.pipeline.ranks} and this host has {torch.cuda.device_count()} CUDA devices; start "
            "fewer ranks, or torchrun on more hosts"
        )


def check_output(output: Path) -> None:
    """Makes the output directory; refuses one that cannot be written."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        probe = output / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ConfigError(
            f"run.output={output} cannot be written ({os.strerror(error.errno or 0)}); choose another directory"
        ) from None


def check_corpus(config: Config, corpus: Corpus) -> None:
    """Refuses a text that is too short for one batch or one held-out window."""
    sizes = {"batch_size": config.run.batch_size, "context": config.model.context}
    batch(corpus, step=0, seed=config.run.seed, **sizes)
    held_out_batches(corpus, batches=config.evaluate.batches, **sizes)


def checkpoint_root(config: Config) -> Path:
    """Returns where the run keeps its checkpoints."""
    return Path(config.run.output) / "checkpoints"


def resume_path(config: Config) -> Path | None:
    """Returns the checkpoint to go on from, None for a run that starts anew.

    Raises:
        CheckpointError: there is none, or it is damaged or foreign.
    """
    if not config.run.resume:
        return None
    path = latest(checkpoint_root(config)) if config.run.resume == "latest" else Path(config.run.resume)
    if path is None:
        raise CheckpointError(f"{checkpoint_root(config)} holds no checkpoint to resume; start without --run.resume")
    manifest = read_manifest(path)
    if manifest.step > config.run.steps:
        raise CheckpointError(
            f"{path} is of step {manifest.step} and run.steps={config.run.steps}; ask for more steps to go on"
        )
    return path
