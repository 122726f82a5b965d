"""All ranks reach their end, or the cycle is shown: op by op, with ranks and positions that are right."""

import re

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tests.brute_force import CAPACITIES, correct
from tests.random_schedules import any_schedules, paired_schedules, runs_to_its_end, valid_schedules, with_ranks
from tests.strategies import schedule_or_reject

from penstock import OpKind, Program, Schedule, WeightRule, lower, parse_grid, verify
from penstock.errors import VerificationError
from penstock.ir import Instruction, Op, Transfer
from penstock.schedules import SCHEDULES, named_schedule, one_f_one_b
from penstock.verifier.progress import check_progress

LINE = re.compile(
    r"  rank (?P<rank>\d+) position (?P<position>\d+): (?P<entry>\S+) waits for (?:its receive )?(?P<other>\S+)"
    r" \(rank (?P<other_rank>\d+) position (?P<other_position>\d+)\)"
)


def check_cycle(program: Program, message: str) -> None:
    """Checks that every line names what stands there, and that the lines close a circle."""
    head, *lines = message.splitlines()
    assert head == f"{program.schedule.name} deadlocks, in a cycle:"
    assert lines
    steps = []
    for line in lines:
        match = LINE.fullmatch(line)
        assert match, line
        rank, position, other_rank, other_position = (
            int(match[name]) for name in ("rank", "position", "other_rank", "other_position")
        )
        size = 2 if position in program.pairs[rank] else 1
        assert "+".join(map(str, program.ranks[rank][position : position + size])) == match["entry"]
        assert str(program.ranks[other_rank][other_position]) == match["other"]
        steps.append((rank, position, other_rank, other_position))
    for (_, _, other_rank, other_position), (rank, position, _, _) in zip(steps, steps[1:] + steps[:1], strict=True):
        assert other_rank == rank, "the next line is of the rank that this one waits for"
        assert other_position >= position, "what is waited for lies at or behind where that rank stands"


@given(schedule=any_schedules(), seed=st.integers(0, 99))
def test_a_schedule_is_accepted_exactly_if_its_orders_and_dependencies_have_no_cycle(
    schedule: Schedule, seed: int
) -> None:
    program = lower(schedule)
    runs = runs_to_its_end(schedule)
    try:
        verify(schedule)
    except VerificationError as refused:
        assert not runs
        if "deadlocks" in str(refused):
            check_cycle(program, str(refused))
    else:
        assert runs
    for capacity in CAPACITIES:
        assert correct(program, capacity=capacity, seed=seed) == runs


@given(schedule=paired_schedules(), seed=st.integers(0, 99))
@settings(max_examples=50)
def test_pairs_are_accepted_exactly_if_each_can_start_as_one(schedule: Schedule, seed: int) -> None:
    program = lower(schedule)
    if not runs_to_its_end(schedule):
        with pytest.raises(VerificationError) as refused:
            verify(schedule)
        check_cycle(program, str(refused.value))
        return
    assert verify(schedule).program == program
    for capacity in CAPACITIES:
        assert correct(program, capacity=capacity, seed=seed), "its ops also run one after the other"


def test_a_pair_that_waits_for_itself_is_shown() -> None:
    """Rank 1 may run F1 and then B1, but not both as one: B1 needs what F1 makes."""
    with pytest.raises(VerificationError) as refused:
        verify(
            parse_grid("""
                stuck p=2 m=2 weights=flush placement=0,1
                rank 0: F0 F1 B0 B1
                rank 1: F0 B0 F1+B1
            """)
        )
    assert str(refused.value) == (
        "stuck deadlocks, in a cycle:\n  rank 1 position 5: 1F1+1B1 waits for 1F1 (rank 1 position 5)"
    )


def test_the_cycle_of_pairs_on_two_ranks_is_shown() -> None:
    """Rank 0 may run F1, B0; as one they need rank 1's B0, which runs in one with the F that needs rank 0's F1."""
    schedule = parse_grid("""
        stuck p=2 m=2 weights=flush placement=0,1
        rank 0: F0 F1+B0 B1
        rank 1: F0 F1+B0 B1
    """)
    with pytest.raises(VerificationError) as refused:
        verify(schedule)
    check_cycle(lower(schedule), str(refused.value))
    assert "0F1+0B0 waits for 1B0 (rank 1 position 4)" in str(refused.value)
    assert "1F1+1B0 waits for 0F1 (rank 0 position 4)" in str(refused.value)


