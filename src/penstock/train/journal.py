"""What a run shows while it works and what it writes down: the progress line, losses.jsonl, TensorBoard."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from penstock.errors import UserError
from penstock.train.config import Config

LOSSES_FILE = "losses.jsonl"
_PLAIN_LINES = 20
_SCALARS = ("loss", "grad_norm", "learning_rate", "tokens_per_second")


class StepFigures(NamedTuple):
    """One step in numbers; the norm is None where no rank knows that of the whole model."""

    step: int
    loss: float
    grad_norm: float | None
    learning_rate: float
    tokens_per_second: float


class Journal:
    """The record of one run, kept by rank 0; elsewhere it does nothing.

    Args:
        config: of the run.
        first_step: where the run begins or resumes; later lines of an earlier attempt are dropped.
        active: whether this rank keeps the record.
        unit: what a loss is per.
    """

    def __init__(self, config: Config, *, first_step: int, active: bool, unit: str = "byte") -> None:
        self._config, self._active, self._unit = config, active, unit
        self._console = Console(file=sys.stdout, highlight=False)
        self._begin, self._first_step = time.perf_counter(), first_step
        self._tensorboard: Any = None
        if not active:
            return
        output = Path(config.run.output)
        self._losses = _open_losses(output / LOSSES_FILE, first_step)
        if config.log.tensorboard:
            from torch.utils.tensorboard import SummaryWriter  # an extra, checked before the start

            # On a resume, what an earlier attempt wrote of later steps is hidden.
            purge = first_step + 1 if first_step else None
            self._tensorboard = SummaryWriter(output / "tensorboard", purge_step=purge)
        self._progress = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=30),
            TextColumn("loss {task.fields[loss]:.3f}  {task.fields[rate]:,.0f} tokens/s"),
            TextColumn("time left"),
            TimeRemainingColumn(compact=True),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._progress.add_task(
            "train", total=config.run.steps, completed=first_step, loss=float("nan"), rate=0
        )

    @property
    def active(self) -> bool:
        """Whether this rank keeps the record."""
        return self._active

    def __enter__(self) -> Self:
        if self._active:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._active:
            self._progress.stop()
            self._losses.close()
            if self._tensorboard is not None:
                self._tensorboard.close()

    def step(self, figures: StepFigures) -> None:
        """Shows a finished step, and writes it down as often as the configuration says."""
        if not self._active:
            return
        self._progress.update(self._task, completed=figures.step, loss=figures.loss, rate=figures.tokens_per_second)
        last = figures.step == self._config.run.steps
        if figures.step % self._config.log.every == 0 or last:
            known = {name: value for name, value in figures._asdict().items() if value is not None}
            self._write_down(known)
            for name in _SCALARS if self._tensorboard else ():
                if name in known:
                    self._tensorboard.add_scalar(f"train/{name}", known[name], figures.step)
        if self._progress.disable and (figures.step % max(1, self._config.run.steps // _PLAIN_LINES) == 0 or last):
            self.say(
                f"step {figures.step}/{self._config.run.steps}  loss {figures.loss:.3f}  "
                f"{figures.tokens_per_second:,.0f} tokens/s  {self._left(figures.step):.0f} s left"
            )

    def held_out(self, step: int, loss: float) -> None:
        """Shows and writes down a held-out loss."""
        if not self._active:
            return
        self.say(f"step {step}: held-out loss {loss:.3f} nats per {self._unit}")
        self._write_down({"step": step, "held_out_loss": loss})
        if self._tensorboard is not None:
            self._tensorboard.add_scalar("held_out/loss", loss, step)

    def say(self, text: Any) -> None:
        """Prints a line, or anything rich can draw, above the progress line."""
        if not self._active:
            return
        try:
            if isinstance(text, str):  # never wrapped: a path may be copied from it
                self._console.print(text, markup=False, soft_wrap=True)
            else:
                self._console.print(text)
        except BrokenPipeError:
            raise UserError(
                "nobody reads the output any more, so the run ends; send it to a file to be free of its reader, "
                "e.g. penstock train > log"
            ) from None

    def _write_down(self, entry: dict[str, Any]) -> None:
        try:
            self._losses.write(json.dumps(entry) + "\n")
            self._losses.flush()
        except OSError as error:
            raise UserError(_cannot_write(self._losses.name, error)) from None

    def _left(self, step: int) -> float:
        done = max(1, step - self._first_step)
        return (time.perf_counter() - self._begin) / done * (self._config.run.steps - step)


def _open_losses(path: Path, first_step: int) -> Any:
    """Opens the record for more lines, without those of steps that will be run again.

    Raises:
        UserError: the file cannot be written.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        kept = []
        if first_step and path.exists():
            kept = [line for line in path.read_text().splitlines() if 0 < _step_of(line) <= first_step]
        part.write_text("".join(f"{line}\n" for line in kept))
        part.replace(path)
        return path.open("a")
    except OSError as error:
        raise UserError(_cannot_write(path, error)) from None


def _step_of(line: str) -> int:
    """Returns the step a line of the record is about; 0 for one that a full disk or a power cut has torn."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError):
        return 0


def _cannot_write(path: Path | str, error: OSError) -> str:
    return (
        f"cannot write {path}: {error.strerror}; make room or choose another run.output. "
        "Earlier checkpoints are intact: --run.resume latest goes on from the last"
    )
