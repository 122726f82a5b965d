r"""Timelines as one interactive page: a single file that needs no network.

heading, legend, [◀] [▶] ──●────────── the cursor steps through the starts and ends of ops
┌ name    bubble 27.3 %    makespan 33 s ─────────┐
│ rank 0  [F0][F1]…│                              │ F1 of stage 0
│ rank 1  ////[F0]…│                              │ waiting for rank 0
└──────────────────────────────────────────────────┘
one such panel a timeline, all on one time axis: zoom with the wheel, drag to move, hover for what an op is.

Bars are drawn by WebGL, which leaves a hundred thousand of them to the graphics processor. Numbers in bars are text,
which is slow, so the page writes them only into the bars in view, and only while there are few of them. See
`page_scripts.py` for that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from bokeh.embed import file_html
from bokeh.layouts import column, gridplot, row
from bokeh.models import (
    BoxZoomTool,
    Button,
    ColumnDataSource,
    CustomJS,
    CustomJSHover,
    Div,
    HoverTool,
    Model,
    PanTool,
    Range1d,
    ResetTool,
    SaveTool,
    Slider,
    WheelZoomTool,
)
from bokeh.models import Span as Line
from bokeh.palettes import Viridis256, linear_palette
from bokeh.plotting import figure
from bokeh.resources import INLINE

from penstock.errors import UserError
from penstock.ir.ops import OpKind
from penstock.timeline import Timeline
from penstock.view import page_scripts
from penstock.view.comparison import Row
from penstock.view.page_comparison import comparison_figure, comparison_html
from penstock.view.page_data import bars_of, moments_of, waits_of
from penstock.view.palette import IDLE, LOOKS, TRANSFER, WAITING, look
from penstock.view.units import Unit, size_unit, time_unit

_ROW_PIXELS, _AXIS_PIXELS, _CURVE_PIXELS, _STATE_PIXELS = 24, 54, 110, 210
_BAR_HEIGHT = 0.82
_CROWDED = 250
"""Above so many bars a rank they have no rim."""
_LONGEST_VIEW = 1.5
"""At first the page shows the time axis up to so many times the shortest makespan."""
_OF_A_STAGE = frozenset({OpKind.S, OpKind.REDUCE_GRAD})
"""Kinds whose ops may belong to no microbatch."""
_PALE, _INK = "#5c5c5c", "#1b1b1b"


def save_page(timelines: Mapping[str, Timeline], path: str | Path, *, rows: Sequence[Row] = ()) -> None:
    """Writes the page of `timelines`, name -> timeline, to the file at `path`.

    Args:
        timelines: from top to bottom.
        path: of the HTML file.
        rows: a comparison to tabulate above them.

    Raises:
        UserError: nothing to draw, or a file that cannot be written.
    """
    page = page_html(timelines, rows=rows)
    try:
        Path(path).write_text(page, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None


def page_html(timelines: Mapping[str, Timeline], *, rows: Sequence[Row] = ()) -> str:
    """Returns the page as text.

    Raises:
        UserError: no timeline has an op that takes time.
    """
    if not any(timeline.makespan for timeline in timelines.values()):
        raise UserError("there is nothing to draw: no timeline has an op that takes time")
    title = ", ".join(timelines)
    return str(file_html(_layout(timelines, rows), INLINE, title=title, suppress_callback_warning=True))


def _layout(timelines: Mapping[str, Timeline], rows: Sequence[Row]) -> Model:
    end = max(float(timeline.makespan) for timeline in timelines.values())
    unit = time_unit(end)
    shortest = min(float(timeline.makespan) for timeline in timelines.values() if timeline.makespan)
    view = min(end, _LONGEST_VIEW * shortest) * unit.per_base * 1.002
    time = Range1d(0, view, bounds=(0, end * unit.per_base * 1.02))
    wheel = WheelZoomTool(dimensions="width")
    tools = [PanTool(dimensions="width"), wheel, BoxZoomTool(dimensions="width"), ResetTool(), SaveTool()]
    panels = [_Panel(name, timeline, time, unit, tools) for name, timeline in timelines.items()]
    slider = _slider(panels, timelines, unit)
    grid = gridplot(
        [line for panel in panels for line in panel.lines()],
        merge_tools=True,
        toolbar_location="right",
        toolbar_options={"logo": None, "active_scroll": wheel},
    )
    grid.sizing_mode = "stretch_width"
    grid.cols = ["1fr", f"{_STATE_PIXELS}px"]
    parts = [_heading(timelines), *_comparison(rows), slider, grid]
    return column(*parts, sizing_mode="stretch_width", styles={"max-width": "1500px", "margin": "0 auto"})


class _Panel:
    """One timeline: its bars, the column of what ranks do at the cursor, and its memory where that is known."""

    def __init__(self, name: str, timeline: Timeline, time: Range1d, unit: Unit, tools: Sequence[Any]) -> None:
        self.timeline = timeline
        self.unit = unit
        self.figure = _bar_figure(name, timeline, time, unit, tools)
        self.labels = ColumnDataSource({"x": [], "y": [], "text": [], "color": []})
        self.state = ColumnDataSource({"x": [], "y": [], "text": [], "color": []})
        self.waits = [ColumnDataSource(columns) for columns in waits_of(timeline, unit.per_base)]
        self.bars = {kind: ColumnDataSource(bars) for kind, bars in bars_of(timeline, unit.per_base).items()}
        self.cursor = Line(location=0, dimension="height", line_color=_INK, line_width=1)
        self._draw()

    def _draw(self) -> None:
        tells = ("waits for rank @source to send what @op needs", "what @op needs is under way from rank @source")
        for source, shade, told in zip(self.waits, (WAITING, TRANSFER), tells, strict=True):
            drawn = self._bars(source, fill_color=shade.tone)
            self._hover(drawn, f"<b>rank @rank</b> {told}<br>@start{{0.[0000]}} to @end{{0.[0000]}} {self.unit.name}")
        # A rim parts neighbours of one kind. Round many narrow bars it would be all that one sees.
        crowded = len(self.timeline.spans) > _CROWDED * self.timeline.num_ranks
        rim = None if crowded else "white"
        for kind, source in self.bars.items():
            drawn = self._bars(source, fill_color=look(kind).fill, line_color=rim, line_width=0.5)
            delay = CustomJSHover(args={"source": source, "unit": self.unit.name}, code=page_scripts.TELL_DELAY)
            self._hover(drawn, _tooltip(kind, self.unit), formatters={"@source": delay})
        style = {"text_align": "center", "text_baseline": "middle", "text_font_size": "11px"}
        self.figure.text("x", "y", "text", source=self.labels, text_color="color", **style)
        self.figure.add_layout(self.cursor)

    def _bars(self, source: ColumnDataSource, *, line_color: str | None = None, **style: Any) -> Any:
        return self.figure.hbar(
            y="rank", left="start", right="end", height=_BAR_HEIGHT, source=source, line_color=line_color, **style
        )

    def _hover(self, drawn: Any, tooltip: str, *, formatters: dict[str, Any] | None = None) -> None:
        hover = HoverTool(renderers=[drawn], tooltips=tooltip, formatters=formatters or {}, visible=False)
        self.figure.add_tools(hover)

    def lines(self) -> list[list[Any]]:
        """Returns the rows of the page's grid that are this panel's."""
        beside = _plain_figure(height=self.figure.height, y_range=self.figure.y_range, x_range=Range1d(0, 1))
        beside.width, beside.sizing_mode = _STATE_PIXELS, "fixed"
        beside.text(
            "x", "y", "text", source=self.state, text_color="color", text_font_size="11px", text_baseline="middle"
        )
        beside.min_border_left = 8
        beside.xaxis.visible = beside.yaxis.visible = False
        memory = [[_memory_figure(self.timeline, self.figure.x_range, self.unit), None]] if self.timeline.memory else []
        return [[self.figure, beside], *memory]

    def for_scripts(self) -> dict[str, Any]:
        """Returns what the scripts read and write; see `page_scripts`."""
        return {
            "figure": self.figure,
            "labels": self.labels,
            "state": self.state,
            "bars": [
                {"source": source, "letter": kind.name, "word": look(kind).word, "ink": look(kind).ink}
                for kind, source in self.bars.items()
            ],
            "waiting": self.waits[0],
            "transfer": self.waits[1],
            "ranks": self.timeline.num_ranks,
            "end": float(self.timeline.makespan) * self.unit.per_base,
        }


def _plain_figure(**options: Any) -> Any:
    drawn = figure(toolbar_location=None, tools="", output_backend="webgl", outline_line_color=None, **options)
    drawn.grid.grid_line_color = None
    drawn.axis.axis_line_color = drawn.axis.major_tick_line_color = "#c4c4c4"
    drawn.axis.minor_tick_line_color = None
    drawn.axis.major_label_text_font_size = "11px"
    drawn.axis.axis_label_text_font_style = "normal"
    drawn.min_border_left, drawn.min_border_right = 64, 4
    return drawn


def _bar_figure(name: str, timeline: Timeline, time: Range1d, unit: Unit, tools: Sequence[Any]) -> Any:
    ranks = timeline.num_ranks
    row_pixels = max(6, min(_ROW_PIXELS, 640 // ranks))
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
    drawn.background_fill_color = IDLE.fill
    return drawn


def _memory_figure(timeline: Timeline, time: Range1d, unit: Unit) -> Any:
    bytes_unit = size_unit(max(timeline.peak_memory))
    drawn = _plain_figure(height=_CURVE_PIXELS, sizing_mode="stretch_width", x_range=time)
    drawn.yaxis.axis_label = f"memory ({bytes_unit.name})"
    drawn.y_range.start = 0
    colours = linear_palette(Viridis256[:230], timeline.num_ranks)
    for rank, curve in enumerate(timeline.memory):
        steps = [*curve, (timeline.makespan, curve[-1][1] if curve else 0)]
        times = np.array([float(seconds) * unit.per_base for seconds, _ in steps])
        held = np.array([float(num_bytes) * bytes_unit.per_base for _, num_bytes in steps], np.float32)
        line = drawn.step(times, held, mode="after", line_color=colours[rank], line_width=1.3)
        tooltip = f"rank {rank}: @y{{0.[000]}} {bytes_unit.name}"
        drawn.add_tools(HoverTool(renderers=[line], tooltips=tooltip, visible=False))
    return drawn


def _tooltip(kind: OpKind, unit: Unit) -> str:
    which = "" if kind in _OF_A_STAGE else " of microbatch @microbatch"
    return (
        f"<b>@stage{kind.name}{'' if kind in _OF_A_STAGE else '@microbatch'}</b> on rank @rank<br>"
        f"{look(kind).word}{which}, stage @stage<br>"
        f"@start{{0.[0000]}} to @end{{0.[0000]}} {unit.name}, takes @length{{0.[0000]}} {unit.name}<br>"
        "@source{custom}"
    )


def _slider(panels: Sequence[_Panel], timelines: Mapping[str, Timeline], unit: Unit) -> Model:
    """Returns the row that moves the cursor, and binds the scripts."""
    moments = moments_of(timelines.values(), unit.per_base)
    slider = Slider(start=0, end=max(len(moments) - 1, 1), value=0, step=1, title=None, show_value=False)
    slider.sizing_mode = "stretch_width"
    shown = Div(text=f"<b>0 {unit.name}</b>", width=90, styles={"padding-top": "6px"})
    scripts = [panel.for_scripts() for panel in panels]
    moved = CustomJS(
        args={
            "panels": scripts,
            "slider": slider,
            "moments": moments,
            "lines": [panel.cursor for panel in panels],
            "shown": shown,
            "unit": unit.name,
        },
        code=page_scripts.MOVE_CURSOR,
    )
    numbered = CustomJS(args={"panels": scripts, "cursor": panels[0].cursor}, code=page_scripts.NUMBER_BARS)
    slider.js_on_change("value", moved)
    for edge in ("start", "end"):
        panels[0].figure.x_range.js_on_change(edge, numbered)
    # The width is known once the page is laid out: the first moment at which numbers can be placed.
    panels[0].figure.js_on_change("inner_width", numbered, moved)
    return row(_button("◀", slider, -1), _button("▶", slider, +1), shown, slider, sizing_mode="stretch_width")


def _button(label: str, slider: Slider, by: int) -> Button:
    button = Button(label=label, width=34)
    button.js_on_event("button_click", CustomJS(args={"slider": slider, "by": by}, code=page_scripts.STEP))
    return button


def _heading(timelines: Mapping[str, Timeline]) -> Div:
    kinds = {span.op.kind for timeline in timelines.values() for span in timeline.spans if span.end > span.start}
    chips = [(look(kind).fill, look(kind).word) for kind in LOOKS if kind in kinds]
    chips += [(shade.tone, shade.word) for shade in (WAITING, TRANSFER)] + [(IDLE.fill, IDLE.word)]
    legend = " ".join(
        f'<span style="white-space:nowrap;margin-right:14px"><span style="display:inline-block;width:14px;height:11px;'
        f'border:1px solid #d8d8d8;background:{fill};margin-right:5px"></span>{escape(word)}</span>'
        for fill, word in chips
    )
    help_line = "Wheel: zoom. Drag: move. Hover: what an op is and whom it waited for. Arrows and slider: step in time."
    text = f'{legend}<br><span style="color:{_PALE}">{help_line}</span>'
    return Div(text=text, sizing_mode="stretch_width", styles={"font-size": "12px", "line-height": "1.9"})


def _comparison(rows: Sequence[Row]) -> list[Model]:
    """Returns the table of a comparison beside its points; nothing where nothing is compared."""
    if not rows:
        return []
    return [row(Div(text=comparison_html(rows)), comparison_figure(rows))]