@given(
    name=st.sampled_from(sorted(SCHEDULES)),
    num_ranks=st.integers(1, 5),
    num_microbatches=st.integers(1, 6),
    data=st.data(),
)
def test_two_swapped_ops_are_refused_exactly_if_a_dependency_lies_between(
    name: str, num_ranks: int, num_microbatches: int, data: st.DataObject
) -> None:
    schedule = schedule_or_reject(name, num_ranks, num_microbatches)
    assume(schedule.weight_rule is WeightRule.FLUSH)  # test_weights swaps ops around optimizer steps
    rows = [list(row) for row in schedule.ranks]
    row = data.draw(st.sampled_from(rows))
    first = data.draw(st.integers(0, len(row) - 2))
    second = data.draw(st.integers(first + 1, len(row) - 1))
    row[first], row[second] = row[second], row[first]
    swapped = with_ranks(schedule, rows)
    if runs_to_its_end(swapped):
        verify(swapped)
        return
    with pytest.raises(VerificationError) as refused:
        verify(swapped)
    if not schedule.keepers:  # test_offloading has what is told of offloaded activations
        check_cycle(lower(swapped), str(refused.value))


@given(schedule=valid_schedules(), data=st.data())
def test_a_forward_swapped_with_its_backward_is_refused(schedule: Schedule, data: st.DataObject) -> None:
    rows = [list(row) for row in schedule.ranks]
    rank, position, op = data.draw(st.sampled_from([entry for entry in schedule.ops() if entry[2].kind.name in "BI"]))
    forward = next(at for at, other in enumerate(rows[rank]) if other[1:] == op[1:] and other.kind.name == "F")
    rows[rank][position], rows[rank][forward] = rows[rank][forward], rows[rank][position]
    with pytest.raises(VerificationError, match="waits for"):
        verify(with_ranks(schedule, rows))


@given(num_ranks=st.integers(1, 4), num_microbatches=st.integers(2, 6), data=st.data())
def test_neighbours_of_different_microbatches_on_the_last_rank_may_change_places(
    num_ranks: int, num_microbatches: int, data: st.DataObject
) -> None:
    """GPipe's last rank may take its backwards in any order."""
    schedule = named_schedule("gpipe", num_ranks=num_ranks, num_microbatches=num_microbatches)
    rows = [list(row) for row in schedule.ranks]
    order = data.draw(st.permutations(range(num_microbatches)))
    rows[-1][num_microbatches:] = [rows[-1][num_microbatches + index] for index in order]
    verify(with_ranks(schedule, rows))


def test_the_cycle_between_two_ranks_is_shown() -> None:
    schedule = parse_grid("""
        stuck p=2 m=2 weights=flush placement=0,1
        rank 0: F0 B0 F1 B1
        rank 1: F0 F1 B0 B1
    """)
    with pytest.raises(VerificationError) as refused:
        verify(schedule)
    assert str(refused.value) == (
        "stuck deadlocks, in a cycle:\n"
        "  rank 0 position 4: 0B0 waits for 1B0 (rank 1 position 4)\n"
        "  rank 1 position 3: 1F1 waits for 0F1 (rank 0 position 5)"
    )
    check_cycle(lower(schedule), str(refused.value))


def test_an_op_before_what_it_needs_on_its_own_rank_waits_for_itself() -> None:
    schedule = parse_grid("turned p=1 m=1 weights=flush placement=0\nrank 0: B0 F0")
    with pytest.raises(VerificationError) as refused:
        verify(schedule)
    assert str(refused.value) == (
        "turned deadlocks, in a cycle:\n  rank 0 position 0: 0B0 waits for 0F0 (rank 0 position 1)"
    )


