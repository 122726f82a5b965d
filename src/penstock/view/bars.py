"""The bars of one timeline on one set of axes: a row a rank, rank 0 on top."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from statistics import median

from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection

from penstock.ir.ops import NO_MICROBATCH, OpKind
from penstock.timeline import Span, Timeline, Wait
from penstock.view.palette import IDLE, TRANSFER, WAITING, Shade, chunks_of, tinted

Stretch = tuple[int, float, float]
"""Rank, start, end."""

_HALF_HEIGHT = 0.41
_DIGIT_EM = 0.64
"""Width of a digit, in units of the font size."""
_FILLED = 0.9
"""Share of a bar's width that its number may fill."""
_HATCHABLE_POINTS = 2.5
"""Below this width nobody sees a hatching, and drawing it takes most of the time."""
_LARGEST_POINTS, _SMALLEST_POINTS = 7.5, 4.0


def draw_bars(axes: Axes, timeline: Timeline, *, points_per_second: float, row_points: float) -> None:
    """Draws idle time, waits, and a bar for each op with its microbatch where that fits.

    Args:
        axes: its x axis is in seconds; rank r is centred at y = r.
        timeline: what ran.
        points_per_second: of the x axis, in typographic points.
        row_points: the height of a row.
    """
    hatchable = _HATCHABLE_POINTS / points_per_second
    shaded: dict[Shade, list[Stretch]] = {
        IDLE: [(rank, 0, timeline.makespan) for rank in range(timeline.num_ranks)],
        WAITING: [(wait.rank, wait.start, _left(wait)) for wait in timeline.waits],
        TRANSFER: [(wait.rank, _left(wait), wait.end) for wait in timeline.waits],
    }
    for shade, stretches in shaded.items():
        _shade(axes, shade, stretches, hatchable=hatchable)
    spans = [span for span in timeline.spans if span.end > span.start]
    if not spans:
        return
    typical = points_per_second * median(float(span.end - span.start) for span in spans)
    chunks = chunks_of(timeline)
    by_fill: dict[str, list[Stretch]] = defaultdict(list)
    for span in spans:
        fill, _ = tinted(span.op.kind, *chunks[span.rank, span.op.stage])
        by_fill[fill].append((span.rank, span.start, span.end))
    for fill, stretches in by_fill.items():
        # A white rim separates the bars, thinner where they are narrow.
        rim = min(0.6, typical / 14)
        _rectangles(axes, stretches, facecolor=fill, edgecolor="white", linewidth=rim)
    _number(axes, spans, chunks, points_per_second=points_per_second, row_points=row_points)


def _left(wait: Wait) -> float:
    """Returns when waiting for the peer became waiting for the transfer."""
    return min(max(wait.sent, wait.start), wait.end)


def _shade(axes: Axes, shade: Shade, stretches: Iterable[Stretch], *, hatchable: float) -> None:
    """Draws the stretches hatched, those shorter than `hatchable` seconds in the tone of the hatching."""
    visible = [stretch for stretch in stretches if stretch[2] > stretch[1]]
    wide = [stretch for stretch in visible if stretch[2] - stretch[1] >= hatchable]
    narrow = [stretch for stretch in visible if stretch[2] - stretch[1] < hatchable]
    _rectangles(axes, wide, facecolor=shade.fill, edgecolor=shade.edge, linewidth=0, hatch=shade.hatch)
    _rectangles(axes, narrow, facecolor=shade.tone, linewidth=0)


def _rectangles(axes: Axes, stretches: Iterable[Stretch], **style: object) -> None:
    corners = []
    for rank, start, end in stretches:
        left, right, top, bottom = float(start), float(end), rank - _HALF_HEIGHT, rank + _HALF_HEIGHT
        corners.append(((left, top), (right, top), (right, bottom), (left, bottom)))
    axes.add_collection(PolyCollection(corners, **style), autolim=False)  # type: ignore[arg-type]


def _number(
    axes: Axes,
    spans: list[Span],
    chunks: Mapping[tuple[int, int], tuple[int, int]],
    *,
    points_per_second: float,
    row_points: float,
) -> None:
    """Writes the microbatch into the bars of each kind, unless most of that kind's bars are too narrow."""
    widths: dict[OpKind, list[float]] = defaultdict(list)
    numbered = [span for span in spans if span.op.microbatch != NO_MICROBATCH]
    for span in numbered:
        widths[span.op.kind].append(float(span.end - span.start) * points_per_second)
    # The widest number would fill the bars at the lower end of each kind at this many points.
    em = _DIGIT_EM * max((len(str(span.op.microbatch)) for span in numbered), default=1)
    fitting = {kind: _FILLED * sorted(each)[len(each) // 10] / em for kind, each in widths.items()}
    sizes = [size for size in fitting.values() if size >= _SMALLEST_POINTS]
    size = min([*sizes, _LARGEST_POINTS, row_points * 0.62])
    for span in numbered:
        text = str(span.op.microbatch)
        room = float(span.end - span.start) * points_per_second
        if fitting[span.op.kind] < size or len(text) * _DIGIT_EM * size > room:
            continue
        middle = float(span.start + span.end) / 2
        _, ink = tinted(span.op.kind, *chunks[span.rank, span.op.stage])
        axes.text(middle, span.rank + 0.03, text, size=size, color=ink, ha="center", va="center_baseline")
