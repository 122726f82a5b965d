"""The part of a page that compares schedules: a table, and points of memory against bubble."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any, NamedTuple

from bokeh.models import ColumnDataSource, HoverTool, NumeralTickFormatter, Range1d
from bokeh.plotting import figure

from penstock.units import time_unit
from penstock.view.comparison import Row, pareto
from penstock.view.labels import Box, Label, place_labels, stairs, strokes

_WIDTH, _HEIGHT, _LABEL_PIXELS = 560, 360, 11
_MARGIN = 80
"""Pixels for an axis with its name."""
_FRONT, _ONE, _MORE = "#8aa9c4", "#2f6fa8", "#cf6a3c"


def comparison_html(rows: Sequence[Row]) -> str:
    """Returns the rows as an HTML table."""
    unit = time_unit(max(row.makespan for row in rows))
    headings = (
        "v",
        "bubble",
        f"makespan ({unit.name})",
        f"span ({unit.name})",
        "peak",
        "deferred",
        "copies",
        "messages",
    )
    head = "".join(f'<th style="text-align:right;padding:1px 9px">{heading}</th>' for heading in headings)
    body = "".join(
        f"<tr><td>{escape(row.name)}</td>"
        + "".join(f'<td style="text-align:right;padding:1px 9px">{text}</td>' for text in _texts(row, unit.number))
        + "</tr>"
        for row in rows
    )
    return f'<table style="font-size:12px;border-collapse:collapse"><tr><th></th>{head}</tr>{body}</table>'


def _texts(row: Row, seconds: Any) -> list[str]:
    counts = (row.peak_activations, row.peak_deferred, row.weight_copies)
    return [
        str(row.num_chunks),
        f"{float(row.bubble_fraction):.1%}",
        seconds(row.makespan),
        seconds(row.per_rank_span),
        *(f"{float(count):.4g}" for count in counts),
        str(row.messages),
    ]


def comparison_figure(rows: Sequence[Row]) -> Any:
    """Returns the points of `rows` with the Pareto front; hovering tells a point's numbers."""
    points = [(float(row.peak_activations), float(row.bubble_fraction)) for row in rows]
    axes = [
        _Axis.of(values, pixels) for values, pixels in zip(zip(*points, strict=True), (_WIDTH, _HEIGHT), strict=True)
    ]
    drawn = figure(
        width=_WIDTH + _MARGIN,
        height=_HEIGHT + _MARGIN,
        frame_width=_WIDTH,
        frame_height=_HEIGHT,
        x_range=Range1d(axes[0].low, axes[0].high),
        y_range=Range1d(axes[1].low, axes[1].high),
        x_axis_type="log" if axes[0].log else "linear",
        y_axis_type="log" if axes[1].log else "linear",
        tools="",
        toolbar_location=None,
        outline_line_color=None,
        min_width=_WIDTH + _MARGIN,
    )
    front = [(float(row.peak_activations), float(row.bubble_fraction)) for row in pareto(rows)]
    drawn.step([x for x, _ in front], [y for _, y in front], mode="after", line_color=_FRONT, line_width=1.5)
    source = ColumnDataSource(
        {
            "memory": [x for x, _ in points],
            "bubble": [y for _, y in points],
            "name": [row.name for row in rows],
            "copies": [float(row.weight_copies) for row in rows],
            "color": [_MORE if row.weight_copies > 1 else _ONE for row in rows],
        }
    )
    dots = drawn.scatter("memory", "bubble", size=9, color="color", fill_alpha=0.75, source=source)
    tooltip = "<b>@name</b><br>bubble @bubble{0.0%}<br>peak @memory{0.[00]} activations<br>@copies{0.[0]} × weights"
    drawn.add_tools(HoverTool(renderers=[dots], tooltips=tooltip))
    _name_points(drawn, rows, points, axes)
    drawn.xaxis.axis_label = "peak memory (activations of a microbatch on a rank)"
    drawn.yaxis.axis_label = "bubble (idle / total)"
    drawn.yaxis.formatter = NumeralTickFormatter(format="0%")
    drawn.xaxis.formatter = NumeralTickFormatter(format="0.[00]")
    drawn.axis.axis_label_text_font_style = "normal"
    drawn.axis.minor_tick_line_color = None
    if axes[0].log:
        drawn.xaxis.ticker = [2.0**power for power in range(-6, 20)]
    if axes[1].log:
        drawn.yaxis.ticker = [digit * 10.0**power for power in range(-4, 1) for digit in (1, 2, 5)]
    drawn.grid.grid_line_color = "#ececec"
    return drawn


class _Axis(NamedTuple):
    """An axis of fixed length: what lies where on it, in pixels."""

    low: float
    high: float
    pixels: float
    log: bool

    @staticmethod
    def of(values: Sequence[float], pixels: float) -> _Axis:
        """Returns an axis with room around `values`, logarithmic where all are above 0."""
        low, high = min(values), max(values)
        if low <= 0:
            return _Axis(-0.08 * (high or 1), 1.2 * (high or 1), pixels, log=False)
        margin = max(high / low, 2) ** 0.1
        return _Axis(low / margin, high * margin**1.5, pixels, log=True)

    def at(self, value: float) -> float:
        """Returns where `value` lies."""
        scale = math.log if self.log else float
        return self.pixels * (scale(value) - scale(self.low)) / (scale(self.high) - scale(self.low))

    def value(self, at: float) -> float:
        """Returns what lies at `at`; the inverse of `at`."""
        part = at / self.pixels
        if self.log:
            return self.low * math.exp(part * math.log(self.high / self.low))
        return self.low + part * (self.high - self.low)


def _name_points(drawn: Any, rows: Sequence[Row], points: Sequence[tuple[float, float]], axes: Sequence[_Axis]) -> None:
    """Writes the names beside the points; those at one point share a label."""
    names: dict[tuple[float, float], list[str]] = {}
    for row, point in zip(rows, points, strict=True):
        names.setdefault(point, []).append(row.name)
    labels = [Label((axes[0].at(x), axes[1].at(y)), "\n".join(group)) for (x, y), group in names.items()]
    front = [(axes[0].at(float(row.peak_activations)), axes[1].at(float(row.bubble_fraction))) for row in pareto(rows)]
    places = place_labels(
        labels, font_points=_LABEL_PIXELS, frame=Box(0, 0, _WIDTH, _HEIGHT), obstacles=strokes(stairs(front))
    )
    source = ColumnDataSource(
        {
            "memory": [x for x, _ in names],
            "bubble": [y for _, y in names],
            "text": [label.text for label in labels],
            "right": [place.box.left - label.point[0] for label, place in zip(labels, places, strict=True)],
            # On a page y counts downwards.
            "down": [label.point[1] - place.box.bottom for label, place in zip(labels, places, strict=True)],
        }
    )
    for label, (box, distant) in zip(labels, places, strict=True):
        if distant:
            ends = (label.point, (min(max(label.point[0], box.left), box.right), (box.bottom + box.top) / 2))
            xs, ys = ([axis.value(end[side]) for end in ends] for side, axis in enumerate(axes))
            drawn.line(xs, ys, line_color="#a0a0a0", line_width=0.7, level="underlay")
    style = {"text_font_size": f"{_LABEL_PIXELS}px", "text_baseline": "bottom", "text_line_height": 1.15}
    drawn.text("memory", "bubble", "text", x_offset="right", y_offset="down", source=source, **style)
