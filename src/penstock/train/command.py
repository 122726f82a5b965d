"""`penstock train`: resolves the configuration, checks all of it, starts the ranks, or is one of them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from penstock.errors import ConfigError
from penstock.train.config import Config
from penstock.train.config_file import resolve, to_toml
from penstock.train.launch import launch
from penstock.train.processes import is_worker, worker

CONFIG_FILE = "config.toml"


def main(argv: Sequence[str]) -> int:
    """Returns the exit code of `penstock train` with these arguments.

    In a plain shell it starts `pipeline.ranks` processes on this host and waits for them; under torchrun, on one
    host or many, it is one of them.

    Raises:
        UserError: a configuration, text, directory or checkpoint that cannot work; nothing has been started.
    """
    config = resolve(argv)
    if is_worker():
        return _rank(config)
    from penstock.train.preflight import check_everything

    config = _with_free_output(config)
    check_everything(config)
    path = Path(config.run.output) / CONFIG_FILE
    path.write_text(to_toml(config), encoding="utf-8")
    command = [sys.executable, "-m", "penstock", "train", str(path)]
    return launch(command, ranks=config.pipeline.ranks, port=config.run.port)


def _rank(config: Config) -> int:
    backend = "gloo" if config.run.device == "cpu" else "cpu:gloo,cuda:nccl"
    with worker(backend=backend) as me:
        if me.world_size != config.pipeline.ranks:
            raise ConfigError(
                f"{me.world_size} processes were started and pipeline.ranks={config.pipeline.ranks}; start as many, or "
                f"add --pipeline.ranks {me.world_size}"
            )
        from penstock.train.loop import train

        train(config, me)
    return 0


def _with_free_output(config: Config) -> Config:
    """Returns `config` with an output directory that holds no other run: an earlier one is never written over."""
    if config.run.resume:
        return config
    given = Path(config.run.output)
    output, number = given, 1
    while (output / CONFIG_FILE).exists():
        number += 1
        output = given.with_name(f"{given.name}-{number}")
    if output != given:
        print(f"{given} holds an earlier run; this one writes to {output} (--run.resume latest continues the earlier)")
    return replace(config, run=replace(config.run, output=str(output)))
