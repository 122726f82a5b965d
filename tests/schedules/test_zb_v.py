"""ZB-V as it was crafted by hand."""

from fractions import Fraction
from types import SimpleNamespace

import pytest
from tests.schedules.grids import drawing_in, drawn, rows

from penstock import OpKind, Placement, StageCosts, one_f_one_b, simulate, verify, zb_v
from penstock.errors import ScheduleError

GRIDS = {
    (1, 2): """
        rank 0: 0F0 1F0 1I0 1W0 0F1 0I0 0W0 1F1 1I1 1W1 0I1 0W1
    """,
    (2, 2): """
        rank 0: 0F0 0F1 .   3F0 3I0 3W0 3F1 3I1 3W1 0I0 0W0 .   0I1 0W1
        rank 1: .   1F0 2F0 1F1 2F1 2I0 2W0 1I0 1W0 2I1 2W1 1I1 1W1 .
    """,
    (2, 4): """
        rank 0: 0F0 0F1 0F2 3F0 3I0 3W0 3F1 3I1 3W1 0F3 0I0 0W0 3F2 3I2 3W2 0I1 0W1 3F3 3I3 3W3 0I2 0W2 0I3 0W3 .
        rank 1: .   1F0 2F0 1F1 2F1 2I0 2W0 1F2 1I0 1W0 2F2 2I1 2W1 1F3 1I1 1W1 2F3 2I2 2W2 1I2 2I3 1I3 1W2 2W3 1W3
    """,
    (3, 2): """
        rank 0: 0F0 0F1 .   .   .   5F0 5I0 5W0 5F1 5I1 5W1 .   .   0I0 0W0 .   0I1 0W1
        rank 1: .   1F0 1F1 .   4F0 .   4F1 4I0 4W0 .   4I1 4W1 1I0 1W0 .   1I1 1W1 .
        rank 2: .   .   2F0 3F0 2F1 3F1 .   .   3I0 3W0 2I0 2W0 3I1 3W1 2I1 2W1 .   .
    """,
    (3, 5): """
        rank 0: 0F0 0F1 0F2 0F3 0F4 5F0 5I0 5W0 5F1 5I1 5W1 5F2 5I2 5W2 0I0 0W0 5F3 5I3 5W3 0I1 0W1 5F4 5I4 5W4 0I2 0W2 0I3 0W3 0I4 0W4 .   .
        rank 1: .   1F0 1F1 1F2 4F0 1F3 4F1 4I0 4W0 4F2 4I1 4W1 1F4 1I0 1W0 4F3 4I2 4W2 1I1 1W1 4F4 4I3 4W3 1I2 4I4 1I3 1W2 1I4 1W3 4W4 1W4 .
        rank 2: .   .   2F0 3F0 2F1 3F1 2F2 3F2 3I0 3W0 2F3 2I0 2W0 3F3 3I1 3W1 2F4 2I1 2W1 3F4 3I2 3W2 2I2 3I3 2I3 3I4 2I4 2W2 3W3 3W4 2W3 2W4
    """,  # noqa: E501
}

UNTIL_W = StageCosts(activation_bytes=1, deferred_bytes=1)
"""F = I = W = 1, and what F keeps is held until W."""


@pytest.mark.parametrize(("num_ranks", "num_microbatches"), GRIDS)
def test_zb_v_is_drawn_so(num_ranks: int, num_microbatches: int) -> None:
    assert rows(zb_v(num_ranks, num_microbatches)) == drawn(GRIDS[num_ranks, num_microbatches])


def test_the_docstring_draws_what_is_generated() -> None:
    assert drawing_in(zb_v) == rows(zb_v(3, 5))


def test_there_is_no_bubble_from_2p_minus_1_microbatches_on() -> None:
    for num_ranks in range(1, 7):
        for num_microbatches in range(1, 16):
            timeline = simulate(zb_v(num_ranks, num_microbatches), UNTIL_W)
            missing = max(0, 2 * num_ranks - 1 - num_microbatches)
            assert timeline.per_rank_span == 6 * num_microbatches + 2 * missing
            assert timeline.makespan == 6 * num_microbatches + max(num_ranks - 1, 2 * missing)


