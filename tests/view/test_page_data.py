"""A page's columns are the timeline's numbers, in the page's unit."""

import numpy as np

from penstock.cluster import Cluster
from penstock.costs import StageCosts
from penstock.ir.ops import Op, OpKind
from penstock.schedules import one_f_one_b, zb_h1
from penstock.simulator import simulate
from penstock.timeline import Span, Timeline, Wait
from penstock.view.page_data import NOBODY, bars_of, moments_of, waits_of

F, G = Op(OpKind.F, 1, 0), Op(OpKind.F, 1, 1)
TIMELINE = Timeline(2, (Span(1, F, 3, 5), Span(1, G, 5, 7)), (Wait(1, F, 0, 3, 0, 1),))


def test_every_op_that_takes_time_is_a_bar_of_its_kind() -> None:
    timeline = simulate(zb_h1(3, 6), StageCosts(1, 2, 3))
    bars = bars_of(timeline, 1)
    assert list(bars) == [OpKind.F, OpKind.I, OpKind.W]
    found = {
        (kind, *fields)
        for kind, columns in bars.items()
        for fields in zip(*(columns[name] for name in ("rank", "stage", "microbatch", "start", "end")), strict=True)
    }
    spans = timeline.spans
    assert found == {(s.op.kind, s.rank, s.op.stage, s.op.microbatch, s.start, s.end) for s in spans}
    assert not bars_of(simulate(one_f_one_b(2, 2), StageCosts(0, 0, 0)), 1)


def test_a_bar_knows_whom_it_waited_for_and_how_long() -> None:
    columns = bars_of(TIMELINE, 1000)[OpKind.F]
    assert list(columns["source"]) == [0, NOBODY]
    assert list(columns["waited"]) == [1000, 0]
    assert list(columns["transfer"]) == [2000, 0]
    assert list(columns["length"]) == [2000, 2000]


def test_waits_are_split_into_the_peer_s_part_and_the_transfer() -> None:
    waiting, transfer = waits_of(TIMELINE, 1)
    assert [list(waiting[name]) for name in ("rank", "source", "op", "start", "end")] == [[1], [0], ["1F0"], [0], [1]]
    assert [list(transfer[name]) for name in ("op", "start", "end")] == [["1F0"], [1], [3]]


def test_numbers_of_bars_are_small_in_the_file() -> None:
    slow = Cluster.uniform(4, latency_seconds=0.1)
    columns = bars_of(simulate(one_f_one_b(4, 8), StageCosts(), slow), 1)[OpKind.F]
    assert sum(np.asarray(column).itemsize for column in columns.values()) <= 40


def test_moments_are_the_starts_and_ends_on_any_timeline_once() -> None:
    assert list(moments_of([TIMELINE, Timeline(1, (Span(0, F, 0, 3 + 1e-12),))], 2)) == [0, 6, 10, 14]
    assert not moments_of([Timeline(1, ())], 1).size
