"""Saves, and is killed at the n-th of the calls that change the disk: a process for each n, forked from this one.

Usage: killed.py ROOT COUNT. Process n works under ROOT/n: a first checkpoint, the number 1.0, is saved in peace; the
second, 2.0, until SIGKILL. Prints the n of those that were killed.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

import penstock as ps
from penstock import checkpoint
from penstock.checkpoint import manifest, shard


class Killer:
    """Counts calls and ends the process in the middle of the n-th: before it, or half-way through a write."""

    def __init__(self, number: int) -> None:
        self._left = number

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **named: Any) -> Any:
            self._left -= 1
            if self._left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **named)

        return counted

    def half_written(self, tensors: Any, path: Path, **named: Any) -> None:
        """Stands for the writing of a shard: killed when half of the file is there."""
        save_file(tensors, path, **named)
        self._left -= 1
        if self._left < 0:
            os.truncate(path, path.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)


save_file = shard.save_file


def saving(transport: ps.LoopbackTransport, root: Path, number: int) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    pipe = ps.Pipeline(model, torch.nn.functional.mse_loss, transport=transport, num_microbatches=1)
    with checkpoint.Saver(root, pipe, keep=1) as saver:
        fill(model, 1.0)
        saver.save(step=1)
        saver.wait()
        fill(model, 2.0)
        if transport.rank == 0:
            kill_at(number)
        pipe.exchange(b"")
        saver.save(step=2)
        fill(model, 3.0)


def fill(model: torch.nn.Module, value: float) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(value)


def kill_at(number: int) -> None:
    killer = Killer(number)
    shard.save_file = killer.half_written
    for module, name in ((os, "fsync"), (os, "replace"), (Path, "unlink"), (Path, "mkdir"), (Path, "rmdir")):
        setattr(module, name, killer.around(getattr(module, name)))
    manifest.os = os


def main(root: Path, count: int) -> None:
    processes = {}
    for number in range(count):
        child = os.fork()
        if child == 0:
            try:
                ps.run_ranks(partial(saving, root=root / str(number), number=number), 2, timeout_seconds=20)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(0)
        processes[number] = child
    for number, child in processes.items():
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
            print(number)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
