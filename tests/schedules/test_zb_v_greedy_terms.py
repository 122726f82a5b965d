"""What zb_v_greedy's search is about, from its arguments."""

import math
from typing import Any

import pytest

from penstock import Cluster, Device, Link, OpKind, StageCosts, zb_v_greedy
from penstock.errors import ScheduleError
from penstock.schedules.zb_v_greedy_terms import Terms, terms_of

F, I, W = OpKind.F, OpKind.I, OpKind.W  # noqa: E741


def terms(num_ranks: int, num_microbatches: int, *, limit: Any = None, **costs: Any) -> Terms:
    return terms_of(
        num_ranks,
        num_microbatches,
        costs=StageCosts(**costs),
        cluster=Cluster.uniform(num_ranks),
        memory_limit=limit,
    )


def test_a_rank_holds_a_stage_on_the_way_down_and_one_on_the_way_up() -> None:
    assert [terms(3, 1).stages(rank) for rank in range(3)] == [(0, 5), (1, 4), (2, 3)]
    assert [terms(3, 1).rank_of(stage) for stage in range(6)] == [0, 1, 2, 2, 1, 0]


def test_seconds_are_those_of_the_stage_on_its_rank() -> None:
    cluster = Cluster((Device(), Device(speed=2)), ((2, Link()),))
    costs = StageCosts(forward=[4, 6, 8, 10], input_grad=3, weight_grad=1)
    found = terms_of(2, 1, costs=costs, cluster=cluster, memory_limit=None)
    assert found.seconds == {F: (4, 3, 4, 10), I: (3, 1.5, 1.5, 3), W: (1, 0.5, 0.5, 1)}


def test_a_boundary_takes_the_link_between_its_ranks_and_none_at_the_turn() -> None:
    cluster = Cluster((Device(),) * 3, ((2, Link(1, 2)), (3, Link(10, 1))))
    costs = StageCosts(boundary_bytes=[2, 4, 6, 8, 10, 12])
    found = terms_of(3, 1, costs=costs, cluster=cluster, memory_limit=None)
    assert found.transfer == (1 + 1, 10 + 4, 0, 10 + 8, 1 + 5)


def test_without_bytes_a_microbatch_counts_1_on_each_stage_until_its_w() -> None:
    assert (terms(2, 4).activation, terms(2, 4).deferred) == ((1,) * 4, (1,) * 4)
    assert terms(2, 4).limit == (4, 4)
    known = terms(2, 4, activation_bytes=3)
    assert (known.activation, known.deferred) == ((3,) * 4, (0,) * 4)
    assert known.limit == (12, 12)


def test_the_default_is_p_microbatches_of_both_stages() -> None:
    assert terms(3, 9, activation_bytes=[5, 1, 1, 1, 1, 5]).limit == (30, 6, 6)
    assert terms(3, 9, activation_bytes=1, deferred_bytes=2).limit == (12, 12, 12)


def test_the_default_is_what_zb_v_holds_where_that_is_more() -> None:
    # rank 0 has up to 2p microbatches between F and I of stage 0, and at most one of the last stage beside them
    assert terms(3, 9, activation_bytes=[5, 1, 1, 1, 1, 1]).limit == (30, 6, 6)
    assert terms(3, 9, activation_bytes=[1, 1, 1, 1, 1, 5]).limit == (18, 6, 6)
    assert terms(3, 2, activation_bytes=[1, 1, 1, 1, 1, 5]).limit == (18, 6, 6)


def test_room_is_what_the_limit_leaves_beside_a_full_pipeline_on_every_rank() -> None:
    assert terms(3, 9).room == 0
    assert [terms(3, 9, limit=limit).room for limit in (6, 6.9, 7, 8, 12, 99)] == [0, 0, 1, 2, 6, 9]
    assert terms(3, 9, limit=[8, 7, 99]).room == 1
    assert terms(3, 9, activation_bytes=4, deferred_bytes=2, limit=31).room == 1
    assert terms(3, 9, activation_bytes=[1, 0, 0, 0, 0, 1], limit=8).room == 2


def test_few_microbatches_need_less() -> None:
    assert terms(4, 2, limit=4).limit == (4, 4, 4, 4)
    with pytest.raises(
        ScheduleError, match=r"memory_limit=3 on rank 1, which holds up to 4 in this order; use 4 or more"
    ):
        terms(4, 2, limit=3)


@pytest.mark.parametrize(
    ("limit", "said"),
    [
        (7, "memory_limit=7 on rank 0, which holds up to 8 in this order; use 8 or more, or v_half or v_min, which "),
        ([8, 8, 7.5, 8], "memory_limit=7.5 on rank 2, which holds up to 8 in this order; use 8 or more, or v_half"),
        (-1, "memory_limit=-1 on rank 0,"),
        (math.nan, "memory_limit=nan on rank 0,"),
        ([8, 8], "memory_limit has 2 values for 4 ranks; give one number a rank"),
        (True, "memory_limit=True is not a number; use e.g. 8"),
        (["8"] * 4, "memory_limit='8' is not a number; use e.g. 8"),
    ],
)
def test_a_limit_that_this_order_does_not_meet_is_refused(limit: Any, said: str) -> None:
    with pytest.raises(ScheduleError) as refused:
        zb_v_greedy(4, 8, memory_limit=limit)
    assert str(refused.value).startswith(f"zb_v_greedy: {said}")


def test_costs_of_the_full_backward_alone_are_refused() -> None:
    with pytest.raises(ScheduleError, match="zb_v_greedy: the costs know the full backward only"):
        zb_v_greedy(2, 4, costs=StageCosts(forward=1, input_grad=0, weight_grad=0, backward=2))


def test_a_cluster_of_another_size_is_refused() -> None:
    with pytest.raises(ScheduleError, match="zb_v_greedy: the cluster has 3 devices for 2 ranks; give one a rank"):
        zb_v_greedy(2, 4, cluster=Cluster.uniform(3))
