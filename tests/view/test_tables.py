"""The bubble table adds up, says what its words mean, and fits 80 columns of plain text."""

import io

import pytest
from rich.console import Console
from rich.table import Table

from penstock.costs import StageCosts
from penstock.errors import UserError
from penstock.ir.ops import Op, OpKind
from penstock.schedules import one_f_one_b
from penstock.simulator import simulate
from penstock.timeline import Span, Timeline, Wait
from penstock.view.comparison import compare
from penstock.view.tables import bubble_table, comparison_table, rank_table

# Two ranks, one microbatch, in milliseconds:
#   rank 0: 1 host, F 10, then nothing until the end at 40
#   rank 1: 12 waiting for rank 0, 4 transfer, 4 host, F 20
F0, F1 = Op(OpKind.F, 0, 0), Op(OpKind.F, 1, 0)
MEASURED = Timeline(
    2,
    (Span(0, F0, 0.001, 0.011), Span(1, F1, 0.020, 0.040)),
    (Wait(1, F1, 0, 0.016, 0, 0.012),),
)
PLANNED = Timeline(2, (Span(0, F0, 0, 0.010), Span(1, F1, 0.010, 0.025)))


def plain(table: Table, *, width: int = 80) -> str:
    output = io.StringIO()
    Console(file=output, width=width).print(table)
    return output.getvalue()


def row(text: str, label: str) -> list[str]:
    return next(line.split()[1:] for line in text.splitlines() if line.split()[:1] == [label])


def test_each_rank_s_bubble_and_what_it_is_made_of() -> None:
    text = plain(bubble_table(PLANNED, MEASURED))
    # planned, measured, waiting, transfer, other, compute
    assert row(text, "0") == "15.0 60.0%  30.0 75.0%  0.0 0%  0.0 0%  30.0 75%  10.0 25%".split()
    assert row(text, "1") == "10.0 40.0%  20.0 50.0%  12.0 30%  4.0 10%  4.0 10%  20.0 50%".split()


def test_the_line_over_all_ranks_has_the_bubble_fractions() -> None:
    cells = row(plain(bubble_table(PLANNED, MEASURED)), "all")
    assert cells[1] == f"{PLANNED.bubble_fraction:.1%}" == "50.0%"
    assert cells[3] == f"{MEASURED.bubble_fraction:.1%}" == "62.5%"


def test_the_makespans_are_told_with_their_difference() -> None:
    assert "step: 25 ms planned, 40 ms measured (+60.0%)" in plain(bubble_table(PLANNED, MEASURED))


def test_every_word_of_the_heading_is_explained() -> None:
    text = plain(bubble_table(PLANNED, MEASURED))
    for word in ("waiting  ", "transfer  ", "other  ", "bubble = step - compute"):
        assert word in text


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1, 300])
def test_the_table_fits_80_columns_without_colour_or_broken_cells(scale: float) -> None:
    timeline = simulate(one_f_one_b(12, 30), StageCosts(scale, scale, scale))
    text = plain(bubble_table(timeline, timeline))
    assert "\x1b" not in text
    assert all(len(line) <= 80 for line in text.splitlines())
    assert all(len(row(text, str(rank))) == 12 for rank in range(12))


def test_timelines_of_different_pipelines_are_refused() -> None:
    with pytest.raises(UserError, match="planned has 2 ranks, measured 3"):
        bubble_table(PLANNED, Timeline(3, MEASURED.spans))


def test_an_empty_plan_has_no_shares() -> None:
    text = plain(bubble_table(Timeline(2, ()), MEASURED))
    assert row(text, "0")[:2] == ["0.00", "-"]
    assert "nothing was planned" in text


def test_the_rank_table_tells_compute_bubble_and_peak() -> None:
    text = plain(rank_table(simulate(one_f_one_b(4, 8), StageCosts())))
    assert row(text, "0") == ["24", "9", "27.3%", "4"]
    assert row(text, "3") == ["24", "9", "27.3%", "1"]


@pytest.mark.parametrize("columns", [40, 60, 80])
def test_a_comparison_on_a_narrow_terminal_leaves_columns_out_and_cuts_no_number(columns: int) -> None:
    rows = compare(4, 8, names=["gpipe", "interleaved_1f1b"]).rows
    console = Console(width=columns, record=True, file=io.StringIO())
    console.print(comparison_table(rows, columns))
    text = console.export_text()
    assert "…" not in text
    assert "15.8%" in text
    assert ("messages" in text) == (columns == 80)
