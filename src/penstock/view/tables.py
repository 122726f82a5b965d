"""Tables readable as plain text: planned against measured, what a simulation says, schedules side by side."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table

from penstock.errors import UserError
from penstock.timeline import Timeline
from penstock.units import Unit, time_unit
from penstock.view.comparison import Row

_BUBBLE_CAPTION = """\
step: {planned} planned, {measured} measured ({change})

Each cell: {unit}, and its share of the step, from 0 to the last op's end.
bubble = step - compute = waiting + transfer + other, of which
  waiting   stood still until a peer sent its message
  transfer  stood still while the message was under way
  other     host work between ops, time before the first, after the last
These parts and compute are measured. "all" is the mean over ranks: its
share of the step is the bubble_fraction."""


def bubble_table(planned: Timeline, measured: Timeline) -> Table:
    """Returns each rank's bubble, planned against measured, and what the measured one is made of.

    The bubble of a rank is the makespan minus the compute on that rank; over all ranks its share is
    `bubble_fraction`. Within 80 columns.

    Raises:
        UserError: timelines of different numbers of ranks.
    """
    if planned.num_ranks != measured.num_ranks:
        raise UserError(
            f"planned has {planned.num_ranks} ranks, measured {measured.num_ranks}; compare timelines of one schedule"
        )
    unit = time_unit(max(planned.makespan, measured.makespan))
    table = Table(
        title="Where the step went",
        title_style="bold",
        title_justify="left",
        caption=_BUBBLE_CAPTION.format(
            planned=unit.text(planned.makespan),
            measured=unit.text(measured.makespan),
            change=_change(planned.makespan, measured.makespan),
            unit=unit.name,
        ),
        caption_justify="left",
        caption_style="dim",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("rank", justify="right")
    table.add_column("planned\nbubble", justify="right", style="cyan")
    table.add_column("measured\nbubble", justify="right", style="bold")
    for part in ("waiting", "transfer", "other", "compute"):
        table.add_column(f"\n{part}", justify="right")
    ranks = range(measured.num_ranks)
    for rank in ranks:
        table.add_row(str(rank), *_cells(planned, measured, [rank], unit), end_section=rank == ranks[-1])
    table.add_row("all", *_cells(planned, measured, list(ranks), unit))
    return table


_COMPARISON_CAPTION = """\
bubble    idle / total
makespan  from 0 to the end of the last op
span      first start to last end, longest rank
peak      activations kept from F to B or I, worst rank
deferred  activations kept on for W alone, worst rank
          (both: 1 is a rank's share for one microbatch,
          a chunk's counts 1/v)
copies    weights held: replicas × versions"""


def comparison_table(rows: Sequence[Row], columns: int = 80) -> Table:
    """Returns the rows of a comparison in their order.

    Args:
        rows: what to tabulate.
        columns: of the terminal; below 76 the columns that matter least are left out, so that no number is cut.
    """
    unit = time_unit(max((row.makespan for row in rows), default=0))
    table = Table(
        caption=_COMPARISON_CAPTION,
        caption_justify="left",
        caption_style="dim",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    table.add_column("schedule", no_wrap=True)
    cells = {
        "v": [str(row.num_chunks) for row in rows],
        "bubble": [f"{float(row.bubble_fraction):.1%}" for row in rows],
        f"makespan\n({unit.name})": [unit.number(row.makespan) for row in rows],
        f"span\n({unit.name})": [unit.number(row.per_rank_span) for row in rows],
        "peak": [f"{float(row.peak_activations):.4g}" for row in rows],
        "deferred": [f"{float(row.peak_deferred):.4g}" for row in rows],
        "copies": [f"{float(row.weight_copies):.4g}" for row in rows],
        "messages": [str(row.messages) for row in rows],
    }
    widths = {heading: max(map(len, [*heading.split("\n"), *column])) for heading, column in cells.items()}
    room = columns - max((len(row.name) for row in rows), default=8) - 2
    for heading in _DISPENSABLE:
        if sum(widths.values()) + 2 * len(widths) > room:
            widths = {kept: width for kept, width in widths.items() if kept.split("\n")[0] != heading}
    for heading in widths:
        style = "bold" if heading == "bubble" else None
        table.add_column(heading, justify="right", style=style, no_wrap=True)
    for number, row in enumerate(rows):
        table.add_row(row.name, *(cells[heading][number] for heading in widths))
    return table


_DISPENSABLE = ("messages", "deferred", "copies", "v", "span", "makespan")
"""What a narrow terminal leaves out of a comparison, the first first."""


def rank_table(timeline: Timeline) -> Table:
    """Returns for each rank of one timeline its bubble, compute and peaks."""
    unit = time_unit(timeline.makespan)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("rank", f"compute ({unit.name})", f"bubble ({unit.name})", "bubble", "peak activations"):
        table.add_column(heading, justify="right")
    for rank, (busy, peak) in enumerate(zip(timeline.busy, timeline.peak_activations, strict=True)):
        idle = timeline.makespan - busy
        table.add_row(str(rank), unit.number(busy), unit.number(idle), _percent(idle, timeline.makespan), str(peak))
    return table


def _cells(planned: Timeline, measured: Timeline, ranks: list[int], unit: Unit) -> list[str]:
    """Returns the columns behind the rank: the mean over `ranks`."""
    shares = [measured.shares(rank) for rank in ranks]
    compute, waiting, transfer, other = (float(sum(part)) / len(ranks) for part in zip(*shares, strict=True))
    foreseen = planned.makespan - float(sum(planned.busy[rank] for rank in ranks)) / len(ranks)
    parts = (waiting, transfer, other, compute)
    return [
        _cell(foreseen, planned.makespan, unit, share=".1%"),
        _cell(measured.makespan - compute, measured.makespan, unit, share=".1%"),
        *(_cell(seconds, measured.makespan, unit, share=".0%") for seconds in parts),
    ]


def _cell(seconds: float, step: float, unit: Unit, *, share: str) -> str:
    # A remainder of rounding is nothing, not minus nothing.
    seconds = 0.0 if abs(seconds) < 1e-9 * step else float(seconds)
    size = step * unit.per_base
    decimals = 2 if size < 10 else 1 if size < 300 else 0
    width = len(format(1, share)) - 1
    return f"{seconds * unit.per_base:.{decimals}f} {_percent(seconds, step, share):>{width}}"


def _percent(part: float, whole: float, share: str = ".1%") -> str:
    return format(float(part / whole), share) if whole else "-"


def _change(before: float, after: float) -> str:
    return f"{after / before - 1:+.1%}" if before else "nothing was planned"
