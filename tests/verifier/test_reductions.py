"""Gradient reductions: once, complete, and on every owner of a stage."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.random_schedules import valid_schedules

from penstock import Op, OpKind, Program, Schedule, lower, parse_grid, verify
from penstock.errors import VerificationError
from penstock.ir import NO_MICROBATCH
from penstock.schedules import forward_only, one_f_one_b, pipedream

REDUCE = OpKind.REDUCE_GRAD


def refusal(program: Program, rows: list[list[object]]) -> str:
    with pytest.raises(VerificationError) as refused:
        verify(Program(program.schedule, tuple(map(tuple, rows))))  # type: ignore[arg-type]
    return str(refused.value)


def pick(program: Program, data: st.DataObject) -> tuple[int, int, Op]:
    found = [entry for entry in program.instructions() if entry[2].kind == REDUCE]
    return data.draw(st.sampled_from(found))  # type: ignore[return-value]


def reducing(schedule: Schedule) -> Program:
    return lower(schedule, reduce_gradients=True)


@given(program=valid_schedules().map(reducing), data=st.data())
def test_a_dropped_reduction_is_refused_unless_it_was_the_only_one(program: Program, data: st.DataObject) -> None:
    rank, position, entry = pick(program, data)
    rows = [list(row) for row in program.ranks]
    del rows[rank][position]
    placement = program.schedule.placement
    if placement.num_stages == placement.num_replicas == 1:
        verify(Program(program.schedule, tuple(map(tuple, rows))))
        return
    assert f"rank {rank}: {entry} is missing" in refusal(program, rows)


@given(program=valid_schedules().map(reducing), data=st.data())
def test_a_doubled_reduction_is_refused(program: Program, data: st.DataObject) -> None:
    rank, position, entry = pick(program, data)
    rows = [list(row) for row in program.ranks]
    rows[rank].append(entry)
    place = f"rank {rank} position {len(rows[rank]) - 1}: {entry}"
    assert f"{place} is doubled; it already ran at position {position}" in refusal(program, rows)


@given(program=valid_schedules(max_replicas=1).map(reducing), data=st.data())
def test_a_gradient_after_its_reduction_is_refused(program: Program, data: st.DataObject) -> None:
    rank, position, entry = pick(program, data)
    rows = [list(row) for row in program.ranks]
    adds = (OpKind.B, OpKind.W)
    last = max(at for at, op in enumerate(rows[rank]) if op.kind in adds and op[1] == entry.stage)
    rows[rank].insert(last, rows[rank].pop(position))
    message = refusal(program, rows)
    assert f"adds to gradients that were reduced at position {last}" in message
    assert f"rank {rank} position {last + 1}: {rows[rank][last + 1]}" in message


def test_a_reduction_of_a_stage_held_elsewhere_is_refused() -> None:
    program = reducing(one_f_one_b(2, 1))
    rows: list[list[object]] = [list(row) for row in program.ranks]
    rows[0].append(Op(REDUCE, 1, NO_MICROBATCH))
    assert "1REDUCE_GRAD is of a stage that the rank does not hold; it holds [0]" in refusal(program, rows)


def test_frozen_weights_have_nothing_to_reduce() -> None:
    program = lower(forward_only(one_f_one_b(2, 1).placement, 1))
    rows: list[list[object]] = [list(row) for row in program.ranks]
    rows[0].append(Op(REDUCE, 0, NO_MICROBATCH))
    assert "0REDUCE_GRAD may not occur under weight rule frozen" in refusal(program, rows)


def test_two_directions_without_any_reduction_are_refused() -> None:
    program = lower(
        parse_grid("""
        both p=2 m=2 weights=flush placement=0,1/1,0
        rank 0: 0F0 1F1@1 1B1@1 0B0
        rank 1: 0F1@1 1F0 1B0 0B1@1
    """)
    )
    rows = [[entry for entry in row if entry.kind != REDUCE] for row in program.ranks]
    assert "rank 0: 0REDUCE_GRAD is missing" in refusal(program, rows)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------ before every step


def stepping(*, everywhere: bool = False) -> Program:
    """Two ranks that share stage 0 and one with stage 1: rank 0 is `RECV_B0 F0 SEND_F0 B0 REDUCE_GRAD0 S0 …`."""
    return lower(pipedream(3, 4, replicas=(2, 1)), reduce_gradients=everywhere)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_step_without_the_reduction_of_what_it_applies_is_refused(rank: int) -> None:
    program = stepping()
    rows: list[list[object]] = [list(row) for row in program.ranks]
    at = next(at for at, entry in enumerate(rows[rank]) if entry.kind == REDUCE)  # type: ignore[attr-defined]
    dropped = rows[rank].pop(at)
    step = rows[rank][at]
    assert refusal(program, rows) == (
        f"rank {rank} position {at}: {step} comes without {dropped}; the stage's other owners wait for it"
    )


def test_a_reduction_that_a_gradient_follows_before_the_step_is_refused() -> None:
    program = stepping()
    rows: list[list[object]] = [list(row) for row in program.ranks]
    at = [str(entry) for entry in rows[0]].index("0REDUCE_GRAD0")
    rows[0][at - 1], rows[0][at] = rows[0][at], rows[0][at - 1]
    said = f"rank 0 position {at}: 0B0 adds to gradients that were reduced at position {at - 1}"
    assert refusal(program, rows) == said


def test_a_doubled_reduction_of_one_step_is_refused() -> None:
    program = stepping()
    rows: list[list[object]] = [list(row) for row in program.ranks]
    at = [str(entry) for entry in rows[0]].index("0REDUCE_GRAD0")
    rows[0].insert(at, rows[0][at])
    said = f"rank 0 position {at + 1}: 0REDUCE_GRAD0 follows 0REDUCE_GRAD0 (position {at}) without a step in between"
    assert refusal(program, rows) == said


def test_the_reduction_of_another_step_is_refused() -> None:
    program = stepping()
    rows: list[list[object]] = [list(row) for row in program.ranks]
    at = [str(entry) for entry in rows[0]].index("0REDUCE_GRAD0")
    rows[0][at] = Op(REDUCE, 0, 2)
    assert refusal(program, rows) == (
        f"rank 0 position {at + 1}: 0S0 applies what 0REDUCE_GRAD2 (position {at}) has reduced, not 0REDUCE_GRAD0"
    )


def test_a_reduction_behind_the_last_step_is_refused() -> None:
    program = stepping()
    rows: list[list[object]] = [list(row) for row in program.ranks]
    rows[0].append(Op(REDUCE, 0, 2))
    assert "0REDUCE_GRAD2 is followed by no step that applies its sum" in refusal(program, rows)


def test_data_parallel_replicas_reduce_at_every_step_or_at_none() -> None:
    """A reduction of a stage that one rank holds tells that there are other copies of the whole model."""
    program = stepping(everywhere=True)
    verify(program)
    rows: list[list[object]] = [list(row) for row in program.ranks]
    rows[2].remove(Op(REDUCE, 1, 2))
    assert "1S2 comes without 1REDUCE_GRAD2" in refusal(program, rows)
    alone = [[entry for entry in row if rank < 2 or entry.kind != REDUCE] for rank, row in enumerate(program.ranks)]
    verify(Program(program.schedule, tuple(map(tuple, alone))))
