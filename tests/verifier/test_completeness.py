"""Every op exactly once: what is refused, and how it is told."""

from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from tests.random_schedules import F, valid_schedules, with_ranks
from tests.strategies import schedule_or_reject

from penstock import Op, OpKind, Placement, Program, Schedule, WeightRule, lower, parse_grid, verify
from penstock.errors import VerificationError
from penstock.schedules import SCHEDULES, forward_only, gpipe, one_f_one_b
from penstock.verifier.completeness import check_completeness, check_order

NAMES = st.sampled_from(sorted(SCHEDULES))


@st.composite
def schedules(draw: st.DrawFn) -> Schedule:
    """A registered schedule at some sizes, or a random one of any placement, split and direction."""
    if draw(st.booleans()):
        return draw(valid_schedules())
    return schedule_or_reject(draw(NAMES), draw(st.integers(1, 5)), draw(st.integers(1, 7)))


def refusal(schedule: Schedule | Program) -> str:
    with pytest.raises(VerificationError) as refused:
        verify(schedule)
    return str(refused.value)


@given(schedule=schedules(), data=st.data())
def test_a_dropped_op_is_refused_by_name_and_rank(schedule: Schedule, data: st.DataObject) -> None:
    rank, position, op = data.draw(st.sampled_from(list(schedule.ops())))
    assume(op.kind is not OpKind.S)  # a step may take over what another applied: see test_weights
    assume(op.kind not in (OpKind.OFFLOAD, OpKind.RELOAD))  # these are no part of the training: see test_offloading
    rows = [list(row) for row in schedule.ranks]
    del rows[rank][position]
    lines = refusal(with_ranks(schedule, rows)).splitlines()
    assert lines == [f"{schedule.name} is not complete:", f"  rank {rank}: {op} is missing"]


@given(schedule=schedules(), data=st.data())
def test_a_doubled_op_is_refused_with_both_places(schedule: Schedule, data: st.DataObject) -> None:
    rank, position, op = data.draw(st.sampled_from(list(schedule.ops())))
    rows = [list(row) for row in schedule.ranks]
    other = data.draw(st.integers(0, schedule.num_ranks - 1))
    place = data.draw(st.integers(0, len(rows[other])))
    rows[other].insert(place, op)
    message = refusal(with_ranks(schedule, rows))
    shifted = position + (other == rank and place <= position)
    first, second = sorted([(rank, shifted), (other, place)])
    assert f"rank {second[0]} position {second[1]}: {op} is doubled" in message
    assert f"it already ran on rank {first[0]} position {first[1]}" in message
    if other != rank:
        assert f"rank {other} position {place}: {op} belongs on rank {rank}" in message


@given(schedule=schedules(), data=st.data())
def test_an_op_moved_to_another_rank_is_refused(schedule: Schedule, data: st.DataObject) -> None:
    if schedule.num_ranks == 1:
        return
    rank, position, op = data.draw(st.sampled_from(list(schedule.ops())))
    rows = [list(row) for row in schedule.ranks]
    other = data.draw(st.sampled_from([other for other in range(schedule.num_ranks) if other != rank]))
    rows[other].append(rows[rank].pop(position))
    assert f"rank {other} position {len(rows[other]) - 1}: {op} belongs on rank {rank}" in refusal(
        with_ranks(schedule, rows)
    )


@pytest.mark.parametrize("generator", [gpipe, one_f_one_b])
def test_the_op_missing_on_the_last_rank_is_named(generator: object) -> None:
    schedule = generator(4, 6)  # type: ignore[operator]
    rows = [list(row) for row in schedule.ranks]
    rows[3].remove(Op(OpKind.B, 3, 4))
    message = refusal(with_ranks(schedule, rows))
    assert message == f"{schedule.name} is not complete:\n  rank 3: 3B4 is missing"


