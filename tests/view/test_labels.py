"""Labels cover neither one another nor points while there is room, and say when they stand far away."""

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.view.labels import Box, Label, place_labels

FRAME = Box(0, 0, 400, 300)


def overlap(one: Box, other: Box) -> bool:
    return min(one.right, other.right) > max(one.left, other.left) and min(one.top, other.top) > max(
        one.bottom, other.bottom
    )


def test_a_lone_label_stands_beside_its_point() -> None:
    ((box, distant),) = place_labels([Label((200, 150), "gpipe")], font_points=7, frame=FRAME)
    assert not distant
    assert 200 < box.left < 212
    assert box.bottom < 150 < box.top


def test_at_the_right_edge_it_stands_on_the_left() -> None:
    ((box, _),) = place_labels([Label((398, 150), "gpipe")], font_points=7, frame=FRAME)
    assert box.right < 398


def test_obstacles_are_avoided() -> None:
    wall = Box(204, 0, 400, 300)
    ((box, _),) = place_labels([Label((200, 150), "gpipe")], font_points=7, frame=FRAME, obstacles=[wall])
    assert not overlap(box, wall)


def test_more_lines_make_a_higher_label() -> None:
    one, two = (
        place_labels([Label((200, 150), text)], font_points=7, frame=FRAME)[0].box for text in ("gpipe", "gpipe\nnaive")
    )
    assert two.top - two.bottom == pytest.approx(2 * (one.top - one.bottom))


@given(
    st.lists(st.tuples(st.integers(5, 14), st.integers(3, 10)), min_size=1, max_size=8, unique=True).map(
        lambda cells: [(20.0 * x, 26.0 * y) for x, y in cells]
    )
)
def test_labels_of_a_few_points_overlap_nothing(points: list[tuple[float, float]]) -> None:
    labels = [Label(point, f"label {number}") for number, point in enumerate(points)]
    boxes = [place.box for place in place_labels(labels, font_points=7, frame=FRAME)]
    assert not any(overlap(one, other) for one, other in combinations(boxes, 2))
    dots = [Box(x - 2, y - 2, x + 2, y + 2) for x, y in points]
    assert not any(overlap(box, dot) for box in boxes for dot in dots)