def test_no_rank_stands_still_between_its_first_and_its_last_op() -> None:
    for num_ranks in range(1, 7):
        for row in simulate(zb_v(num_ranks, 2 * num_ranks + 3), UNTIL_W).by_rank:
            assert row[-1].end - row[0].start == sum(span.end - span.start for span in row)


def test_the_closed_form_holds_in_fractions() -> None:
    third = Fraction(1, 3)
    timeline = simulate(zb_v(4, 9), StageCosts(third, third, third))
    assert (timeline.per_rank_span, timeline.makespan) == (18, 19)


def test_every_rank_holds_p_microbatches_of_both_its_stages_even_where_i_frees_nothing() -> None:
    for num_ranks in range(1, 7):
        for num_microbatches in range(1, 16):
            schedule = zb_v(num_ranks, num_microbatches)
            chunks = tuple(
                min(num_microbatches + 1 + rank, 2 * num_microbatches, 2 * num_ranks) for rank in range(num_ranks)
            )
            assert verify(schedule).peak_activations == chunks
            assert simulate(schedule, UNTIL_W).peak_memory == chunks
            if num_microbatches >= 2 * num_ranks - 1:
                assert chunks == (2 * num_ranks,) * num_ranks


def test_the_memory_is_that_of_rank_0_in_1f1b() -> None:
    for num_ranks in range(1, 7):
        ours = max(verify(zb_v(num_ranks, 3 * num_ranks)).peak_activations)
        assert ours == 2 * max(verify(one_f_one_b(num_ranks, 3 * num_ranks)).peak_activations)


def test_the_first_rank_ends_a_microbatch_forward_and_starts_it_backward() -> None:
    schedule = zb_v(4, 8)
    assert schedule.placement == Placement.v_shaped(4)
    assert str(schedule.ranks[0][7]) == "7F0" and str(schedule.ranks[0][8]) == "7I0"


def test_fewer_microbatches_are_left_out_of_the_order_of_2p_minus_1() -> None:
    full = zb_v(5, 9)
    for num_microbatches in range(1, 9):
        kept = tuple(tuple(op for op in ops if op.microbatch < num_microbatches) for ops in full.ranks)
        assert zb_v(5, num_microbatches).ranks == kept


def test_gradients_accumulate_in_the_order_of_microbatches() -> None:
    for ops in zb_v(4, 9).ranks:
        for stage in {op.stage for op in ops}:
            weights = [op.microbatch for op in ops if op.kind == OpKind.W and op.stage == stage]
            assert weights == list(range(9))


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4, 6])
def test_zb_v_is_torchs(num_ranks: int) -> None:
    schedules = pytest.importorskip("torch.distributed.pipelining.schedules")
    stage = SimpleNamespace(group_size=num_ranks, group_rank=0, num_stages=2 * num_ranks, submod=None)
    for num_microbatches in (1, num_ranks, 2 * num_ranks - 1, 2 * num_ranks, 3 * num_ranks + 1):
        theirs = schedules.ScheduleZBVZeroBubble([stage] * 2, num_microbatches).pipeline_order
        for rank, ops in enumerate(zb_v(num_ranks, num_microbatches).ranks):
            assert list(map(str, ops)) == [str(action) for action in theirs[rank] if action is not None]


@pytest.mark.parametrize(("num_ranks", "num_microbatches", "said"), [(0, 4, "num_ranks=0"), (2, -1, "microbatches=-1")])
def test_sizes_below_1_are_refused(num_ranks: int, num_microbatches: int, said: str) -> None:
    with pytest.raises(ScheduleError, match=rf"zb_v: .*{said}; use at least 1"):
        zb_v(num_ranks, num_microbatches)
