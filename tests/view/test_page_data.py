"""A page's columns are the timeline's numbers, in the page's unit."""

from penstock.cluster import Cluster
from penstock.costs import StageCosts
from penstock.ir.ops import Op, OpKind
from penstock.schedules import one_f_one_b, zb_h1
from penstock.simulator import simulate
from penstock.timeline import Span, Timeline, Wait
from penstock.view.page_data import NOBODY, memory_of, moments_of, spans_of, waits_of

F, G = Op(OpKind.F, 1, 0), Op(OpKind.F, 1, 1)
TIMELINE = Timeline(2, (Span(1, F, 3, 5), Span(1, G, 5, 7)), (Wait(1, F, 0, 3, 0, 1),))


def test_every_op_that_takes_time_is_an_entry_of_its_rank_in_order_of_start() -> None:
    timeline = simulate(zb_h1(3, 6), StageCosts(1, 2, 3))
    columns, first = spans_of(timeline, 1)
    names = ("kind", "stage", "microbatch", "replica", "start", "end")
    for rank, row in enumerate(timeline.by_rank):
        own = slice(first[rank], first[rank + 1])
        found = list(zip(*(columns[name][own].tolist() for name in names), strict=True))
        assert found == [(*map(int, span.op), span.start, span.end) for span in row]
    assert first[-1] == len(timeline.spans)
    assert not spans_of(simulate(one_f_one_b(2, 2), StageCosts(0, 0, 0)), 1).columns["start"].size


def test_an_entry_knows_whom_it_waited_for_and_how_long() -> None:
    columns, first = spans_of(TIMELINE, 1000)
    assert first == [0, 0, 2]
    assert list(columns["source"]) == [0, NOBODY]
    assert list(columns["waited"]) == [1000, 0]
    assert list(columns["transfer"]) == [2000, 0]


def test_waits_are_split_into_the_peer_s_part_and_the_transfer() -> None:
    columns, first = waits_of(TIMELINE, 1)
    names = ("source", "stage", "microbatch", "start", "left", "end")
    assert [list(columns[name]) for name in names] == [[0], [1], [0], [0], [1], [3]]
    assert first == [0, 0, 1]


def test_memory_goes_on_to_the_end() -> None:
    timeline = Timeline(2, TIMELINE.spans, memory=(((0, 8), (3, 16)), ()))
    columns, first = memory_of(timeline, 10, 0.5)
    assert first == [0, 3, 4]
    assert list(columns["time"]) == [0, 30, 70, 70]
    assert list(columns["held"]) == [4, 8, 8, 0]


def test_numbers_of_spans_are_small_in_the_file() -> None:
    slow = Cluster.uniform(4, latency_seconds=0.1)
    columns, _ = spans_of(simulate(one_f_one_b(4, 8), StageCosts(), slow), 1)
    assert sum(column.itemsize for column in columns.values()) <= 40


def test_moments_are_the_starts_and_ends_on_any_timeline_once() -> None:
    assert list(moments_of([TIMELINE, Timeline(1, (Span(0, F, 0, 3 + 1e-12),))], 2)) == [0, 6, 10, 14]
    assert not moments_of([Timeline(1, ())], 1).size