CASES = {
    "a microbatch without ops": (
        "few p=1 m=2 weights=flush placement=0\nrank 0: F0 B0",
        "  microbatch 1 has no op at all",
    ),
    "a microbatch too many": (
        "many p=1 m=1 weights=flush placement=0\nrank 0: F0 B0 F1 B1",
        "  rank 0 position 2: 0F1 is outside the 1 microbatches",
    ),
    "an I without its W": (
        "half p=1 m=1 weights=flush placement=0\nrank 0: F0 I0",
        "  rank 0: 0W0 is missing",
    ),
    "a W without its I": (
        "half p=1 m=1 weights=flush placement=0\nrank 0: F0 W0",
        "  rank 0: 0I0 is missing",
    ),
    "both backwards": (
        "both p=1 m=1 weights=flush placement=0\nrank 0: F0 B0 W0",
        "  rank 0: 0W0 is there beside the full backward B",
    ),
    "an optimizer step before the flush": (
        "step p=1 m=1 weights=flush placement=0\nrank 0: F0 B0 S0",
        "  rank 0 position 2: 0S0 may not occur under weight rule flush",
    ),
    "a backward of frozen weights": (
        "eval p=1 m=1 weights=frozen placement=0\nrank 0: F0 B0",
        "  rank 0 position 1: 0B0 may not occur under weight rule frozen",
    ),
    # Symptom: accepted, and microbatch 0 trained twice. Cause: only the direction with most ops was looked at.
    "a microbatch in both directions": (
        "twice p=1 m=1 weights=flush placement=0/0\nrank 0: F0 B0 F0@1 B0@1",
        "  rank 0 position 2: 0F0@1 is of replica 1; microbatch 0 belongs to replica 0",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_not_complete_is_named(case: str) -> None:
    grid, line = CASES[case]
    assert line in refusal(parse_grid(grid)).splitlines()


def test_a_stage_that_does_not_exist_is_named() -> None:
    schedule = Schedule("odd", Placement.looped(1), 1, ((Op(F, 4, 0),),))
    assert "rank 0 position 0: 4F0 is outside the placement's 1 stages" in refusal(schedule)


def test_a_replica_that_does_not_exist_is_named() -> None:
    """Symptom: IndexError from verify. Cause: lowering came before the check."""
    schedule = Schedule("odd", Placement.looped(2), 1, ((), (Op(F, 1, 0, replica=3),)))
    assert "rank 1 position 0: 1F0@3 is outside the placement" in refusal(schedule)


def test_many_faults_are_told_in_a_few_lines() -> None:
    schedule = Schedule("empty", Placement.looped(2), 9, ((), ()))
    lines = refusal(schedule).splitlines()
    assert len(lines) <= 8
    assert lines[1] == "  microbatch 0 has no op at all"


def test_a_number_of_microbatches_beyond_reason_is_refused_at_once() -> None:
    """Symptom: verify ran out of memory on a damaged file. Cause: one line a missing microbatch."""
    schedule = one_f_one_b(2, 2)
    huge = Schedule("huge", schedule.placement, 10**15, schedule.ranks)
    assert "microbatch 2 has no op at all" in refusal(huge)


def test_a_valid_forward_pass_is_complete_without_backwards() -> None:
    check_completeness(forward_only(Placement.looped(2), 3))


def test_a_training_schedule_without_backwards_is_not_complete() -> None:
    evaluation = forward_only(Placement.looped(2), 1)
    schedule = Schedule("no_b", evaluation.placement, 1, evaluation.ranks, WeightRule.FLUSH)
    assert "rank 1: 1B0 is missing" in refusal(schedule)


def test_a_program_that_parts_a_pair_is_refused() -> None:
    """A send between them could not leave while both run as one."""
    program = lower(replace(one_f_one_b(2, 3), overlapped=((1, 3), ())))
    row = list(program.ranks[0])
    send = next(at for at, entry in enumerate(row) if str(entry) == "0SEND_F1")
    row.insert(send - 1, row.pop(send))
    assert [str(entry) for entry in row[send - 2 : send + 1]] == ["0F1", "0SEND_F1", "0B0"]
    assert refusal(Program(program.schedule, (tuple(row), program.ranks[1]))) == (
        f"rank 0 position {send - 1}: 0SEND_F1 stands between 0F1 and the op that overlaps it"
    )


def test_a_program_that_leaves_its_schedule_is_refused_where_it_does() -> None:
    program = lower(one_f_one_b(2, 2))
    rows = [list(row) for row in program.ranks]
    at = rows[1].index(Op(OpKind.B, 1, 0))
    rows[1][at] = Op(OpKind.B, 1, 1)
    with pytest.raises(VerificationError, match="rank 1 leaves its schedule at compute op 1: 1B1 instead of 1B0"):
        check_order(Program(program.schedule, tuple(map(tuple, rows))))


def test_a_program_that_ends_early_is_refused() -> None:
    program = lower(gpipe(1, 2))
    short = Program(program.schedule, (program.ranks[0][:-1],))
    assert "compute op 3: nothing instead of 0B1" in refusal(short)


def test_a_program_of_too_few_ranks_is_refused() -> None:
    """Symptom: ValueError from zip. Cause: the number of ranks was taken for granted."""
    program = lower(gpipe(2, 1))
    assert refusal(Program(program.schedule, program.ranks[:1])) == "the program has 1 ranks; its schedule has 2"
