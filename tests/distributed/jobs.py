"""Starts jobs of several processes over gloo and reads what they print, one JSON value a line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
HOST = Path(__file__).parent / "workers" / "host.py"


class Job(NamedTuple):
    """A worker script, run by each rank; `unending` ranks are killed once the others have ended."""

    worker: str
    arguments: tuple[str, ...]
    num_ranks: int
    unending: tuple[int, ...] = ()


class Ended(NamedTuple):
    """How one rank ended: its exit code (-9 if it did not by itself), what it told, its errors, and when.

    `at` is by the clock of `time.monotonic`, which all processes share.
    """

    code: int
    lines: list[Any]
    errors: str
    at: float


def run_jobs(directory: Path, jobs: dict[str, Job], *, patience_seconds: float = 60.0) -> dict[str, list[Ended]]:
    """Returns how the ranks of all jobs ended, which ran side by side.

    One process imports torch and forks them all: a start from cold costs seconds, a fork milliseconds.
    """
    order = json.dumps({"jobs": jobs, "directory": str(directory), "patience_seconds": patience_seconds})
    environment = dict(os.environ, PYTHONPATH=f"{ROOT / 'src'}{os.pathsep}{ROOT}", OMP_NUM_THREADS="1")
    with subprocess.Popen(
        [sys.executable, str(HOST), order], env=environment, cwd=ROOT, stdout=subprocess.PIPE, start_new_session=True
    ) as host:
        try:
            ends = json.loads(host.communicate(timeout=patience_seconds + 60)[0])
        except BaseException:
            os.killpg(host.pid, signal.SIGKILL)  # it kills its ranks itself unless it is stuck
            raise
    return {
        name: [
            Ended(
                ends[name][rank][0],
                [json.loads(line) for line in (directory / f"{name}.{rank}.out").read_text().splitlines()],
                (directory / f"{name}.{rank}.err").read_text(),
                ends[name][rank][1],
            )
            for rank in range(job.num_ranks)
        ]
        for name, job in jobs.items()
    }
