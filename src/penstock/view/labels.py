"""Places for labels beside points, so that none covers another or a point.

Around each point there are rings of candidate places. The most crowded label takes its place first, and each takes the
first candidate that covers nothing, or the one that covers least.

      . . .
      . o .      8 places on the first ring, then the same farther out
      . . .
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

_LETTER_EM, _LINE_EM = 0.6, 1.22
"""Width of a letter and height of a line, in units of the font size."""
_RADIUS = 5.5
"""Of a point's marker."""
_CROWD_POINTS = 60
"""Points within this distance want the same room."""
_RINGS = (7.0, 14.0, 24.0, 36.0, 50.0, 66.0)
_NEAR_RINGS = 1
"""On so many rings a label is plainly its point's, without a line to it."""
_PASSES = 3
"""How often each label looks for a place: later times with all others in theirs."""
_CROSSING = 40.0
"""What a line through a label, point or obstacle counts, as covered square points."""
_ANGLES = (0, 180, 45, 315, 135, 225, 90, 270, 22, 338, 158, 202)


class Label(NamedTuple):
    """Lines of text that belong to a point, all in typographic points."""

    point: tuple[float, float]
    text: str


class Box(NamedTuple):
    """A rectangle in typographic points."""

    left: float
    bottom: float
    right: float
    top: float


class Place(NamedTuple):
    """Where a label stands, and whether it is so far from its point that it needs a line to it."""

    box: Box
    distant: bool


def place_labels(
    labels: Sequence[Label], *, font_points: float, frame: Box, obstacles: Sequence[Box] = ()
) -> list[Place]:
    """Returns a place for each label, inside `frame` and over no point, obstacle or other label where there is one."""
    points = [label.point for label in labels]
    crowd = [sum(math.dist(one, other) < _CROWD_POINTS for other in points) for one in points]
    fixed = [*obstacles, *(Box(x - _RADIUS, y - _RADIUS, x + _RADIUS, y + _RADIUS) for x, y in points)]
    places: dict[int, Place] = {}
    for _ in range(_PASSES):
        for index in sorted(range(len(labels)), key=lambda index: (-crowd[index], index)):
            others = [place for other, place in places.items() if other != index]
            places[index] = _best(labels[index], font_points, frame, fixed=fixed, others=others)
    return [places[index] for index in range(len(labels))]


def _best(label: Label, font_points: float, frame: Box, *, fixed: Sequence[Box], others: Sequence[Place]) -> Place:
    """Returns the first candidate that covers and crosses nothing, or the one that does so least."""
    taken = [*fixed, *(place.box for place in others)]
    candidates = _candidates(label, font_points)
    costs = []
    for place in candidates:
        cost = _outside(place.box, frame) + sum(_overlap(place.box, other) for other in taken)
        if place.distant:
            # Its own point, where the line starts, is no crossing.
            away = [box for box in taken if not _holds(box, *label.point)]
            cost += _CROSSING * sum(_crosses(label.point, _centre(place.box), box) for box in away)
        costs.append(cost)
        if not cost:
            break
    return candidates[costs.index(min(costs))]


def _centre(box: Box) -> tuple[float, float]:
    return (box.left + box.right) / 2, (box.bottom + box.top) / 2


def _holds(box: Box, x: float, y: float) -> bool:
    return box.left <= x <= box.right and box.bottom <= y <= box.top


def _crosses(start: tuple[float, float], end: tuple[float, float], box: Box) -> bool:
    """Whether the line from `start` to `end` runs through `box`: clipped to its sides, something is left of it."""
    entry, leave = 0.0, 1.0
    for at, towards, low, high in (
        (start[0], end[0], box.left, box.right),
        (start[1], end[1], box.bottom, box.top),
    ):
        if at == towards:
            if not low < at < high:
                return False
            continue
        near, far = sorted(((low - at) / (towards - at), (high - at) / (towards - at)))
        entry, leave = max(entry, near), min(leave, far)
    return entry < leave


def stairs(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Returns the corners of the steps from point to point, each across first and then up or down."""
    corners = list(points[:1])
    for x, y in points[1:]:
        corners += [(x, corners[-1][1]), (x, y)]
    return corners


def strokes(corners: Sequence[tuple[float, float]]) -> list[Box]:
    """Returns the lines from corner to corner, each upright or level, as boxes."""
    boxes = []
    for start, end in pairwise(corners):
        (left, right), (bottom, top) = (sorted(pair) for pair in zip(start, end, strict=True))
        boxes.append(Box(left - 1, bottom - 1, right + 1, top + 1))
    return boxes


def _candidates(label: Label, font_points: float) -> list[Place]:
    lines = label.text.splitlines()
    width = font_points * _LETTER_EM * max(map(len, lines))
    height = font_points * _LINE_EM * len(lines)
    x, y = label.point
    places = []
    for ring, distance in enumerate(_RINGS):
        for angle in _ANGLES:
            across, up = math.cos(math.radians(angle)), math.sin(math.radians(angle))
            # The nearest edge of the label, not its centre, is `distance` away.
            left = x + distance * across + (0 if across > 0.3 else -width if across < -0.3 else -width / 2)
            bottom = y + distance * up + (0 if up > 0.6 else -height if up < -0.6 else -height / 2)
            places.append(Place(Box(left, bottom, left + width, bottom + height), ring >= _NEAR_RINGS))
    return places


def _overlap(one: Box, other: Box) -> float:
    across = min(one.right, other.right) - max(one.left, other.left)
    up = min(one.top, other.top) - max(one.bottom, other.bottom)
    return across * up if across > 0 and up > 0 else 0


def _outside(box: Box, frame: Box) -> float:
    """Returns how much of the area of `box` lies outside `frame`."""
    return (box.right - box.left) * (box.top - box.bottom) - _overlap(box, frame)
