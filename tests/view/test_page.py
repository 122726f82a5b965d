"""A page is one file that reaches for no network, with a panel a timeline, all on one time axis."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from bokeh.models import (
    CustomJS,
    CustomJSHover,
    FactorRange,
    GlyphRenderer,
    HoverTool,
    ImageRGBA,
    Plot,
    Range1d,
    Slider,
)

from penstock.costs import StageCosts
from penstock.errors import UserError
from penstock.schedules import one_f_one_b, zb_h1
from penstock.simulator import simulate
from penstock.timeline import Timeline
from penstock.units import time_unit
from penstock.view import page
from penstock.view.comparison import compare
from penstock.view.page import page_html, save_page

COSTS = StageCosts(0.001, 0.001, 0.001)


def pair(**costs: float) -> dict[str, Timeline]:
    given = StageCosts(0.001, 0.001, 0.001, **costs)
    return {"one": simulate(one_f_one_b(3, 5), given), "two": simulate(zb_h1(4, 8), given)}


def models(kind: type, timelines: dict[str, Timeline] | None = None) -> list:  # type: ignore[type-arg]
    return list(page._layout(timelines or pair(), ()).select({"type": kind}))


def test_nothing_is_fetched(tmp_path: Path) -> None:
    save_page(pair(), tmp_path / "a.html")
    text = (tmp_path / "a.html").read_text()
    assert "<title>one, two</title>" in text
    assert not re.search(r"<script[^>]*\bsrc\s*=", text)
    outside_scripts = re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
    assert not re.search(r"\b(src|href)\s*=|url\(|@import", outside_scripts)


def test_every_timeline_has_its_own_rows_and_follows_the_time_axis_that_changes() -> None:
    bars = sorted((plot for plot in models(Plot) if plot.title.text), key=lambda plot: str(plot.title.text))
    assert [plot.title.text.split()[0] for plot in bars] == ["one", "two"]
    assert [plot.y_range.start for plot in bars] == [2.5, 3.5]
    assert not models(FactorRange)
    for plot in bars:
        for edge in ("start", "end"):
            (script,) = plot.x_range.js_property_callbacks[f"change:{edge}"]
            assert "penstock.draw" in script.code
            assert script.args["panels"][script.args["number"]]["figure"] is plot


def test_times_are_in_the_unit_on_the_axis() -> None:
    end = max(timeline.makespan for timeline in pair().values())
    assert any(each.start == 0 and each.end == pytest.approx(1002 * end) for each in models(Range1d))
    assert any(plot.below[0].axis_label == "time (ms)" for plot in models(Plot))


def test_bars_are_one_image_a_timeline_however_many_there_are() -> None:
    images = [drawn for drawn in models(GlyphRenderer) if isinstance(drawn.glyph, ImageRGBA)]
    assert len(images) == 2


def test_hovering_tells_five_lines_about_the_columns_of_the_panel() -> None:
    tips = {tool.tooltips: tool.formatters["$x"] for tool in models(HoverTool)}
    (tip,) = tips
    assert re.findall(r"\$x\{(\w+)\}", tip) == ["title", "what", "when", "waited", "transfer"]
    for about in models(CustomJSHover):
        assert about.args["panel"]["ranks"] + 1 == len(about.args["panel"]["firstSpan"])


def test_one_long_timeline_does_not_squeeze_the_others_at_first() -> None:
    slow = {"slow": simulate(one_f_one_b(2, 4), StageCosts(100, 100, 100)), **pair()}
    time = next(plot.x_range for plot in models(Plot, slow) if plot.title.text)
    shortest = min(timeline.makespan for timeline in slow.values())
    unit = time_unit(slow["slow"].makespan)
    assert time.end == pytest.approx(1.5 * shortest * unit.per_base * 1.002)
    assert time.bounds[1] >= slow["slow"].makespan


def test_the_slider_steps_through_every_start_and_end() -> None:
    (slider,) = models(Slider, {"one": simulate(one_f_one_b(1, 2), StageCosts())})
    # 0, 1, 3, 4, 6.
    assert (slider.start, slider.end, slider.step) == (0, 4, 1)


def test_scripts_get_every_name_that_they_use() -> None:
    for script in models(CustomJS):
        names = ("panels", "looks", "number", "slider", "moments", "shown", "unit", "by")
        used = {name for name in names if re.search(rf"(?<![\w.]){name}\b(?!:)", script.code)}
        assert used <= set(script.args), script.code


def test_memory_is_drawn_where_it_is_known() -> None:
    def titles(timelines: dict[str, Timeline]) -> list[str]:
        return [str(plot.left[0].axis_label) for plot in models(Plot, timelines) if plot.left]

    curves = [drawn for drawn in models(GlyphRenderer, pair(activation_bytes=1)) if isinstance(drawn.glyph, ImageRGBA)]
    assert len(curves) == 4
    assert titles(pair(activation_bytes=1 << 20)).count("memory (MiB)") == 2
    assert not any("memory" in title for title in titles(pair()))


def test_a_comparison_has_its_table_and_names_are_text_not_markup() -> None:
    rows = compare(2, 4, names=["gpipe", "zb_h1"]).rows
    text = page_html({"<b>": rows[0].timeline}, rows=rows)
    assert "<title>&lt;b&gt;</title>" in text
    assert "makespan (s)" in text and "zb_h1" in text


def test_a_hundred_thousand_spans_stay_a_small_file() -> None:
    timeline = simulate(one_f_one_b(8, 1000), StageCosts())
    empty = len(page_html({"a": simulate(one_f_one_b(1, 1), StageCosts())}))
    per_span = (len(page_html({"a": timeline})) - empty) / len(timeline.spans)
    assert per_span < 70


def test_bokeh_is_loaded_for_pages_only() -> None:
    code = "import sys, penstock.cli.compare, penstock.cli.show; sys.exit('bokeh' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_what_cannot_be_drawn_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing to draw"):
        save_page({"empty": Timeline(2, ())}, tmp_path / "a.html")
    with pytest.raises(UserError, match=r"cannot write .*absent/a.html: No such file"):
        save_page(pair(), tmp_path / "absent" / "a.html")