def facing() -> Program:
    """Two ranks that each send before they post the receive of what the other sends."""
    schedule = parse_grid("""
        facing p=2 m=2 weights=flush placement=0,1/1,0
        rank 0: 0F0 1F1@1 1B1@1 0B0
        rank 1: 0F1@1 1F0 1B0 0B1@1
    """)
    program = lower(schedule)
    rows = []
    for row in program.ranks:
        entries = list(row)
        receive = next(entry for entry in entries if entry.kind.name == "RECV_F")
        send = next(at for at, entry in enumerate(entries) if entry.kind.name == "SEND_F")
        entries.insert(send, entries.pop(entries.index(receive)))
        assert entries[send - 1].kind.name == "SEND_F"
        rows.append(tuple(entries))
    return Program(schedule, tuple(rows))


def test_sends_that_face_each_other_are_refused_though_a_buffer_would_let_them_pass() -> None:
    program = facing()
    assert correct(program, capacity=1)
    assert not correct(program, capacity=0)
    with pytest.raises(VerificationError) as refused:
        verify(program)
    check_cycle(program, str(refused.value))
    assert "0SEND_F0 waits for its receive 1RECV_F0" in str(refused.value)
    assert "0SEND_F1@1 waits for its receive 1RECV_F1@1" in str(refused.value)


def test_an_op_whose_value_is_made_but_held_back_waits_for_the_send() -> None:
    """Symptom: the cycle named an op that had already run. Cause: the maker of a value, not its send, was shown."""
    program = lower(one_f_one_b(2, 2))
    late = [entry for entry in program.ranks[0] if entry.kind.name == "SEND_F"]
    row = [entry for entry in program.ranks[0] if entry not in late]
    behind_b0 = row.index(Op(OpKind.B, 0, 0)) + 1
    broken = Program(program.schedule, ((*row[:behind_b0], *late, *row[behind_b0:]), program.ranks[1]))
    with pytest.raises(VerificationError) as refused:
        verify(broken)
    check_cycle(broken, str(refused.value))
    assert "1F0 waits for 0SEND_F0 (rank 0 position 5)" in str(refused.value)


def mutated(program: Program, data: st.DataObject) -> Program:
    """One or two entries dropped, doubled, moved or swapped, anywhere."""
    rows: list[list[Instruction]] = [list(row) for row in program.ranks]
    for _ in range(data.draw(st.integers(1, 2))):
        row = data.draw(st.sampled_from([row for row in rows if row]))
        at = data.draw(st.integers(0, len(row) - 1))
        to = data.draw(st.integers(0, len(row) - 1))
        match data.draw(st.sampled_from(["drop", "double", "move", "swap", "shift"])):
            case "drop":
                del row[at]
            case "double":
                row.insert(to, row[at])
            case "move":
                row.insert(to, row.pop(at))
            case "swap":
                row[at], row[to] = row[to], row[at]
            case "shift":
                data.draw(st.sampled_from(rows)).append(row.pop(at))
        assume(any(rows))
    return Program(program.schedule, tuple(map(tuple, rows)))


@given(schedule=valid_schedules(max_microbatches=3, max_ranks=3), data=st.data(), reduces=st.booleans())
def test_a_mutated_program_is_accepted_exactly_if_it_still_runs_right(
    schedule: Schedule, data: st.DataObject, reduces: bool
) -> None:
    program = mutated(lower(schedule, reduce_gradients=reduces), data)
    seed = data.draw(st.integers(0, 99))
    right = correct(program, capacity=0, seed=seed)
    try:
        verify(program)
    except VerificationError as refused:
        assert not right, str(refused)
    else:
        assert right
        for capacity in CAPACITIES:
            assert correct(program, capacity=capacity, seed=seed), "more buffering never hurts"


def test_progress_is_decided_alike_in_whatever_order_the_ranks_move() -> None:
    program = facing()
    assert {correct(program, capacity=0, seed=seed) for seed in range(20)} == {False}
    assert {correct(lower(one_f_one_b(3, 5)), capacity=0, seed=seed) for seed in range(20)} == {True}


def test_a_program_without_messages_makes_progress() -> None:
    program = lower(one_f_one_b(1, 3))
    assert not any(isinstance(entry, Transfer) for _, _, entry in program.instructions())
    check_progress(program)
