"""`penstock show`: a schedule as a picture to scale or as a grid of ops."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rich.console import Console

from penstock.cli.costs import CostOptions
from penstock.cli.options import Chunks, Microbatches, Ranks, Subject, parse, read_schedule
from penstock.cli.outputs import PictureOptions, write_timelines
from penstock.simulator import simulate
from penstock.view.scaled import print_scaled
from penstock.view.terminal import print_grid


@dataclass(frozen=True)
class Show(CostOptions, PictureOptions):
    """Draw a schedule: to scale on a terminal, as a text grid that can be read back into a file or pipe.

    Costs are seconds a microbatch and stage; the grid has none: one row a rank, one column a slot of time.
    """

    schedule: Subject
    """A schedule's name, "auto" for the best found by search, or a file with one (JSON or text grid)."""
    ranks: Ranks = None
    """Number of ranks p, for a schedule given by name."""
    microbatches: Microbatches = None
    """Number of microbatches m, for a schedule given by name."""
    num_chunks: Chunks = None
    """Number of stages a rank v, for a schedule given by name."""
    style: Literal["auto", "scale", "grid"] = "auto"
    """How to draw it here: auto means to scale on a terminal, as a grid elsewhere."""


def run(argv: list[str]) -> int:
    """Draws the schedule that `argv` names; returns the exit code."""
    options = parse(Show, argv, command="show")
    options.pictures()
    schedule = read_schedule(
        options.schedule,
        num_ranks=options.ranks,
        num_microbatches=options.microbatches,
        num_chunks=options.num_chunks,
        given=options.given,
    )
    timeline = simulate(schedule, options.costs(), options.cluster(schedule.num_ranks))
    console = Console()
    to_scale = console.is_terminal if options.style == "auto" else options.style == "scale"
    if to_scale and timeline.makespan:
        print_scaled(timeline, console, title=f"{schedule.name} p={schedule.num_ranks} m={schedule.num_microbatches}")
    else:
        print_grid(schedule, console)
    write_timelines(console, {schedule.name: timeline}, options)
    return 0
