"""`penstock train`: resolves the configuration, checks all of it, starts the ranks, or is one of them."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from penstock.errors import ConfigError, UserError
from penstock.train.config import Config
from penstock.train.config_file import resolve, to_toml
from penstock.train.launch import launch
from penstock.train.processes import LAUNCHER_PID, Worker, is_worker, worker

CONFIG_FILE = "config.toml"
_CLEAR_LINE_AND_SHOW_CURSOR = "\r\x1b[2K\x1b[?25h"


def main(argv: Sequence[str]) -> int:
    """Returns the exit code of `penstock train` with these arguments.

    In a plain shell it starts `pipeline.ranks` processes on this host, for each of `pipeline.replicas` copies, and
    waits for them; under torchrun, on one host or many, it is one of them.

    Raises:
        UserError: a configuration, text, directory or checkpoint that cannot work; nothing has been started.
    """
    config = resolve(argv)
    if is_worker():
        return _rank(config)
    from penstock.train.preflight import check_everything
    from penstock.train.resume import nothing_left

    asked, config = config, _with_free_output(config)
    was_there = Path(config.run.output).exists()
    processes = config.pipeline.ranks * config.pipeline.replicas
    check_everything(config, local_ranks=processes)
    _say_output(asked, config)
    if done := nothing_left(config):
        print(done)
        return 0
    path = _write_config(config)
    command = [sys.executable, "-m", "penstock", "train", str(path)]
    try:
        return launch(command, ranks=processes, port=config.run.port, say=_say)
    except UserError:
        path.unlink()  # nothing was started, so this is no run's directory
        if not was_there:
            with suppress(OSError):  # somebody may have put a file there meanwhile
                path.parent.rmdir()
        raise


def _rank(config: Config) -> int:
    backend = "gloo" if config.run.device == "cpu" else "cpu:gloo,cuda:nccl"
    with worker(backend=backend) as me:
        _check_processes(config, me.world_size)
        if LAUNCHER_PID not in os.environ:
            config = _settle_output(config, me)
        from penstock.train.loop import train
        from penstock.train.resume import nothing_left

        if done := nothing_left(config):
            print(done if me.rank == 0 else "", end="\n" if me.rank == 0 else "")
        else:
            train(config, me)
    return 0


def _check_processes(config: Config, count: int) -> None:
    ranks, replicas = config.pipeline.ranks, config.pipeline.replicas
    if count == ranks * replicas:
        return
    copies = f" with pipeline.replicas={replicas}" if replicas > 1 else ""
    way = f", or add --pipeline.ranks {count // replicas}" if count % replicas == 0 else ""
    raise ConfigError(
        f"{count} processes were started and pipeline.ranks={ranks}{copies}; start "
        f"{'as many' if replicas == 1 else ranks * replicas}{way}"
    )


def _settle_output(config: Config, me: Worker) -> Config:
    """Does under torchrun, on rank 0 for all, what the launcher does elsewhere: names the output directory."""

    def settle() -> str:
        from penstock.train.preflight import check_output
        from penstock.train.resume import nothing_left

        free = _with_free_output(config)
        if not nothing_left(free):
            check_output(Path(free.run.output))
            _say_output(config, free)
            _write_config(free)
        return free.run.output

    return replace(config, run=replace(config.run, output=me.from_rank_0("output", settle)))


def _with_free_output(config: Config) -> Config:
    """Returns `config` with an output directory that holds no other run: an earlier one is never written over."""
    from penstock.train.resume import goes_on_in_place

    if goes_on_in_place(config):
        return config
    given = Path(config.run.output)
    output, number = given, 1
    while os.path.lexists(output / CONFIG_FILE):  # unlike Path.exists, False where it may not look
        number += 1
        output = given.with_name(f"{given.name}-{number}")
    return replace(config, run=replace(config.run, output=str(output)))


def _say_output(asked: Config, config: Config) -> None:
    """Says that the output is another directory than was asked for."""
    given, output = asked.run.output, config.run.output
    if Path(output) != Path(given):
        print(
            f"{given} holds an earlier run; this one writes to {output} (--run.resume latest goes on with the earlier)"
        )


def _write_config(config: Config) -> Path:
    path = Path(config.run.output) / CONFIG_FILE
    path.write_text(to_toml(config), encoding="utf-8")
    return path


def _say(message: str) -> None:
    """Tells how a run ended; a rank that was killed has left its progress line and a hidden cursor behind."""
    if sys.stdout.isatty():
        print(_CLEAR_LINE_AND_SHOW_CURSOR, end="", flush=True)
    print(message, file=sys.stderr)
