"""One timeline of a page: its bars, what its ranks do at the cursor, and its memory where that is known.

The plot has no glyph a bar. Its bars are one image, a row of pixels a rank, that `page.js` draws again for the part
of the time axis in view; that takes milliseconds however many there are, and any of them can be told about.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from bokeh.models import ColumnDataSource, CustomJSHover, HoverTool, Model, Range1d
from bokeh.models import Span as Line
from bokeh.palettes import Viridis256, linear_palette
from bokeh.plotting import figure

from penstock.timeline import Timeline
from penstock.units import Unit, size_unit
from penstock.view.page_data import Sorted, memory_of, spans_of, waits_of
from penstock.view.palette import IDLE, TRANSFER, WAITING, look

STATE_PIXELS = 210
_ROW_PIXELS, _AXIS_PIXELS, _CURVE_PIXELS = 24, 54, 110
_INK = "#1b1b1b"
_LINES = ("title", "what", "when", "waited", "transfer")
"""The lines of a tooltip, as `penstock.tell` in page.js knows them."""


def looks_of(timelines: Sequence[Timeline]) -> dict[str, dict[str, Any]]:
    """Returns what page.js knows of each kind of op that occurs, and of the shades of time without compute."""
    kinds = {span.op.kind for timeline in timelines for span in timeline.spans}
    kinds |= {wait.op.kind for timeline in timelines for wait in timeline.waits}
    looks: dict[str, dict[str, Any]] = {
        str(int(kind)): {
            "letter": kind.name,
            "word": look(kind).word,
            "fill": _channels(look(kind).fill),
            "ink": look(kind).ink,
        }
        for kind in sorted(kinds)
    }
    shades = {"idle": IDLE, "waiting": WAITING, "transfer": TRANSFER}
    return looks | {name: {"fill": _channels(shade.tone)} for name, shade in shades.items()}


def _channels(colour: str) -> list[int]:
    """Returns red, green and blue of `#rrggbb`."""
    return list(bytes.fromhex(colour.removeprefix("#")))


class Panel:
    """The models of one timeline."""

    def __init__(self, name: str, timeline: Timeline, *, time: Range1d, unit: Unit, tools: Sequence[Any]) -> None:
        self.timeline = timeline
        self.unit = unit
        self.figure = _bar_figure(name, timeline, time=time, unit=unit, tools=tools)
        self.image = _no_pixels()
        self.state = ColumnDataSource({"x": [], "y": [], "text": [], "color": []})
        self.cursor = Line(location=0, dimension="height", line_color=_INK, line_width=1)
        self.memory = _Curves(timeline, time, unit) if timeline.memory else None
        ranks = timeline.num_ranks
        self.figure.image_rgba("image", x="x", y=-0.5, dw="dw", dh=ranks, source=self.image)
        self.figure.add_layout(self.cursor)

    def lines(self) -> list[list[Any]]:
        """Returns the rows of the page's grid that are this panel's."""
        beside = _plain_figure(height=self.figure.height, y_range=self.figure.y_range, x_range=Range1d(0, 1))
        beside.width, beside.sizing_mode = STATE_PIXELS, "fixed"
        style = {"text_font_size": "11px", "text_baseline": "middle"}
        beside.text("x", "y", "text", source=self.state, text_color="color", **style)
        beside.min_border_left = 8
        beside.xaxis.visible = beside.yaxis.visible = False
        return [[self.figure, beside], *([[self.memory.figure, None]] if self.memory else [])]

    def for_scripts(self) -> dict[str, Any]:
        """Returns the panel as page.js knows it."""
        spans, waits = spans_of(self.timeline, self.unit.per_base), waits_of(self.timeline, self.unit.per_base)
        return {
            "figure": self.figure,
            "image": self.image,
            "state": self.state,
            "cursor": self.cursor,
            "spans": ColumnDataSource(spans.columns),
            "firstSpan": spans.first,
            "waits": ColumnDataSource(waits.columns),
            "firstWait": waits.first,
            "ranks": self.timeline.num_ranks,
            "end": float(self.timeline.makespan) * self.unit.per_base,
            "memory": self.memory.script if self.memory else None,
        }

    def add_hover(self, script: dict[str, Any], looks: dict[str, Any]) -> None:
        """Lets the pointer tell about what it is over. `script` is what `for_scripts` returned."""
        rows = self.figure.hbar(
            y=list(range(self.timeline.num_ranks)), left=0, right=script["end"], height=1, fill_alpha=0, line_alpha=0
        )
        known = {name: script[name] for name in ("spans", "waits", "firstSpan", "firstWait", "ranks", "end")}
        about = CustomJSHover(
            args={"panel": known, "looks": looks, "unit": self.unit.name},
            code="return penstock.tell(panel, looks, unit, special_vars, format);",
        )
        title, *rest = _LINES
        told = f"<b>$x{{{title}}}</b>" + "".join(f"<div>$x{{{line}}}</div>" for line in rest)
        self.figure.add_tools(_hover(rows, told, about))


class _Curves:
    """The memory of a timeline's ranks, an image as well: no more of a curve than one can see."""

    def __init__(self, timeline: Timeline, time: Range1d, unit: Unit) -> None:
        most = max(timeline.peak_memory)
        bytes_unit = size_unit(most)
        self.steps: Sorted = memory_of(timeline, unit.per_base, bytes_unit.per_base)
        self.top = float(1.05 * most * bytes_unit.per_base) or 1.0
        self.colours = [_channels(colour) for colour in linear_palette(Viridis256[:230], timeline.num_ranks)]
        self.image = _no_pixels()
        self.figure = _plain_figure(
            height=_CURVE_PIXELS, sizing_mode="stretch_width", x_range=time, y_range=Range1d(0, self.top)
        )
        self.figure.yaxis.axis_label = f"memory ({bytes_unit.name})"
        self.figure.image_rgba("image", x="x", y=0, dw="dw", dh=self.top, source=self.image)
        end = float(timeline.makespan) * unit.per_base
        everywhere = self.figure.quad(left=0, right=end, bottom=0, top=self.top, fill_alpha=0, line_alpha=0)
        known = {"steps": ColumnDataSource(self.steps.columns), "first": self.steps.first, "colours": self.colours}
        code = "return penstock.tellMemory(memory, unit, special_vars);"
        about = CustomJSHover(args={"memory": known, "unit": bytes_unit.name}, code=code)
        self.figure.add_tools(_hover(everywhere, "$x{held}", about))
        self.script = {**known, "figure": self.figure, "image": self.image, "top": self.top}


