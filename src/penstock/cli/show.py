"""`penstock show`: a schedule as a grid, and its simulation as a picture."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console

from penstock.cli.options import Microbatches, OutputFile, Ranks, Subject, parse, read_schedule
from penstock.view.terminal import print_grid


@dataclass(frozen=True)
class Show:
    """Draw a schedule as a grid: one row a rank, one column a slot of time."""

    schedule: Subject
    """A schedule's name, or a file with one (JSON or text grid)."""
    ranks: Ranks = None
    """Number of ranks p, for a schedule given by name."""
    microbatches: Microbatches = None
    """Number of microbatches m, for a schedule given by name."""
    png: OutputFile = None
    """Draw the simulation with F = I = W = 1 s there as well; .svg and .pdf work too."""


def run(argv: list[str]) -> int:
    """Draws the schedule that `argv` names; returns the exit code."""
    options = parse(Show, argv, command="show")
    schedule = read_schedule(options.schedule, num_ranks=options.ranks, num_microbatches=options.microbatches)
    console = Console()
    print_grid(schedule, console)
    if options.png is not None:
        from penstock.costs import StageCosts
        from penstock.simulator import simulate
        from penstock.view.picture import draw_timelines

        draw_timelines({schedule.name: simulate(schedule, StageCosts())}, options.png)
        console.print(f"wrote {options.png}", highlight=False, soft_wrap=True)
    return 0
