"""The picture of a comparison names every schedule and draws the front; it is the same each time."""

from pathlib import Path

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Annotation

from penstock.errors import UserError
from penstock.view import scatter
from penstock.view.comparison import Row, compare
from penstock.view.scatter import draw_comparison

NAMES = ("naive", "gpipe", "one_f_one_b", "pipedream", "zb_h1", "interleaved_1f1b")
ROWS = compare(4, 8, names=NAMES).rows


def figure(rows: tuple[Row, ...] = ROWS) -> Figure:
    return scatter._figure(rows, width_inches=6.4, height_inches=4.2)


def labels(drawn: Figure) -> list[str]:
    return [text.get_text() for text in drawn.axes[0].texts if isinstance(text, Annotation)]


def test_every_schedule_is_named_once_and_those_at_one_point_together() -> None:
    found = labels(figure())
    assert sorted(name for text in found for name in text.split("\n")) == sorted(NAMES)
    assert "one_f_one_b\npipedream" in found


def test_every_schedule_is_a_point_at_its_memory_and_bubble() -> None:
    lines = figure().axes[0].lines
    points = {(float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line in lines if len(line.get_xdata()) == 1}
    assert points == {(float(row.peak_activations), float(row.bubble_fraction)) for row in ROWS}


def test_labels_do_not_cover_one_another_when_drawn() -> None:
    drawn = figure()
    drawn.draw_without_rendering()
    boxes = [text.get_window_extent() for text in drawn.axes[0].texts]
    assert not any(one.overlaps(other) for index, one in enumerate(boxes) for other in boxes[index + 1 :])


def test_the_front_descends_through_its_schedules() -> None:
    (front,) = (line for line in figure().axes[0].lines if len(line.get_xdata()) > 1)
    points = list(zip(front.get_xdata(), front.get_ydata(), strict=True))
    best = {row.name: (float(row.peak_activations), float(row.bubble_fraction)) for row in ROWS}
    assert points[1:-1] == [best["naive"], best["zb_h1"]]


def test_more_copies_of_the_weights_are_marked() -> None:
    def words(rows: tuple[Row, ...]) -> list[str]:
        return [text.get_text() for text in figure(rows).axes[0].get_legend().get_texts()]

    assert words(ROWS)[1:] == ["one copy of the weights", "more copies of the weights"]
    assert words(compare(4, 8, names=["gpipe"]).rows)[1:] == ["one copy of the weights"]


def test_a_pipeline_of_one_rank_has_no_bubble_and_still_a_picture(tmp_path: Path) -> None:
    draw_comparison(compare(1, 4, names=["gpipe", "one_f_one_b"]).rows, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_equal_pictures_are_equal_files(tmp_path: Path, suffix: str) -> None:
    files = [tmp_path / f"{name}{suffix}" for name in "ab"]
    for path in files:
        draw_comparison(ROWS, path)
    assert files[0].read_bytes() == files[1].read_bytes()


def test_what_cannot_be_drawn_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"use a suffix of \.png"):
        draw_comparison(ROWS, tmp_path / "a.gif")
    with pytest.raises(UserError, match="no schedule is defined at these sizes"):
        draw_comparison((), tmp_path / "a.png")
