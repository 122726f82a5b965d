"""Starts real processes over gloo and reads what they print, one JSON value a line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from torch import distributed as dist

ROOT = Path(__file__).resolve().parents[2]
WORKERS = Path(__file__).parent / "workers"


@dataclass
class Ended:
    """One process that has ended."""

    code: int
    seconds: float
    lines: list[Any]
    errors: str


@dataclass
class Job:
    """Processes of one job, rank by rank. They meet at a store that this process holds, as under torchrun."""

    worker: str
    arguments: tuple[str, ...]
    num_ranks: int
    processes: list[subprocess.Popen] = field(default_factory=list)

    def start(self) -> Job:
        self.store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self.began = time.monotonic()
        self.files = [(tempfile.TemporaryFile("w+"), tempfile.TemporaryFile("w+")) for _ in range(self.num_ranks)]
        environment = dict(os.environ, PYTHONPATH=f"{ROOT / 'src'}{os.pathsep}{ROOT}", OMP_NUM_THREADS="1")
        for rank, (out, err) in enumerate(self.files):
            place = [str(rank), str(self.num_ranks), str(self.store.port)]
            command = [sys.executable, str(WORKERS / self.worker), *place, *self.arguments]
            self.processes.append(subprocess.Popen(command, stdout=out, stderr=err, env=environment, cwd=ROOT))
        return self

    def end(self, *, patience_seconds: float, leave: tuple[int, ...] = ()) -> list[Ended]:
        """Waits for all ranks but those of `leave`, then kills what is left; a rank out of time has code -9."""
        give_up = time.monotonic() + patience_seconds
        seconds = [0.0] * self.num_ranks
        waiting = [rank for rank in range(self.num_ranks) if rank not in leave]
        while waiting and time.monotonic() < give_up:
            for rank in [each for each in waiting if self.processes[each].poll() is not None]:
                seconds[rank] = time.monotonic() - self.began
                waiting.remove(rank)
            time.sleep(0.02)
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
            process.wait()
        return [
            Ended(process.returncode, seconds[rank], list(map(json.loads, _lines(out))), "".join(_lines(err)))
            for rank, (process, (out, err)) in enumerate(zip(self.processes, self.files, strict=True))
        ]


def _lines(file: IO[str]) -> list[str]:
    with file:
        file.seek(0)
        return file.readlines()


def run_job(worker: str, *arguments: str, num_ranks: int, patience_seconds: float = 60.0) -> list[Ended]:
    """Returns how the ranks of a job ended."""
    return Job(worker, arguments, num_ranks).start().end(patience_seconds=patience_seconds)
