"""`penstock compare`: all schedules at the same sizes and costs, in a table and a picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro
from rich.console import Console

from penstock.cli.costs import CostOptions
from penstock.cli.options import Microbatches, Ranks, parse
from penstock.cli.outputs import PictureOptions, say_written
from penstock.schedules.registry import SCHEDULES
from penstock.view.comparison import Comparison, compare
from penstock.view.tables import comparison_table

Names = Annotated[tuple[str, ...], tyro.conf.arg(metavar="[NAME …]", help_behavior_hint="(default: all)")]


@dataclass(frozen=True)
class Compare(CostOptions, PictureOptions):
    """Compare all schedules that are defined at these sizes: each is verified and simulated.

    Costs are those of a rank's full stage, its whole share of the model, on one microbatch. A schedule that cuts a
    rank's share into v chunks takes 1/v of these seconds for each. A bidirectional schedule takes the full seconds for
    either of a rank's two stages, each of which sees half of the microbatches. Any message takes the same time.
    """

    schedules: Names = ()
    """Compare these only."""
    ranks: Ranks = None
    """Number of ranks p."""
    microbatches: Microbatches = None
    """Number of microbatches m, over both directions of a bidirectional schedule."""
    sort: Literal["bubble", "makespan", "span", "memory", "copies", "messages"] = "bubble"
    """The column that is to ascend."""


def run(argv: list[str]) -> int:
    """Compares the schedules at the sizes in `argv`; returns the exit code."""
    options = parse(Compare, argv, command="compare")
    pictures = options.pictures()
    comparison = compare(
        4 if options.ranks is None else options.ranks,
        8 if options.microbatches is None else options.microbatches,
        costs=options.costs(),
        transfer_seconds=options.transfer_seconds(),
        sort=options.sort,
        names=options.schedules or SCHEDULES,
    )
    console = Console()
    if comparison.rows:
        console.print(comparison_table(comparison.rows, console.width))
    _say_undefined(console, comparison)
    for path in pictures:
        from penstock.view.scatter import draw_comparison

        draw_comparison(comparison.rows, path)
        say_written(console, path)
    if options.html is not None:
        from penstock.view.page import save_page

        save_page({row.name: row.timeline for row in comparison.rows}, options.html, rows=comparison.rows)
        say_written(console, options.html)
    return 0


def _say_undefined(console: Console, comparison: Comparison) -> None:
    if not comparison.undefined:
        return
    width = max(map(len, comparison.undefined))
    console.print("not defined at these sizes:", highlight=False)
    for name, reason in comparison.undefined.items():
        console.print(f"  {name:<{width}}  {reason}", highlight=False, markup=False, soft_wrap=True)
