"""lower: what it puts in, where, and that what comes out always runs."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.brute_force import CAPACITIES, correct
from tests.random_schedules import any_schedules, paired_schedules, placements, valid_schedules

from penstock import Op, OpKind, Placement, Program, Schedule, lower, parse_grid, verify
from penstock.ir import COMPUTE, NO_MICROBATCH
from penstock.schedules import SCHEDULES, chimera, dualpipe, forward_only, gpipe, named_schedule, one_f_one_b

SIZES = {"num_ranks": st.integers(1, 5), "num_microbatches": st.integers(1, 8)}


def compute_ops(program: Program) -> tuple[tuple[Op, ...], ...]:
    return tuple(
        tuple(entry for entry in row if isinstance(entry, Op) and entry.kind in COMPUTE) for row in program.ranks
    )


def texts(program: Program) -> list[str]:
    return [" ".join(map(str, row)) for row in program.ranks]


@given(schedule=valid_schedules(), reduce_gradients=st.booleans(), seed=st.integers(0, 99))
def test_every_schedule_that_can_run_lowers_to_a_program_that_runs(
    schedule: Schedule, reduce_gradients: bool, seed: int
) -> None:
    program = lower(schedule, reduce_gradients=reduce_gradients)
    assert verify(program).program == program
    for capacity in CAPACITIES:
        assert correct(program, capacity=capacity, seed=seed)


@given(schedule=any_schedules())
def test_lowering_never_changes_the_order_of_compute_ops(schedule: Schedule) -> None:
    assert compute_ops(lower(schedule)) == schedule.ranks


@given(schedule=valid_schedules())
def test_lowering_is_deterministic(schedule: Schedule) -> None:
    assert lower(schedule) == lower(schedule)
    assert lower(schedule).digest == lower(schedule).digest


@given(placement=placements(), num_microbatches=st.integers(1, 5))
def test_forwards_alone_run_on_every_placement(placement: Placement, num_microbatches: int) -> None:
    schedule = forward_only(placement, num_microbatches)
    proof = verify(schedule)
    assert set(proof.peak_activations) == {0}


@given(placement=placements(), num_microbatches=st.integers(1, 3))
def test_forwards_alone_have_nothing_to_reduce(placement: Placement, num_microbatches: int) -> None:
    program = lower(forward_only(placement, num_microbatches), reduce_gradients=True)
    assert all(entry.kind is not OpKind.REDUCE_GRAD for _, _, entry in program.instructions())
    verify(program)


def test_one_f_one_b_is_lowered_to_these_instructions() -> None:
    assert texts(lower(one_f_one_b(2, 2), reduce_gradients=True)) == [
        "0RECV_B0 0F0 0SEND_F0 0F1 0SEND_F1 0RECV_B1 0B0 0B1 0REDUCE_GRAD",
        "1RECV_F0 1RECV_F1 1F0 1B0 1SEND_B0 1F1 1B1 1SEND_B1 1REDUCE_GRAD",
    ]


@given(**SIZES)
def test_a_send_follows_the_op_that_made_its_value_at_once(num_ranks: int, num_microbatches: int) -> None:
    program = lower(one_f_one_b(num_ranks, num_microbatches))
    for row in program.ranks:
        for before, entry in itertools.pairwise(row):
            if entry.kind in (OpKind.SEND_F, OpKind.SEND_B):
                maker = OpKind.F if entry.kind is OpKind.SEND_F else OpKind.B
                assert before == Op(maker, *entry[1:4])


def test_stages_that_share_a_rank_exchange_no_messages() -> None:
    schedule = parse_grid("""
        vee p=2 m=1 weights=flush placement=0,1,1,0
        rank 0: 0F0 .   .   3F0 3B0 .   .   0B0
        rank 1: .   1F0 2F0 .   .   2B0 1B0
    """)
    assert texts(lower(schedule)) == [
        "3RECV_F0 0RECV_B0 0F0 0SEND_F0 3F0 3B0 3SEND_B0 0B0",
        "1RECV_F0 2RECV_B0 1F0 2F0 2SEND_F0 2B0 1B0 1SEND_B0",
    ]


def test_receives_are_posted_in_the_order_of_the_sends_where_the_taker_wants_another() -> None:
    schedule = parse_grid("""
        crossed p=2 m=2 weights=flush placement=0,1
        rank 0: F0 F1 B1 B0
        rank 1: F1 B1 F0 B0
    """)
    program = lower(schedule)
    receives = [entry for entry in program.ranks[1] if entry.kind is OpKind.RECV_F]
    assert [entry.microbatch for entry in receives] == [0, 1]
    assert [str(entry) for entry in program.ranks[1][:3]] == ["1RECV_F0", "1RECV_F1", "1F1"]
    verify(program)


def test_two_ranks_that_send_to_each_other_at_once_do_not_block() -> None:
    """Under rendezvous both would stand in their sends for good, were no receive posted before."""
    schedule = parse_grid("""
        facing p=2 m=4 weights=flush placement=0,1/1,0
        rank 0: 0F0 0F2 1F1@1 1B1@1 1F3@1 1B3@1 0B0 0B2
        rank 1: 0F1@1 0F3@1 1F0 1B0 1F2 1B2 0B1@1 0B3@1
    """)
    verify(schedule)


def test_gradients_are_reduced_right_after_the_last_op_that_adds_to_them() -> None:
    program = lower(one_f_one_b(3, 4), reduce_gradients=True)
    for rank, row in enumerate(program.ranks):
        at = row.index(Op(OpKind.REDUCE_GRAD, rank, NO_MICROBATCH))
        after = at - 1 if rank == 0 else at - 2  # its gradient is sent first
        assert row[after] == Op(OpKind.B, rank, 3)


def test_nothing_stands_between_the_ops_of_a_pair() -> None:
    """The receives of both come before it; the sends of both, and the reduction behind the last B, after it."""
    program = lower(
        parse_grid("""
            pairs p=2 m=2 weights=flush placement=0,1
            rank 0: F0 F1 B0 B1
            rank 1: F0 F1+B0 B1
        """)
    )
    assert texts(program)[1] == "1RECV_F0 1RECV_F1 1F0 1F1 1B0 1SEND_B0 1B1 1SEND_B1"
    ends = lower(
        parse_grid("""
            ends p=3 m=3 weights=flush placement=0,1,2
            rank 0: F0 F1 F2 B0 B1 B2
            rank 1: F0 F1+B0 F2 B1 B2
            rank 2: F0 B0 F1 B1 F2 B2
        """)
    )
    assert texts(ends)[1] == (
        "1RECV_F0 1RECV_F1 1RECV_B0 1F0 1SEND_F0 1RECV_F2 1RECV_B1 1F1 1B0 1SEND_F1 1SEND_B0 1F2 1SEND_F2 "
        "1RECV_B2 1B1 1SEND_B1 1B2 1SEND_B2"
    )


@given(schedule=paired_schedules())
@settings(max_examples=50)
def test_pairs_stay_side_by_side_in_every_program(schedule: Schedule) -> None:
    program = lower(schedule, reduce_gradients=True)
    assert compute_ops(program) == schedule.ranks
    for row, starts, pairs in zip(program.ranks, program.pairs, schedule.overlapped or program.pairs, strict=True):
        assert len(starts) == len(pairs)
        assert all(isinstance(entry, Op) for start in starts for entry in row[start : start + 2])


def test_a_reduction_waits_for_the_end_of_its_pair() -> None:
    program = lower(
        parse_grid("""
            both p=2 m=2 weights=flush placement=0,1/1,0
            rank 0: F0 B0+F1@1 B1@1
            rank 1: F0 B0 F1@1 B1@1
        """)
    )
    assert texts(program)[0].endswith("0B0 1F1@1 0REDUCE_GRAD 1B1@1 1SEND_B1@1 1REDUCE_GRAD@1")


def test_gradients_of_two_directions_are_reduced_as_soon_as_they_are_complete() -> None:
    """On rank 0 of Chimera, stage 3 of the way up is done long before stage 0 of the way down."""
    first = [entry for entry in lower(chimera(4, 4)).ranks[0] if isinstance(entry, Op)]
    assert " ".join(map(str, first)).endswith("3F3@1 3B3@1 3REDUCE_GRAD@1 0B0 0B1 0REDUCE_GRAD")


def test_both_owners_of_two_stages_reduce_them_in_the_same_order() -> None:
    """Otherwise two reductions that block would wait for each other."""
    for schedule in (chimera(4, 8), chimera(8, 8), chimera(8, 8, num_replicas=4), dualpipe(4, 8), dualpipe(8, 18)):
        rows = [[entry.stage for entry in row if entry.kind is OpKind.REDUCE_GRAD] for row in lower(schedule).ranks]
        assert all(row == sorted(row, reverse=True) for row in rows)


ONE_COPY = [name for name in SCHEDULES if name not in ("chimera", "dualpipe")]


@pytest.mark.parametrize("name", ONE_COPY)
def test_one_copy_of_the_model_reduces_only_when_asked(name: str) -> None:
    schedule = named_schedule(name, num_ranks=2, num_microbatches=4)
    kinds = {entry.kind for _, _, entry in lower(schedule).instructions()}
    assert OpKind.REDUCE_GRAD not in kinds


def test_both_owners_of_a_stage_reduce_even_where_one_direction_has_no_microbatch() -> None:
    """Symptom: rank 1 waited for good in the reduction of stage 0. Cause: only trained stages were reduced."""
    schedule = parse_grid("""
        both p=2 m=1 weights=flush placement=0,1/1,0
        rank 0: 0F0 0B0
        rank 1: 1F0 1B0
    """)
    program = lower(schedule)
    reduced = [{(e.stage, e.replica) for e in row if e.kind is OpKind.REDUCE_GRAD} for row in program.ranks]
    assert reduced == [{(0, 0), (1, 1)}, {(1, 0), (0, 1)}]
    verify(program)


def test_a_schedule_that_cannot_run_is_lowered_whole() -> None:
    schedule = parse_grid("""
        stuck p=2 m=1 weights=flush placement=0,1
        rank 0: B0 F0
        rank 1: F0 B0
    """)
    assert compute_ops(lower(schedule)) == schedule.ranks


def test_a_schedule_with_ops_of_a_replica_that_is_nowhere_is_lowered() -> None:
    """Symptom: IndexError from verify. Cause: the owner of a value nobody makes was looked up unchecked."""
    schedule = Schedule("odd", Placement.looped(2), 1, ((), (Op(OpKind.F, 1, 0, replica=1),)))
    assert compute_ops(lower(schedule)) == schedule.ranks


def test_a_message_that_nobody_sends_is_still_waited_for() -> None:
    schedule = parse_grid("""
        lost p=2 m=1 weights=flush placement=0,1
        rank 0: B0
        rank 1: F0 B0
    """)
    assert texts(lower(schedule))[1] == "1RECV_F0 1F0 1B0 1SEND_B0"


def test_one_rank_needs_no_communication() -> None:
    assert lower(gpipe(1, 3)).channels == ()
