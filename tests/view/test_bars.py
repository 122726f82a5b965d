"""Every op is a bar at its place; its number stands in it, or nowhere."""

from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from penstock.cluster import Cluster
from penstock.costs import StageCosts
from penstock.ir.ops import OpKind
from penstock.schedules import one_f_one_b
from penstock.simulator import simulate
from penstock.timeline import Timeline
from penstock.view.bars import draw_bars
from penstock.view.palette import IDLE, LOOKS, TRANSFER, WAITING

F, B = LOOKS[OpKind.F].fill, LOOKS[OpKind.B].fill


def drawn(timeline: Timeline, *, points_per_second: float) -> Axes:
    axes = Figure().add_subplot()
    draw_bars(axes, timeline, points_per_second=points_per_second, row_points=18)
    return axes


def bars(axes: Axes, fill: str) -> list[tuple[float, float, float, float]]:
    """Returns left, right, top, bottom of the rectangles of that colour."""
    found = []
    for collection in axes.collections:
        assert isinstance(collection, PolyCollection)
        if len(collection.get_paths()) and to_hex(collection.get_facecolor()[0]) == fill:
            for path in collection.get_paths():
                (left, top), (right, bottom) = path.vertices.min(axis=0), path.vertices.max(axis=0)
                found.append((float(left), float(right), round(float(top), 6), round(float(bottom), 6)))
    return found


def texts(axes: Axes) -> dict[tuple[float, int], str]:
    return {(float(t.get_position()[0]), round(t.get_position()[1])): t.get_text() for t in axes.texts}


def test_each_op_is_a_bar_in_its_rank_s_row() -> None:
    timeline = simulate(one_f_one_b(3, 5), StageCosts())
    axes = drawn(timeline, points_per_second=20)
    for kind, fill in ((OpKind.F, F), (OpKind.B, B)):
        expected = sorted((s.rank, s.start, s.end) for s in timeline.spans if s.op.kind == kind)
        assert sorted((round((t + b) / 2), left, right) for left, right, t, b in bars(axes, fill)) == expected


def test_bars_of_neighbouring_ranks_do_not_touch() -> None:
    axes = drawn(simulate(one_f_one_b(2, 2), StageCosts()), points_per_second=20)
    assert all(bottom - top < 0.9 for _, _, top, bottom in bars(axes, B))


def test_numbers_stand_in_the_middle_of_wide_bars() -> None:
    timeline = simulate(one_f_one_b(2, 3), StageCosts())
    expected = {((s.start + s.end) / 2, s.rank): str(s.op.microbatch) for s in timeline.spans}
    assert texts(drawn(timeline, points_per_second=20)) == expected


def test_a_kind_with_narrow_bars_has_no_numbers_and_the_others_keep_theirs() -> None:
    timeline = simulate(one_f_one_b(2, 12), StageCosts(forward=1, backward=8))
    backwards = {((s.start + s.end) / 2, s.rank) for s in timeline.spans if s.op.kind == OpKind.B}
    assert set(texts(drawn(timeline, points_per_second=2))) == backwards
    assert not texts(drawn(timeline, points_per_second=0.1))


def test_waiting_for_a_peer_and_transfer_are_drawn_apart() -> None:
    timeline = simulate(one_f_one_b(2, 1), StageCosts(), Cluster.uniform(2, latency_seconds=2))
    axes = drawn(timeline, points_per_second=20)
    # Rank 1 waits for F0 of rank 0 until 1, then for its transfer until 3.
    waiting, transfer = bars(axes, WAITING.fill), bars(axes, TRANSFER.fill)
    assert (0, 1, 0.59, 1.41) in waiting
    assert (1, 3, 0.59, 1.41) in transfer
    hatches = {collection.get_hatch() for collection in axes.collections}
    assert {WAITING.hatch, TRANSFER.hatch} <= hatches


def test_short_waits_are_drawn_without_hatching() -> None:
    timeline = simulate(one_f_one_b(2, 4), StageCosts(), Cluster.uniform(2, latency_seconds=0.05))
    axes = drawn(timeline, points_per_second=20)
    assert bars(axes, TRANSFER.tone)
    assert not bars(axes, TRANSFER.fill)


def test_the_idle_background_covers_the_step_on_every_rank() -> None:
    assert IDLE.fill == WAITING.fill
    idle = bars(drawn(simulate(one_f_one_b(3, 2), StageCosts()), points_per_second=20), IDLE.fill)
    assert [(left, right) for left, right, _, _ in idle[:3]] == [(0, 12)] * 3


def test_a_timeline_without_time_draws_no_bar() -> None:
    axes = drawn(simulate(one_f_one_b(2, 2), StageCosts(0, 0, 0)), points_per_second=20)
    assert not bars(axes, F)
    assert not axes.texts
