"""`penstock trace`: how large the bubble of a training run was, and what it was made of."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from penstock.cli.options import OutputFile, parse
from penstock.cli.outputs import PictureOptions, write_timelines
from penstock.errors import NotationError
from penstock.notation.timelines import MEASURED, PLANNED, RECORDING_FILE, load_recording
from penstock.view.tables import bubble_table


@dataclass(frozen=True)
class Trace(PictureOptions):
    """Say how large the bubble of a training run was: planned, measured, and what it was made of."""

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DIR|FILE", help_behavior_hint="")]
    """The run's output directory, or its timelines.json."""
    perfetto: OutputFile = None
    """Write a trace of both for ui.perfetto.dev there."""


def run(argv: list[str]) -> int:
    """Prints the bubble of the run that `argv` names; returns the exit code."""
    options = parse(Trace, argv, command="trace")
    options.pictures(options.perfetto)
    path = options.run / RECORDING_FILE if options.run.is_dir() else options.run
    try:
        recording = load_recording(path)
    except NotationError as error:
        raise NotationError(f"{error}; name the output of a finished penstock train, e.g. runs/gpt") from None
    missing = [name for name in (PLANNED, MEASURED) if name not in recording.timelines]
    if missing:
        held = ", ".join(recording.timelines) or "none"
        raise NotationError(f"{path} holds no {missing[0]} timeline (it holds: {held}); penstock train records both")
    console = Console()
    schedule = recording.schedule
    console.print(
        f"{schedule.name}, {schedule.num_ranks} ranks, {schedule.num_microbatches} microbatches",
        highlight=False,
    )
    console.print(bubble_table(recording.timelines[PLANNED], recording.timelines[MEASURED]))
    write_timelines(console, recording.timelines, options, perfetto=options.perfetto)
    return 0
