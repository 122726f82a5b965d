"""On a page a comparison is a table with all its numbers, and points with names."""

import pytest
from bokeh.models import GlyphRenderer, Scatter, Text

from penstock.view.comparison import compare
from penstock.view.page_comparison import _Axis, comparison_figure, comparison_html

ROWS = compare(4, 8, names=["gpipe", "one_f_one_b", "pipedream", "zb_h1"]).rows


def test_the_table_has_a_row_a_schedule_in_the_order_of_the_comparison() -> None:
    cells = [row.split("</td>")[0].rpartition(">")[2] for row in comparison_html(ROWS).split("<tr>")[2:]]
    assert cells == [row.name for row in ROWS]


def test_numbers_are_those_of_the_row() -> None:
    row = next(part for part in comparison_html(ROWS).split("<tr>") if "pipedream" in part)
    texts = [cell.rpartition(">")[2] for cell in row.split("</td>")[1:-1]]
    assert texts == ["1", "27.3%", "33", "33", "4", "0", "4", "48"]


def test_every_schedule_is_a_point_and_named() -> None:
    drawn = comparison_figure(ROWS)
    sources = {type(each.glyph): each.data_source.data for each in drawn.select({"type": GlyphRenderer})}
    assert sorted(sources[Scatter]["name"]) == sorted(row.name for row in ROWS)
    assert sorted("\n".join(sources[Text]["text"]).split("\n")) == sorted(row.name for row in ROWS)


@pytest.mark.parametrize(("values", "log"), [((1.0, 8.0), True), ((0.0, 8.0), False), ((0.0,), False)])
def test_axes_have_room_around_all_values(values: tuple[float, ...], log: bool) -> None:
    axis = _Axis.of(values, 500)
    assert axis.log == log
    assert all(0 < axis.at(value) < 500 for value in values)
