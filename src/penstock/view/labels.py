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
    taken = [*obstacles, *(Box(x - _RADIUS, y - _RADIUS, x + _RADIUS, y + _RADIUS) for x, y in points)]
    places: dict[int, Place] = {}
    for index in sorted(range(len(labels)), key=lambda index: (-crowd[index], index)):
        candidates = _candidates(labels[index], font_points)
        covered = [
            _outside(place.box, frame) + sum(_overlap(place.box, other) for other in taken) for place in candidates
        ]
        places[index] = candidates[covered.index(min(covered))]
        taken.append(places[index].box)
    return [places[index] for index in range(len(labels))]


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
