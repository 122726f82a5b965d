r"""Timelines as one interactive page: a single file that needs no network.

heading, legend, [◀] [▶] ──●────────── the cursor steps through the starts and ends of ops
┌ name    bubble 27.3 %    makespan 33 s ─────────┐
│ rank 0  [F0][F1]…│                              │ F1 of stage 0
│ rank 1  ////[F0]…│                              │ waiting for rank 0
└──────────────────────────────────────────────────┘
one such panel a timeline, all on one time axis: zoom with the wheel, drag to move, hover for what an op is.

`page_data.py` turns a timeline into columns, `page_panel.py` makes a panel of them, and `page.js` draws the part of it
that is in view.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from bokeh.embed import file_html
from bokeh.layouts import column, gridplot, row
from bokeh.models import (
    BoxZoomTool,
    Button,
    CustomJS,
    Div,
    Model,
    PanTool,
    Range1d,
    ResetTool,
    SaveTool,
    Slider,
    WheelZoomTool,
)
from bokeh.resources import INLINE

from penstock.errors import UserError
from penstock.notation.whole_file import write_whole
from penstock.timeline import Timeline
from penstock.units import Unit, time_unit
from penstock.view.comparison import Row
from penstock.view.page_comparison import comparison_figure, comparison_html
from penstock.view.page_data import moments_of
from penstock.view.page_panel import STATE_PIXELS, Panel, looks_of, models_of
from penstock.view.palette import IDLE, LOOKS, TRANSFER, WAITING, look

_LONGEST_VIEW = 1.5
"""At first the page shows the time axis up to so many times the shortest makespan."""
_PALE = "#5c5c5c"
_TEMPLATE = """
{% block postamble %}
<style>body { font-family: Helvetica, Arial, sans-serif; color: #1b1b1b; }</style>
<script>{{ functions }}</script>
{% endblock %}
"""
"""The page around the panels, as a part of Bokeh's own."""


def save_page(
    timelines: Mapping[str, Timeline], path: str | Path, *, rows: Sequence[Row] = (), above: str = ""
) -> None:
    """Writes the page of `timelines`, name -> timeline, to the file at `path`.

    Args:
        timelines: from top to bottom.
        path: of the HTML file.
        rows: a comparison to tabulate above them.
        above: HTML above all else.

    Raises:
        UserError: nothing to draw, or a file that cannot be written.
    """
    write_whole(path, page_html(timelines, rows=rows, above=above))


def page_html(timelines: Mapping[str, Timeline], *, rows: Sequence[Row] = (), above: str = "") -> str:
    """Returns the page as text.

    Raises:
        UserError: no timeline has an op that takes time.
    """
    if not any(timeline.makespan for timeline in timelines.values()):
        raise UserError("there is nothing to draw: no timeline has an op that takes time")
    page = file_html(
        _layout(timelines, rows, above),
        INLINE,
        title=", ".join(timelines),
        template=_TEMPLATE,
        template_variables={"functions": files("penstock.view").joinpath("page.js").read_text("utf-8")},
        suppress_callback_warning=True,
    )
    return str(page)


def _layout(timelines: Mapping[str, Timeline], rows: Sequence[Row], above: str = "") -> Model:
    end = max(float(timeline.makespan) for timeline in timelines.values())
    unit = time_unit(end)
    shortest = min(float(timeline.makespan) for timeline in timelines.values() if timeline.makespan)
    view = min(end, _LONGEST_VIEW * shortest) * unit.per_base * 1.002
    bounds = (0, end * unit.per_base * 1.02)
    wheel = WheelZoomTool(dimensions="width")
    tools = [PanTool(dimensions="width"), wheel, BoxZoomTool(dimensions="width"), ResetTool(), SaveTool()]
    panels = [
        Panel(name, timeline, time=Range1d(0, view, bounds=bounds), unit=unit, tools=tools)
        for name, timeline in timelines.items()
    ]
    grid = gridplot(
        models_of(panels),
        merge_tools=True,
        toolbar_location="right",
        toolbar_options={"logo": None, "active_scroll": wheel},
    )
    grid.sizing_mode = "stretch_width"
    grid.cols = ["1fr", f"{STATE_PIXELS}px"]
    # After the grid, which follows whatever its plots refer to: a script refers to all panels.
    slider = _bind(panels, timelines, unit)
    first = [Div(text=above, sizing_mode="stretch_width")] if above else []
    parts = [*first, _heading(timelines), *_comparison(rows), slider, grid]
    return column(*parts, sizing_mode="stretch_width", styles={"max-width": "1500px", "margin": "0 auto"})


def _bind(panels: Sequence[Panel], timelines: Mapping[str, Timeline], unit: Unit) -> Model:
    """Binds the scripts of page.js to the panels; returns the row that moves the cursor."""
    scripts, looks = [panel.for_scripts() for panel in panels], looks_of(list(timelines.values()))
    for panel, script in zip(panels, scripts, strict=True):
        panel.add_hover(script, looks)
    known: dict[str, Any] = {"panels": scripts, "looks": looks}
    for number, panel in enumerate(panels):
        draw = CustomJS(args={**known, "number": number}, code="penstock.draw(panels, looks, panels[number]);")
        for edge in ("start", "end"):
            panel.figure.x_range.js_on_change(edge, draw)
        # The width is known once the page is laid out: the first moment at which anything can be drawn.
        panel.figure.js_on_change("inner_width", draw)
    return _slider(known, timelines, unit)


def _slider(known: dict[str, Any], timelines: Mapping[str, Timeline], unit: Unit) -> Model:
    """Returns the row that moves the cursor."""
    moments = moments_of(timelines.values(), unit.per_base)
    slider = Slider(start=0, end=max(len(moments) - 1, 1), value=0, step=1, title=None, show_value=False)
    slider.sizing_mode = "stretch_width"
    shown = Div(text=f"<b>0 {unit.name}</b>", width=90, styles={"padding-top": "6px"})
    moved = CustomJS(
        args={**known, "slider": slider, "moments": moments, "shown": shown, "unit": unit.name},
        code="""
            const now = moments[Math.min(slider.value, moments.length - 1)];
            shown.text = `<b>${+now.toPrecision(6)} ${unit}</b>`;
            penstock.move(panels, looks, now);
        """,
    )
    slider.js_on_change("value", moved)
    known["panels"][0]["figure"].js_on_change("inner_width", moved)
    return row(_button("◀", slider, -1), _button("▶", slider, +1), shown, slider, sizing_mode="stretch_width")


def _button(label: str, slider: Slider, by: int) -> Button:
    button = Button(label=label, width=34)
    step = "slider.value = Math.min(slider.end, Math.max(slider.start, slider.value + by));"
    button.js_on_event("button_click", CustomJS(args={"slider": slider, "by": by}, code=step))
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
