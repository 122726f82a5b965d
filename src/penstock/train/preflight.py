"""Everything that can be known to fail is found here, before a process is started."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from penstock.errors import ConfigError
from penstock.ir.schedule import Schedule, WeightRule
from penstock.partition import Partition
from penstock.runtime.auto import AUTO
from penstock.runtime.plan import check_runnable, choose_schedule
from penstock.train.config import Config
from penstock.train.data import Corpus, batch, held_out_batches, read_corpus
from penstock.train.model import check_model, layer_names, tokenizer_of
from penstock.train.planned import schedule_of
from penstock.train.resume import check_same_run, resume_path
from penstock.train.tokens import tokenized
from penstock.verifier import verify


def check_everything(config: Config, *, local_ranks: int) -> Corpus:
    """Returns the text to train on if a run of `config` can start on this host; makes its output directory.

    Args:
        config: of the run.
        local_ranks: how many of the ranks are on this host.

    Raises:
        UserError: a schedule, partition, text, directory, checkpoint, device or library that cannot serve.
    """
    check_model(config)
    check_layout(config)
    check_device(config, local_ranks=local_ranks)
    check_tensorboard(config)
    resume = resume_path(config)
    corpus = read_corpus(config.data.paths, held_out=config.data.held_out)
    tokenizer = tokenizer_of(config)
    if tokenizer is not None:
        corpus = tokenized(corpus, tokenizer)
    check_corpus(config, corpus)
    if resume is not None:
        check_same_run(config, resume, data_digest=corpus.digest)
    check_output(Path(config.run.output))
    return corpus


def check_layout(config: Config) -> None:
    """Refuses a schedule that cannot run at these sizes, and a partition that does not take every layer."""
    layout = config.pipeline
    # What a search will find is not known yet; it trains with any order, on as many stages as the partition has.
    searched = layout.schedule == AUTO
    if searched and layout.chunks:
        raise ConfigError(
            f'pipeline.chunks={layout.chunks} and pipeline.schedule="auto", which finds their number; leave '
            "chunks out, or give a partition of as many stages"
        )
    chosen = "one_f_one_b" if searched else schedule_of(layout)
    schedule = choose_schedule(chosen, num_ranks=layout.ranks, num_microbatches=layout.microbatches)
    verify(schedule)
    check_runnable(schedule)
    check_delays(config, schedule)
    num_layers = len(layer_names(config))
    if layout.partition and not isinstance(layout.partition, str):
        sizes = Partition.of_sizes(layout.partition)
        whole = searched and sizes.num_stages % layout.ranks == 0
        sizes.check(num_layers, sizes.num_stages if whole else schedule.num_stages)
    else:
        Partition.uniform(num_layers, schedule.num_stages)


def check_delays(config: Config, schedule: Schedule) -> None:
    """Refuses PipeMare's rules where no backward meets newer weights than its forward."""
    for key in ("anneal_steps", "discrepancy_decay"):
        value = getattr(config.optimizer, key)
        if value and schedule.weight_rule is not WeightRule.LATEST:
            raise ConfigError(
                f"optimizer.{key}={value} is a rule of pipemare, and pipeline.schedule is {schedule.name}; leave it 0, "
                "or train with --pipeline.schedule pipemare"
            )


def check_device(config: Config, *, local_ranks: int) -> None:
    """Refuses a device that this host does not have."""
    import torch

    if config.run.device == "cpu":
        return
    if not torch.cuda.is_available():
        raise ConfigError('run.device="cuda" and this host has no CUDA device; use --run.device cpu')
    if torch.cuda.device_count() < local_ranks:
        raise ConfigError(
            f"{local_ranks} ranks are to run on this host, which has {torch.cuda.device_count()} CUDA devices; "
            "start fewer with --pipeline.ranks, or torchrun on more hosts"
        )


def check_tensorboard(config: Config) -> None:
    """Refuses to record for TensorBoard where it is not installed."""
    if config.log.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise ConfigError("log.tensorboard needs TensorBoard; pip install 'penstock[tensorboard]', or leave it off")


def check_output(output: Path) -> None:
    """Makes the output directory; refuses one that cannot be written."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        probe = output / ".writable"
        probe.touch()
        probe.unlink(missing_ok=True)  # the ranks of one host probe at the same time
    except OSError as error:
        raise ConfigError(
            f"run.output={output} cannot be written ({os.strerror(error.errno or 0)}); choose another directory"
        ) from None


def check_corpus(config: Config, corpus: Corpus) -> None:
    """Refuses a text that is too short for one batch or one held-out window."""
    sizes = {"batch_size": config.run.batch_size, "context": config.model.context}
    batch(corpus, step=0, seed=config.run.seed, **sizes)
    held_out_batches(corpus, batches=config.evaluate.batches, **sizes)