def _no_pixels() -> ColumnDataSource:
    """Returns the source of an image before its first drawing."""
    return ColumnDataSource({"x": [0], "dw": [0], "image": [np.zeros((1, 1), np.uint32)]})


def _hover(over: Any, tooltip: str, about: CustomJSHover) -> HoverTool:
    """Returns a tool that shows what `about` says about where the pointer is, over a glyph that is not seen."""
    text = f'<div style="font-size:12px;line-height:1.45">{tooltip}</div>'
    return HoverTool(
        renderers=[over], tooltips=text, formatters={"$x": about}, point_policy="follow_mouse", visible=False
    )


def _plain_figure(**options: Any) -> Any:
    drawn = figure(toolbar_location=None, tools="", outline_line_color=None, **options)
    drawn.grid.grid_line_color = None
    drawn.axis.axis_line_color = drawn.axis.major_tick_line_color = "#c4c4c4"
    drawn.axis.minor_tick_line_color = None
    drawn.axis.major_label_text_font_size = "11px"
    drawn.axis.axis_label_text_font_style = "normal"
    drawn.min_border_left, drawn.min_border_right = 64, 4
    return drawn


def _row_pixels(timeline: Timeline) -> int:
    return max(6, min(_ROW_PIXELS, 640 // timeline.num_ranks))


def _bar_figure(name: str, timeline: Timeline, *, time: Range1d, unit: Unit, tools: Sequence[Any]) -> Any:
    ranks, row_pixels = timeline.num_ranks, _row_pixels(timeline)
    drawn = _plain_figure(
        height=ranks * row_pixels + _AXIS_PIXELS,
        sizing_mode="stretch_width",
        x_range=time,
        y_range=Range1d(ranks - 0.5, -0.5),
        title=f"{name}    bubble {float(timeline.bubble_fraction):.1%}    makespan {unit.text(timeline.makespan)}",
    )
    drawn.title.text_color, drawn.title.text_font_size = _INK, "13px"
    drawn.add_tools(*tools)
    shown = range(0, ranks, 1 if row_pixels >= 12 else 4)
    drawn.yaxis.ticker = list(shown)
    drawn.yaxis.major_label_overrides = {rank: f"rank {rank}" for rank in shown}
    drawn.yaxis.axis_line_color = drawn.yaxis.major_tick_line_color = None
    drawn.xaxis.axis_label = f"time ({unit.name})"
    return drawn


def models_of(panels: Sequence[Panel]) -> list[list[Model]]:
    """Returns the rows of the page's grid, from top to bottom."""
    return [line for panel in panels for line in panel.lines()]
