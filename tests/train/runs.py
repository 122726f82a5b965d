"""Starts `penstock train` as a person does, with a model so small that a step takes milliseconds."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from safetensors import safe_open
from tests.train.test_launch import _family, _runs
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_SECONDS = 60.0
TEXT = "the quick brown fox jumps over the lazy dog, and then it runs all the way back home again.\n" * 140

TINY = {
    "data.held-out": 0.1,
    "model.layers": 2,
    "model.width": 32,
    "model.heads": 2,
    "model.context": 32,
    "model.dropout": 0.1,
    "optimizer.learning-rate": 1e-2,
    "optimizer.warmup-steps": 20,
    "run.steps": 60,
    "checkpoint.every": 20,
    "checkpoint.keep": 5,
    "evaluate.every": 20,
    "evaluate.batches": 2,
    "log.every": 1,
    "log.sample-bytes": 8,
    "log.predict-after": 0,
}


def options(**changes: object) -> list[str]:
    """The command line of a tiny run; `run__steps=3` stands for `--run.steps 3`, and bools for flags."""
    merged = TINY | {key.replace("__", ".").replace("_", "-"): value for key, value in changes.items()}
    words = []
    for key, value in merged.items():
        section, _, name = key.partition(".")
        words += [f"--{section}.{'' if value is not False else 'no-'}{name}"]
        words += [] if isinstance(value, bool) else str(value).split(" ")
    return words


class Run:
    """A `penstock train` under way; its output is in files, so that nothing blocks on a pipe."""

    def __init__(
        self,
        folder: Path,
        *words: str,
        command: tuple[str, ...] = ("-m", "penstock", "train"),
        faults: Path | None = None,
    ) -> None:
        number = len(list(folder.glob("*.out")))
        self._out, self._err = folder / f"{number}.out", folder / f"{number}.err"
        paths = [str(ROOT / "src"), *([str(faults)] if faults else [])]
        environment = dict(os.environ, PYTHONPATH=os.pathsep.join(paths), OMP_NUM_THREADS="1", COLUMNS="80")
        with self._out.open("w") as out, self._err.open("w") as err:
            self.process = subprocess.Popen(
                [sys.executable, *command, *words], stdout=out, stderr=err, env=environment, start_new_session=True
            )
        self.seen = {self.process.pid}

    @property
    def out(self) -> str:
        return self._out.read_text()

    @property
    def err(self) -> str:
        return self._err.read_text()

    def wait_for(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            self.seen |= _family(self.process.pid)
            assert self.process.poll() is None, f"ended early\n{self.out}\n{self.err}"
            assert time.monotonic() < deadline, f"took too long\n{self.out}\n{self.err}"
            time.sleep(0.02)
        self.seen |= _family(self.process.pid)

    def wait_for_step(self, output: Path, step: int) -> None:
        """Waits until `step` is in the record of losses."""
        self.wait_for(lambda: step in losses(output))

    def rank(self, rank: int) -> int:
        """The process id of a rank."""
        for process in _family(self.process.pid):
            if f"\0RANK={rank}\0" in Path(f"/proc/{process}/environ").read_text():
                return process
        raise AssertionError(f"no process of rank {rank}")

    def finish(self) -> int:
        """The exit code; nothing of the run is left when this returns."""
        try:
            code = self.process.wait(PATIENCE_SECONDS)
            deadline = time.monotonic() + 6
            while left := [process for process in self.seen if _runs(process)]:
                assert time.monotonic() < deadline, f"still running: {left}"
                time.sleep(0.05)
            return code
        finally:
            self.end()

    def end(self) -> None:
        """Kills what is left of the run."""
        for process in self.seen | _family(self.process.pid):
            if _runs(process):
                os.kill(process, signal.SIGKILL)
        self.process.wait()


def losses(output: Path) -> dict[int, float]:
    """The losses recorded so far by step; a step recorded twice is an error."""
    return _by_step(output, "loss")


def held_out_losses(output: Path) -> dict[int, float]:
    return _by_step(output, "held_out_loss")


def saved_tensors(output: Path, step: int) -> dict[str, Tensor]:
    """What a checkpoint holds by name, whichever rank saved it, but for generators that a keyed run does not use."""
    tensors = {}
    for path in (output / "checkpoints" / f"step-{step:08d}").glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            names = [name for name in file.keys() if not name.startswith("random/")]  # noqa: SIM118  # it is no dict
            tensors |= {name: file.get_tensor(name) for name in names}
    return tensors


def same_bits(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    """Whether two checkpoints, with Adam's state in them, are the same to the last bit."""
    assert any(name.startswith("optimizer/exp_avg_sq/") for name in left)
    return left.keys() == right.keys() and all(left[name].equal(right[name]) for name in left)


def _by_step(output: Path, key: str) -> dict[int, float]:
    path = output / "losses.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    rows = [json.loads(line) for line in lines if line.endswith("\n")]
    pairs = [(row["step"], row[key]) for row in rows if key in row]
    assert len(dict(pairs)) == len(pairs), f"steps twice in {path}"
    return dict(pairs)
