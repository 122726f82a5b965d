"""Pictures: written whole, the same each time, panels on one scale, and no state left in matplotlib."""

import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import matplotlib
import pytest

from penstock.cluster import Cluster
from penstock.costs import StageCosts
from penstock.errors import UserError
from penstock.schedules import one_f_one_b
from penstock.simulator import simulate
from penstock.timeline import Timeline
from penstock.view import picture
from penstock.view.picture import draw_timelines

SIGNATURES = {".png": b"\x89PNG\r\n", ".svg": b"<?xml", ".pdf": b"%PDF"}


def pair(**costs: float) -> dict[str, Timeline]:
    schedule = one_f_one_b(4, 8)
    slow = Cluster.uniform(4, latency_seconds=0.3)
    return {
        "simulated": simulate(schedule, StageCosts(**costs)),
        "measured": simulate(schedule, StageCosts(forward=1.2, **costs), slow),
    }


@pytest.mark.parametrize("suffix", sorted(SIGNATURES))
def test_the_suffix_decides_the_format_and_equal_pictures_are_equal_files(tmp_path: Path, suffix: str) -> None:
    files = [tmp_path / f"{name}{suffix}" for name in "ab"]
    for path in files:
        draw_timelines(pair(), path, dots_per_inch=50)
    assert files[0].read_bytes().startswith(SIGNATURES[suffix])
    assert files[0].read_bytes() == files[1].read_bytes()


def test_all_panels_share_the_time_axis_and_only_the_lowest_is_labelled() -> None:
    panels = pair(activation_bytes=1 << 20)
    axes = picture._figure(panels, width_inches=8, memory=True).axes
    assert len(axes) == 4
    assert {each.get_xlim() for each in axes} == {(0, panels["measured"].makespan * 1.002)}
    assert [each.get_xlabel() for each in axes] == ["", "", "", "time (s)"]


def test_memory_is_drawn_where_it_is_known_and_wanted() -> None:
    known, unknown = pair(activation_bytes=1), pair()
    assert len(picture._figure(known, width_inches=8, memory=True).axes) == 4
    assert len(picture._figure(known, width_inches=8, memory=False).axes) == 2
    assert len(picture._figure(unknown, width_inches=8, memory=True).axes) == 2


def test_titles_tell_bubble_and_makespan() -> None:
    (axes, _) = picture._figure(pair(), width_inches=8, memory=True).axes
    words = {text.get_text() for text in axes.texts}
    assert {"simulated", "bubble 27.3%    makespan 33 s"} <= words


def test_the_legend_names_what_occurs_and_nothing_else() -> None:
    def names(panels: dict[str, Timeline]) -> list[str]:
        return [t.get_text() for t in picture._figure(panels, width_inches=8, memory=True).legends[0].get_texts()]

    assert names(pair()) == ["forward", "backward", "waiting for a peer", "transfer", "idle"]
    assert names({"": simulate(one_f_one_b(1, 1), StageCosts())}) == ["forward", "backward", "idle"]


def test_milliseconds_are_labelled_as_such() -> None:
    timeline = simulate(one_f_one_b(2, 4), StageCosts(0.001, 0.001, 0.001))
    figure = picture._figure({"": timeline}, width_inches=8, memory=True)
    (axes,) = figure.axes
    figure.draw_without_rendering()
    assert axes.get_xlabel() == "time (ms)"
    assert "10" in [label.get_text() for label in axes.get_xticklabels()]


def test_axes_do_not_overlap_and_stay_inside_the_picture() -> None:
    for num_ranks in (1, 8, 40):
        timeline = simulate(one_f_one_b(num_ranks, 2), StageCosts(activation_bytes=1))
        axes = picture._figure({"a": timeline, "b": timeline}, width_inches=8, memory=True).axes
        edges = [(each.get_position().y0, each.get_position().y1) for each in axes]
        assert edges[0][1] < 1
        assert edges[-1][0] > 0
        assert all(upper[0] > lower[1] for upper, lower in pairwise(edges))


def test_matplotlib_settings_are_as_before(tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    draw_timelines(pair(), tmp_path / "a.png", dots_per_inch=30)
    assert dict(matplotlib.rcParams) == before


def test_pyplot_is_never_imported() -> None:
    code = "import sys, penstock.view.picture; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_what_cannot_be_drawn_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"use a suffix of \.png, \.svg, \.pdf"):
        draw_timelines(pair(), tmp_path / "a.gif")
    with pytest.raises(UserError, match=r"cannot write .*absent/a.png: No such file"):
        draw_timelines(pair(), tmp_path / "absent" / "a.png")
    for nothing in ({}, {"empty": Timeline(2, ())}):
        with pytest.raises(UserError, match="nothing to draw"):
            draw_timelines(nothing, tmp_path / "a.png")
