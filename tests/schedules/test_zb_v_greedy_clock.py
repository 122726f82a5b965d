"""The clock of zb_v_greedy's search, by hand."""

import pytest

from penstock import OpKind
from penstock.schedules.zb_v_greedy_clock import Clock
from penstock.schedules.zb_v_greedy_terms import Terms

F, I, W = OpKind.F, OpKind.I, OpKind.W  # noqa: E741


@pytest.fixture
def clock() -> Clock:
    """Two ranks, stages 0 and 3, 1 and 2, and two microbatches; a transfer takes 10 down and 20 up."""
    seconds = {F: (2, 4, 6, 8), I: (3, 3, 3, 3), W: (1, 1, 1, 1)}
    return Clock(Terms(2, 2, seconds, transfer=(10, 0, 20), activation=(5,) * 4, deferred=(2,) * 4, limit=(11, 12)))


def test_an_op_starts_when_its_rank_is_free_and_its_input_is_there(clock: Clock) -> None:
    for stage in (0, 0, 1, 2, 3):
        clock.put(F, stage)
    assert clock.free == [2 + 10 + 4 + 6 + 20 + 8, 2 + 10 + 4 + 6]
    clock.put(I, 3)
    clock.put(I, 2)
    assert clock.free == [53, 53 + 20 + 3]
    assert [" ".join(map(str, ops)) for ops in clock.orders] == ["0F0 0F1 3F0 3I0", "1F0 2F0 2I0"]


def test_the_input_of_an_op_arrives_one_transfer_after_it_was_made(clock: Clock) -> None:
    assert clock.arrival(F, 0) == 0
    clock.put(F, 0)
    assert clock.arrival(F, 1) == 12
    clock.put(F, 1)
    assert clock.arrival(F, 2) == 0  # from the same rank
    clock.put(F, 2)
    assert clock.arrival(F, 3) == 16 + 6 + 20
    assert clock.arrival(W, 0) == clock.arrival(I, 3) == 0


def test_an_op_is_fed_once_its_source_is_placed(clock: Clock) -> None:
    assert clock.is_fed(F, 0) and not clock.is_fed(F, 1) and clock.is_fed(I, 3) and not clock.is_fed(I, 2)
    clock.put(F, 0)
    assert clock.is_fed(F, 1)
    clock.put(F, 1)
    assert not clock.is_fed(F, 1)


def test_a_rank_is_late_by_its_work_and_by_its_idling_after_the_first_op(clock: Clock) -> None:
    work = [2 * (2 + 8 + 3 + 3 + 1 + 1), 2 * (4 + 6 + 3 + 3 + 1 + 1)]
    assert [clock.lateness(rank) for rank in (0, 1)] == work == [36, 36]
    assert clock.worst == 36
    for stage in (0, 1, 2, 3):
        clock.put(F, stage)
    assert clock.idle == [40, 0]
    assert (clock.worst, clock.lateness(0), clock.lateness(1)) == (76, 76, 36)


def test_a_rank_holds_what_f_keeps_until_i_and_what_i_keeps_until_w(clock: Clock) -> None:
    for stage in (0, 1, 2, 3):
        clock.put(F, stage)
    assert clock.exceeds(F, 0)  # 15 of 11
    clock.put(I, 3)
    assert clock.exceeds(F, 0)  # 5 + 2 + 5
    clock.put_weight(0)
    assert not clock.exceeds(F, 0)


def test_weights_run_in_the_order_of_their_input_grads(clock: Clock) -> None:
    for kind, stage in [(F, 0), (F, 1), (F, 2), (F, 3), (I, 3), (I, 2), (I, 1), (I, 0)]:
        clock.put(kind, stage)
    clock.put_weight(1)
    clock.put_weight(1)
    assert [str(op) for op in clock.orders[1]] == ["1F0", "2F0", "2I0", "1I0", "2W0", "1W0"]
    assert not clock.pending[1] and list(clock.pending[0]) == [3, 0]
