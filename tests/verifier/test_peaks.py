"""Peaks: activations, deferred weight gradients, receive rings."""

import pytest
from hypothesis import given
from tests.random_schedules import valid_schedules

from penstock import Program, Schedule, StageCosts, lower, parse_grid, simulate, verify
from penstock.ir import COMPUTE, RECEIVES
from penstock.schedules import SCHEDULES, gpipe, naive, named_schedule, one_f_one_b
from penstock.verifier import receive_slots

SIZES = [(num_ranks, num_microbatches) for num_ranks in range(1, 9) for num_microbatches in range(1, 17)]


def test_gpipe_holds_every_microbatch() -> None:
    for num_ranks, num_microbatches in SIZES:
        proof = verify(gpipe(num_ranks, num_microbatches))
        assert proof.peak_activations == (num_microbatches,) * num_ranks


def test_one_f_one_b_holds_one_microbatch_for_each_rank_to_come_and_its_own() -> None:
    for num_ranks, num_microbatches in SIZES:
        proof = verify(one_f_one_b(num_ranks, num_microbatches))
        assert proof.peak_activations == tuple(min(num_ranks - rank, num_microbatches) for rank in range(num_ranks))


def test_naive_holds_one_microbatch() -> None:
    for num_ranks, num_microbatches in SIZES:
        assert verify(naive(num_ranks, num_microbatches)).peak_activations == (1,) * num_ranks


@given(schedule=valid_schedules())
def test_the_verifier_and_the_simulator_count_the_same_peaks(schedule: Schedule) -> None:
    timeline = simulate(schedule, StageCosts(forward=2, input_grad=3, weight_grad=1, backward=4))
    assert verify(schedule).peak_activations == timeline.peak_activations


def test_all_chunks_of_a_rank_count_and_deferred_weight_gradients_count_apart() -> None:
    proof = verify(
        parse_grid("""
        split p=1 m=2 weights=flush placement=0,0
        rank 0: 0F0 1F0 0F1 1F1 1I0 0I0 1I1 0I1 1W0 0W0 1W1 0W1
    """)
    )
    assert proof.peak_activations == (4,)
    assert proof.peak_deferred == (4,)


def test_a_weight_gradient_at_once_leaves_one_deferred() -> None:
    proof = verify(
        parse_grid("""
        split p=1 m=2 weights=flush placement=0
        rank 0: F0 F1 I0 W0 I1 W1
    """)
    )
    assert proof.peak_activations == (2,)
    assert proof.peak_deferred == (1,)


def check_rings(program: Program) -> None:
    """Walks every rank and holds each buffer from its post to the last op of its stage and microbatch."""
    rings = receive_slots(program)
    for row in program.ranks:
        for position, entry in enumerate(row):
            if entry.kind not in RECEIVES:
                continue
            ring = rings[entry.channel]  # type: ignore[union-attr]
            slot = ring.slot[position]
            assert 0 <= slot < ring.capacity
            users = [at for at, op in enumerate(row) if op.kind in COMPUTE and op[1:4] == entry[1:4]]
            for later in range(position + 1, max(users) + 1):
                other = row[later]
                if other.kind in RECEIVES and other.channel == entry.channel:  # type: ignore[union-attr]
                    assert ring.slot[later] != slot, f"{other} lands in the buffer of {entry}"


@given(schedule=valid_schedules())
def test_no_two_live_receives_share_a_buffer(schedule: Schedule) -> None:
    check_rings(lower(schedule))


@given(schedule=valid_schedules())
def test_a_proof_counts_as_many_buffers_as_the_rings_fill(schedule: Schedule) -> None:
    rings = receive_slots(lower(schedule))
    assert verify(schedule).receive_slots == tuple((channel, rings[channel].capacity) for channel in sorted(rings))


@given(schedule=valid_schedules())
def test_a_ring_is_no_larger_than_what_is_live_at_once(schedule: Schedule) -> None:
    program = lower(schedule)
    for channel, ring in receive_slots(program).items():
        row = program.ranks[channel.target]
        most = 0
        for now in range(len(row)):
            live = [
                position
                for position in ring.slot
                if position <= now <= max(at for at, op in enumerate(row) if op.kind in COMPUTE
                                          and op[1:4] == row[position][1:4])
            ]  # fmt: skip
            most = max(most, len(live))
        assert ring.capacity == most


@pytest.mark.parametrize("num_ranks", [2, 3, 4, 8])
def test_the_rings_of_one_f_one_b_do_not_grow_with_the_microbatches(num_ranks: int) -> None:
    few, many = (verify(one_f_one_b(num_ranks, count)).receive_slots for count in (2 * num_ranks, 64))
    assert few == many
    for channel, capacity in many:
        if channel.kind.name == "F":
            assert capacity <= num_ranks - channel.target + 1, "those between F and B, and one ahead"
        else:
            assert capacity <= 2


def test_every_channel_has_its_ring() -> None:
    for name in SCHEDULES:
        program = lower(named_schedule(name, num_ranks=4, num_microbatches=8))
        assert set(receive_slots(program)) == set(program.channels)
        for channel, ring in receive_slots(program).items():
            row = program.ranks[channel.target]
            assert [position for position, entry in enumerate(row)
                    if entry.kind in RECEIVES and entry.channel == channel] == sorted(ring.slot)  # type: ignore[union-attr]  # fmt: skip
