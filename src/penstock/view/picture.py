r"""Timelines as a picture: stacked panels on one time axis, for a paper, a README or a run's directory.

simulated                      bubble 27.3 %   makespan 33 s
rank 0  [F][F][F][F]////[ B ][F][ B ]…
rank 1  ////[F][F][F]///[ B ][F]…
memory  ___/‾‾‾‾‾\____                   where the timeline knows bytes
measured                       bubble 31.0 %   makespan 35.1 s
…
        0      10      20      30  time (s)
legend
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator
from matplotlib.transforms import offset_copy

from penstock.errors import UserError
from penstock.ir.ops import OpKind
from penstock.notation.whole_file import write_whole
from penstock.timeline import Timeline
from penstock.units import Unit, time_unit
from penstock.view.bars import draw_bars
from penstock.view.curves import draw_memory
from penstock.view.palette import IDLE, LOOKS, OTHER, TRANSFER, WAITING, Shade, chunks_of, tinted

FORMATS: dict[str, dict[str, str | None]] = {
    ".png": {},
    ".svg": {"Date": None},
    ".pdf": {"CreationDate": None},
}
"""Suffix -> metadata that keeps equal pictures equal as files."""

STYLE = {
    "font.family": "sans-serif",
    "font.size": 8.0,
    "axes.linewidth": 0.6,
    "hatch.linewidth": 0.6,
    "svg.fonttype": "path",
    "svg.hashsalt": "penstock",
    "pdf.fonttype": 42,
}

INK, PALE_INK = "#1b1b1b", "#5c5c5c"
_POINTS_PER_INCH = 72


@dataclass(frozen=True)
class _Layout:
    """Sizes in inches."""

    width: float
    row: float
    left: float = 0.62
    right: float = 0.12
    top: float = 0.06
    title: float = 0.26
    curve: float = 0.85
    gap: float = 0.10
    axis: float = 0.27
    legend: float = 0.26


def draw_timelines(
    panels: Mapping[str, Timeline],
    path: str | Path,
    *,
    width_inches: float = 8.0,
    dots_per_inch: int = 200,
    memory: bool = True,
) -> None:
    """Draws `panels`, title -> timeline, one below the other on the same scale, into the file at `path`.

    Args:
        panels: what to draw, from top to bottom.
        path: a .png, .svg or .pdf file.
        width_inches: of the picture; the height follows from the number of ranks.
        dots_per_inch: of a PNG.
        memory: draw the bytes held by each rank under each timeline that knows them.

    Raises:
        UserError: nothing to draw, another suffix, or a file that cannot be written.
    """
    check_format(path)
    if not any(timeline.makespan for timeline in panels.values()):
        raise UserError("there is nothing to draw: no timeline has an op that takes time")
    with matplotlib.rc_context(STYLE):  # type: ignore[arg-type]
        save_figure(_figure(panels, width_inches=width_inches, memory=memory), path, dots_per_inch=dots_per_inch)


def check_format(path: str | Path) -> None:
    """Refuses a file whose suffix names no format that pictures have.

    Raises:
        UserError: so it does.
    """
    if Path(path).suffix.lower() not in FORMATS:
        raise UserError(f'cannot draw "{path}"; use a suffix of {", ".join(FORMATS)}')


def save_figure(figure: Figure, path: str | Path, *, dots_per_inch: int = 200) -> None:
    """Writes `figure` to the file at `path`; equal figures give equal files.

    Raises:
        UserError: the file cannot be written.
    """
    suffix, drawn = Path(path).suffix.lower(), BytesIO()
    figure.savefig(drawn, format=suffix[1:], dpi=dots_per_inch, metadata=FORMATS[suffix])
    write_whole(path, drawn.getvalue())


def _figure(panels: Mapping[str, Timeline], *, width_inches: float, memory: bool) -> Figure:
    layout = _Layout(width_inches, row=_row_inches(max(timeline.num_ranks for timeline in panels.values())))
    heights = [_panel_inches(timeline, layout, memory=memory) for timeline in panels.values()]
    height = layout.top + sum(heights) + layout.axis + layout.legend
    figure = Figure(figsize=(width_inches, height))
    FigureCanvasAgg(figure)
    end = max(float(timeline.makespan) for timeline in panels.values())
    unit = time_unit(end)
    top = height - layout.top
    for (title, timeline), panel_height in zip(panels.items(), heights, strict=True):
        lowest = _draw_panel(figure, title, timeline, layout=layout, top=top, end=end, memory=memory)
        top -= panel_height
    _label_time(lowest, unit)
    _legend(figure, panels, layout)
    return figure


def _row_inches(num_ranks: int) -> float:
    return min(0.25, max(0.12, 3.2 / num_ranks))


def _panel_inches(timeline: Timeline, layout: _Layout, *, memory: bool) -> float:
    curve = layout.curve + layout.gap if memory and timeline.memory else 0
    return layout.title + timeline.num_ranks * layout.row + curve + layout.gap


def _draw_panel(
    figure: Figure,
    title: str,
    timeline: Timeline,
    *,
    layout: _Layout,
    top: float,
    end: float,
    memory: bool,
) -> Axes:
    """Draws one timeline downwards from `top`; returns its lowest axes."""
    top -= layout.title
    rows = timeline.num_ranks * layout.row
    axes = _axes(figure, layout, top=top, height=rows, end=end)
    width_points = (layout.width - layout.left - layout.right) * _POINTS_PER_INCH
    draw_bars(
        axes,
        timeline,
        points_per_second=width_points / axes.get_xlim()[1],
        row_points=layout.row * _POINTS_PER_INCH,
    )
    _name_ranks(axes, timeline.num_ranks)
    _title(figure, axes, title, timeline)
    if not (memory and timeline.memory):
        return axes
    below = _axes(figure, layout, top=top - rows - layout.gap, height=layout.curve, end=end)
    draw_memory(below, timeline)
    return below


def _axes(figure: Figure, layout: _Layout, *, top: float, height: float, end: float) -> Axes:
    width, total = figure.get_size_inches()
    inner = width - layout.left - layout.right
    axes = figure.add_axes((layout.left / width, (top - height) / total, inner / width, height / total))
    axes.set_xlim(0, end * 1.002)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(PALE_INK)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=9, steps=[1, 2, 2.5, 5, 10]))
    axes.tick_params(axis="x", length=2.5, width=0.6, color=PALE_INK, labelbottom=False)
    axes.tick_params(axis="y", length=0, pad=3)
    return axes


def _name_ranks(axes: Axes, num_ranks: int) -> None:
    axes.set_ylim(num_ranks - 0.5, -0.5)
    step = 1 if num_ranks <= 24 else 4
    axes.set_yticks(range(0, num_ranks, step), [f"rank {rank}" for rank in range(0, num_ranks, step)], size=7)


def _title(figure: Figure, axes: Axes, title: str, timeline: Timeline) -> None:
    makespan = time_unit(timeline.makespan).text(timeline.makespan)
    facts = f"bubble {timeline.bubble_fraction:.1%}    makespan {makespan}"
    above = offset_copy(axes.transAxes, figure, y=4, units="points")
    axes.text(0, 1, title, transform=above, ha="left", weight="bold", color=INK)
    axes.text(1, 1, facts, transform=above, ha="right", color=PALE_INK)


def _label_time(axes: Axes, unit: Unit) -> None:
    axes.tick_params(axis="x", labelbottom=True, labelsize=7)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda seconds, _: f"{seconds * unit.per_base:g}"))
    axes.set_xlabel(f"time ({unit.name})", size=7.5, labelpad=2, color=INK)


def _legend(figure: Figure, panels: Mapping[str, Timeline], layout: _Layout) -> None:
    kinds = {span.op.kind for timeline in panels.values() for span in timeline.spans if span.end > span.start}
    looks = [look for kind, look in LOOKS.items() if kind in kinds]
    looks += [OTHER] if kinds - set(LOOKS) else []
    shades = [shade for shade in (WAITING, TRANSFER, IDLE) if shade is IDLE or _occurs(shade, panels)]
    handles = [Patch(facecolor=look.fill, label=look.word) for look in looks]
    handles += [
        Patch(facecolor=shade.fill, edgecolor=shade.edge, hatch=shade.hatch, linewidth=0, label=shade.word)
        for shade in shades
    ]
    if any(chunk for timeline in panels.values() for chunk, _ in chunks_of(timeline).values()):
        handles.append(Patch(facecolor=tinted(OpKind.F, 1, 2)[0], label="paler: later chunk"))
    width, height = figure.get_size_inches()
    figure.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=(layout.left / width, 0.04 / height),
        ncols=len(handles),
        fontsize=7,
        frameon=False,
        handlelength=1.6,
        handleheight=1.0,
        columnspacing=1.6,
        borderaxespad=0,
        borderpad=0.2,
    )


def _occurs(shade: Shade, panels: Mapping[str, Timeline]) -> bool:
    index = {WAITING: 1, TRANSFER: 2}[shade]
    return any(timeline.shares(rank)[index] > 0 for timeline in panels.values() for rank in range(timeline.num_ranks))
