"""In a terminal an op is as wide as it is long, at every width, and colours add nothing that letters do not say."""

import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from penstock.cluster import Cluster
from penstock.costs import StageCosts
from penstock.ir.ops import OpKind
from penstock.schedules import dualpipe, gpipe, one_f_one_b, zb_h1
from penstock.simulator import simulate
from penstock.timeline import Timeline
from penstock.view.palette import LOOKS
from penstock.view.scaled import print_scaled, scaled_text


def lines(timeline: Timeline, width: int) -> list[str]:
    return scaled_text(timeline, width=width, title="t").plain.splitlines()


def test_1f1b_with_backwards_twice_as_long() -> None:
    assert lines(simulate(one_f_one_b(3, 4), StageCosts()), 80) == [
        "t  bubble 33.3%  makespan 18 s",
        "rank 0 F0──F1──F2──                B0──────F3──B1──────    B2──────    B3──────",
        "rank 1     F0──F1──        B0──────F2──B1──────F3──B2──────    B3──────        ",
        "rank 2         F0──B0──────F1──B1──────F2──B2──────F3──B3──────                ",
        "       0                   5                   10                  15 s",
        "F forward   B backward",
    ]


def test_narrow_terminals_get_staves_of_equal_length() -> None:
    assert lines(simulate(gpipe(2, 3), StageCosts()), 24) == [
        "t  bubble 25.0%  makespan 12 s",
        "rank 0 F0─F1─F2─         ",
        "rank 1    F0─F1─F2─B0────",
        "       0              5 s",
        "rank 0 B0────B1────B2────",
        "rank 1 B1────B2────      ",
        "                   10 s",
        "F forward   B backward",
    ]


def test_transfers_are_dotted_and_named() -> None:
    slow = Cluster.uniform(2, latency_seconds=1)
    text = lines(simulate(one_f_one_b(2, 1), StageCosts(), slow), 80)
    assert text[2].startswith("rank 1     ░░░░F0──B0──")
    assert text[-1] == "F forward   B backward   ░ transfer"


def test_the_stages_of_a_rank_are_told_apart_without_colours() -> None:
    text = lines(simulate(dualpipe(2, 4), StageCosts()), 100)
    assert "F0" in text[1] and "f2" in text[1]
    assert text[-1].endswith("small letters: the rank's other stages")


@given(
    st.integers(1, 5), st.integers(1, 30), st.integers(5, 160), st.sampled_from([1, 0.3, 2.5]), st.sampled_from([0, 1])
)
def test_rows_fit_any_width_and_keep_the_shares_of_time(
    p: int, m: int, width: int, forward: float, weight: int
) -> None:
    timeline = simulate(one_f_one_b(p, m), StageCosts(forward, 1, weight))
    text = lines(timeline, width)
    margin = len("rank 0 ")
    assert all(len(line) <= max(width, margin + 20) for line in text[1:-1])
    rows = ["".join(line[margin:] for line in text if line.startswith(f"rank {rank} ")) for rank in range(p)]
    columns = len(rows[0]) / float(timeline.makespan)
    for row, busy in zip(rows, timeline.busy, strict=True):
        # Each op rounds both its ends to a column.
        assert abs(len(row.replace(" ", "")) - busy * columns) <= 2 * m + columns * 1e-6 + 1


def test_equal_ops_are_equally_wide() -> None:
    for width in (60, 80, 100, 140):
        (first, *_) = [line[7:] for line in lines(simulate(gpipe(1, 6), StageCosts(1, 0, 1)), width)[1:2]]
        widths = {len(cell) for cell in first.replace("F", " F").replace("B", " B").split()}
        assert len(widths) == 1


def test_when_numbers_do_not_fit_letters_remain() -> None:
    timeline = simulate(gpipe(1, 400), StageCosts(1, 0, 100))
    assert any("B" in line for line in lines(timeline, 80))
    assert len(lines(timeline, 80)) < 20


def printed(timeline: Timeline, *, colours: bool) -> str:
    file = io.StringIO()
    system = "truecolor" if colours else None
    print_scaled(timeline, Console(file=file, width=90, force_terminal=colours, color_system=system), title="t")
    return file.getvalue()


def test_colours_are_those_of_the_palette_and_change_no_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    timeline = simulate(zb_h1(2, 4), StageCosts())
    text = scaled_text(timeline, width=90, title="t")
    plain = text.plain
    forward = LOOKS[OpKind.F]
    assert f"{forward.ink} on {forward.fill}" in {str(span.style) for span in text.spans}
    assert re.sub(r"\x1b\[[\d;]*m", "", printed(timeline, colours=True)) == f"{plain}\n"
    assert printed(timeline, colours=False) == f"{plain}\n"


@pytest.mark.parametrize("timeline", [Timeline(2, ()), simulate(gpipe(2, 2), StageCosts(0, 0, 0))])
def test_a_timeline_without_time_is_drawn_empty(timeline: Timeline) -> None:
    assert lines(timeline, 80)[0].startswith("t  bubble 0.0%")
