"""The clock of zb_auto's search, by hand."""

import pytest

from penstock import OpKind
from penstock.schedules.zb_auto_clock import Clock, Terms

F, I, W = OpKind.F, OpKind.I, OpKind.W  # noqa: E741


@pytest.fixture
def clock() -> Clock:
    """Two ranks and three microbatches; F = 2, I = 3, W = 1 on rank 0, twice that on rank 1; a transfer takes 10."""
    seconds = {F: (2, 4), I: (3, 6), W: (1, 2)}
    return Clock(Terms(3, seconds, transfer=(10,), activation=(5, 5), deferred=(2, 2), limit=(12, 12)))


def test_an_op_starts_when_its_rank_is_free_and_its_message_is_there(clock: Clock) -> None:
    for kind, rank in [(F, 0), (F, 0), (F, 1), (I, 1), (F, 1), (I, 0)]:
        clock.put(kind, rank)
    assert clock.free == [2 + 2 + 28 + 3, 12 + 4 + 6 + 4]
    assert [" ".join(map(str, ops)) for ops in clock.orders] == ["0F0 0F1 0I0", "1F0 1I0 1F1"]


def test_the_input_of_an_op_arrives_one_transfer_after_it_was_made(clock: Clock) -> None:
    assert clock.arrival(F, 0) == 0
    clock.put(F, 0)
    assert clock.arrival(F, 1) == 12
    clock.put(F, 1)
    assert clock.arrival(I, 1) == 0
    clock.put(I, 1)
    assert clock.arrival(I, 0) == 32


def test_a_rank_is_idle_between_its_ops_but_not_before_the_first(clock: Clock) -> None:
    for kind, rank in [(F, 0), (F, 1), (I, 1)]:
        clock.put(kind, rank)
    assert (clock.idle, clock.worst_idle) == ([0, 0], 0)
    clock.put(I, 0)
    assert (clock.idle, clock.worst_idle) == ([30, 0], 30)


def test_a_span_lasts_from_the_first_start_of_a_rank_to_its_last_end(clock: Clock) -> None:
    for kind, rank in [(F, 0), (F, 1), (I, 1), (W, 1)]:
        clock.put(kind, rank)
    assert clock.longest_span() == 4 + 6 + 2
    clock.put(I, 0)
    assert clock.longest_span() == 35


def test_what_is_held_is_activations_and_what_waits_for_w(clock: Clock) -> None:
    clock.put(F, 0)
    assert not clock.exceeds(0, forwards=1)
    assert clock.exceeds(0, forwards=2)
    clock.put(F, 0)
    for kind in (F, I):
        clock.put(kind, 1)
    clock.put(I, 0)
    assert not clock.exceeds(0, forwards=1)  # 10 and 2
    clock.put(F, 0)
    assert clock.exceeds(0, forwards=1)
    assert not clock.exceeds(0, backwards=1)  # 5 and 4


def test_a_limit_of_three_activations_holds_three_of_them_however_long_it_has_run() -> None:
    """A running sum of these floats ends above the limit."""
    seconds: dict[OpKind, tuple[float, ...]] = {F: (1,), I: (1,), W: (1,)}
    clock = Clock(Terms(40, seconds, transfer=(), activation=(1.1,), deferred=(0.03,), limit=(3 * 1.1,)))
    running_sum = 0.0
    for kind, change in [(F, 1.1)] * 3 + [(I, 0.03 - 1.1), (W, -0.03), (F, 1.1)] * 30:
        clock.put(kind, 0)
        running_sum += change
    assert running_sum > 3 * 1.1
    assert not clock.exceeds(0)
    assert clock.exceeds(0, forwards=1)
