"""Schedules as points, peak memory against bubble, with the front that nothing beats in both."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from penstock.errors import UserError
from penstock.view.comparison import Row, pareto
from penstock.view.labels import Box, Label, place_labels, stairs, strokes
from penstock.view.picture import INK, PALE_INK, STYLE, check_format, save_figure

_FRONT = "#8aa9c4"
_MARKERS: dict[bool, dict[str, Any]] = {
    False: {"marker": "o", "markersize": 5.0, "color": "#2f6fa8"},
    # Around the other, where both are at one point.
    True: {"marker": "D", "markersize": 7.5, "markerfacecolor": "none", "color": "#cf6a3c", "markeredgewidth": 1.1},
}
"""Whether a schedule holds more than one copy of its weights -> its point."""
_LABEL_POINTS = 7.0
_SAME_POINTS = 3.0
"""Points closer than this look like one."""
_POINTS_PER_INCH = 72


def draw_comparison(
    rows: Sequence[Row], path: str | Path, *, width_inches: float = 6.4, height_inches: float = 4.2
) -> None:
    """Draws `rows` into the file at `path`; schedules at the same point share a label.

    Args:
        rows: what to draw.
        path: a .png, .svg or .pdf file.
        width_inches: of the picture.
        height_inches: of the picture.

    Raises:
        UserError: nothing to draw, another suffix, or a file that cannot be written.
    """
    check_format(path)
    if not rows:
        raise UserError("there is nothing to draw: no schedule is defined at these sizes")
    with matplotlib.rc_context(STYLE):  # type: ignore[arg-type]
        save_figure(_figure(rows, width_inches=width_inches, height_inches=height_inches), path)


def _figure(rows: Sequence[Row], *, width_inches: float, height_inches: float) -> Figure:
    figure = Figure(figsize=(width_inches, height_inches))
    FigureCanvasAgg(figure)
    left, bottom = 0.55 / width_inches, 0.45 / height_inches
    axes = figure.add_axes((left, bottom, 1 - left - 0.12 / width_inches, 1 - bottom - 0.12 / height_inches))
    _scale(axes, rows)
    strokes = _draw_front(axes, rows)
    for row in rows:
        axes.plot(*_point(row), zorder=3, **_MARKERS[row.weight_copies > 1])
    _label(axes, rows, [*strokes, _legend(axes, rows)])
    return figure


def _point(row: Row) -> tuple[float, float]:
    return float(row.peak_activations), float(row.bubble_fraction)


def _scale(axes: Axes, rows: Sequence[Row]) -> None:
    """Sets scales and ticks: logarithmic, for factors are what differs, but where a schedule has no bubble."""
    memory, bubble = zip(*map(_point, rows), strict=True)
    formats = {"x": lambda value, _: f"{value:g}", "y": lambda value, _: f"{100 * value:g} %"}
    for axis, values, subs in ((axes.xaxis, memory, (1.0, 1.5)), (axes.yaxis, bubble, (1.0, 2.0, 5.0))):
        low, high = min(values), max(values)
        name = "x" if axis is axes.xaxis else "y"
        if low > 0:
            getattr(axes, f"set_{name}scale")("log", base=2 if name == "x" else 10)
            margin = max(high / low, 2) ** 0.09
            getattr(axes, f"set_{name}lim")(low / margin, high * margin ** (2 if name == "x" else 1))
            axis.set_major_locator(LogLocator(base=2 if name == "x" else 10, subs=subs, numticks=20))
        else:
            getattr(axes, f"set_{name}lim")(-0.06 * (high or 1), 1.12 * (high or 1))
            axis.set_major_locator(MaxNLocator(nbins=7))
        axis.set_minor_locator(NullLocator())
        axis.set_minor_formatter(NullFormatter())
        axis.set_major_formatter(FuncFormatter(formats[name]))
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("bottom", "left"):
        axes.spines[side].set_color(PALE_INK)
    axes.tick_params(length=2.5, width=0.6, color=PALE_INK, labelsize=7)
    axes.grid(linewidth=0.4, color="#e6e6e6")
    axes.set_axisbelow(True)
    axes.set_xlabel("peak memory (activations of a microbatch on a rank)", size=7.5, labelpad=3, color=INK)
    axes.set_ylabel("bubble (idle / total)", size=7.5, labelpad=3, color=INK)


def _draw_front(axes: Axes, rows: Sequence[Row]) -> list[Box]:
    """Draws the front as the steps between what can be had and what nobody has; returns its strokes."""
    points = [_point(row) for row in pareto(rows)]
    right, top = axes.get_xlim()[1], axes.get_ylim()[1]
    memory = [points[0][0], *(point[0] for point in points), right]
    bubble = [top, *(point[1] for point in points), points[-1][1]]
    axes.step(memory, bubble, where="post", color=_FRONT, linewidth=1.1, zorder=2)
    axes.fill_between(memory, bubble, top, step="post", color=_FRONT, alpha=0.09, linewidth=0, zorder=0)
    corners = stairs(list(zip(memory, bubble, strict=True)))
    return strokes([_points(axes, corner) for corner in corners])


def _points(axes: Axes, point: tuple[float, float]) -> tuple[float, float]:
    """Returns where `point` of the data lies in the figure, in typographic points."""
    x, y = axes.transData.transform(point)
    return float(x) * _POINTS_PER_INCH / axes.figure.dpi, float(y) * _POINTS_PER_INCH / axes.figure.dpi


def _groups(axes: Axes, rows: Sequence[Row]) -> list[Label]:
    """Returns a label for each point; schedules whose points look like one share it, the best first."""
    groups: list[tuple[tuple[float, float], list[str]]] = []
    for row in sorted(rows, key=lambda row: (-row.bubble_fraction, row.peak_activations, row.name)):
        point = _points(axes, _point(row))
        near = next((names for other, names in groups if math.dist(point, other) < _SAME_POINTS), None)
        if near is None:
            groups.append((point, [row.name]))
        else:
            near.append(row.name)
    return [Label(point, "\n".join(names)) for point, names in groups]


def _label(axes: Axes, rows: Sequence[Row], obstacles: Sequence[Box]) -> None:
    """Writes the names beside their points, with a line to those that had to move away."""
    scale = _POINTS_PER_INCH / axes.figure.dpi
    labels = _groups(axes, rows)
    frame = Box(*(float(edge) * scale for edge in axes.bbox.extents))
    line = {"arrowstyle": "-", "color": "#a0a0a0", "linewidth": 0.5, "shrinkA": 0, "shrinkB": 3.5}
    places = place_labels(labels, font_points=_LABEL_POINTS, frame=frame, obstacles=obstacles)
    for label, (box, distant) in zip(labels, places, strict=True):
        x, y = axes.transData.inverted().transform((label.point[0] / scale, label.point[1] / scale))
        text = axes.annotate(
            label.text,
            xy=(x, y),
            xytext=(box.left - label.point[0], box.bottom - label.point[1]),
            textcoords="offset points",
            size=_LABEL_POINTS,
            color=INK,
            va="bottom",
            linespacing=1.1,
            multialignment="right" if box.right < label.point[0] else "left",
            zorder=4,
            arrowprops=line if distant else None,
        )
        text.set_path_effects([withStroke(linewidth=1.6, foreground="white")])


def _legend(axes: Axes, rows: Sequence[Row]) -> Box:
    """Draws the legend; returns where."""
    handles = [Line2D([], [], color=_FRONT, linewidth=1.1, label="Pareto front")]
    for many, label in ((False, "one copy of the weights"), (True, "more copies of the weights")):
        if any((row.weight_copies > 1) == many for row in rows):
            handles.append(Line2D([], [], linestyle="", label=label, **_MARKERS[many]))
    legend = axes.legend(
        handles=handles, loc="upper right", fontsize=6.8, frameon=False, borderaxespad=0.2, handlelength=1.6
    )
    axes.figure.draw_without_rendering()  # type: ignore[union-attr]  # the axes are of a figure of their own
    scale = _POINTS_PER_INCH / axes.figure.dpi
    return Box(*(float(edge) * scale for edge in legend.get_window_extent().extents))
