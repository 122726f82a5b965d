"""UNSHARD and RESHARD: where they stand, and what a program without one of them is told."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.random_schedules import valid_schedules

from penstock import Op, OpKind, Program, Schedule, lower, verify
from penstock.errors import ScheduleError, VerificationError
from penstock.ir import NO_MICROBATCH
from penstock.ir.ops import NEEDS_PARAMETERS
from penstock.notation.programs import program_from_json, program_to_json
from penstock.schedules import named_schedule

GATHERS = (OpKind.UNSHARD, OpKind.RESHARD)
UNSHARD, RESHARD = GATHERS


def own(program: Program, rank: int) -> str:
    """What the rank does, its messages left out."""
    return " ".join(str(entry) for entry in program.ranks[rank] if isinstance(entry, Op))


BREADTH = named_schedule("breadth_first", num_ranks=2, num_microbatches=2)
GRIDS = {
    1: "0UNSHARD 0F0 0F1 0RESHARD 2UNSHARD 2F0 2F1 2B0 2B1 2RESHARD 0UNSHARD 0B0 0B1 0RESHARD",
    2: "0UNSHARD 2UNSHARD 0F0 0F1 2F0 2F1 2B0 2B1 2RESHARD 0B0 0B1 0RESHARD",
    9: "0UNSHARD 2UNSHARD 0F0 0F1 2F0 2F1 2B0 2B1 2RESHARD 0B0 0B1 0RESHARD",
}


@pytest.mark.parametrize("gathered", GRIDS)
def test_a_rank_gathers_what_comes_next_and_lets_go_the_rest(gathered: int) -> None:
    assert own(lower(BREADTH, gathered=gathered), 0) == GRIDS[gathered]


def test_the_gather_for_the_next_run_of_a_stage_precedes_this_one() -> None:
    schedule = named_schedule("breadth_first", num_ranks=2, num_microbatches=2, num_chunks=3)
    assert own(lower(schedule, gathered=2), 0) == (
        "0UNSHARD 2UNSHARD 0F0 0F1 0RESHARD 4UNSHARD 2F0 2F1 4F0 4F1 4B0 4B1 4RESHARD 0UNSHARD 2B0 2B1 2RESHARD "
        "0B0 0B1 0RESHARD"
    )


def test_gradients_are_reduced_before_their_stage_is_let_go() -> None:
    assert own(lower(BREADTH, gathered=1, reduce_gradients=True), 1) == (
        "1UNSHARD 1F0 1F1 1RESHARD 3UNSHARD 3F0 3F1 3B0 3B1 3REDUCE_GRAD 3RESHARD "
        "1UNSHARD 1B0 1B1 1REDUCE_GRAD 1RESHARD"
    )


def test_an_overlapped_pair_has_the_parameters_of_both_its_ops() -> None:
    schedule = named_schedule("dualpipe_v", num_ranks=2, num_microbatches=4)
    assert verify(lower(schedule, gathered=1)).peak_gathered == (2, 2)


@given(schedule=valid_schedules(), gathered=st.integers(1, 4))
def test_gathers_leave_everything_else_as_it_is_and_hold_no_more_than_asked(schedule: Schedule, gathered: int) -> None:
    program = lower(schedule, gathered=gathered)
    rest = tuple(tuple(entry for entry in row if entry.kind not in GATHERS) for row in program.ranks)
    assert rest == lower(schedule).ranks
    peak = verify(program).peak_gathered
    most = [max(gathered, 2) if schedule.overlapped else gathered] * schedule.num_ranks
    works = [any(entry.kind in NEEDS_PARAMETERS for entry in row) for row in rest]
    assert all(works <= found <= limit for works, found, limit in zip(works, peak, most, strict=True))
    assert program_from_json(program_to_json(program)) == program


@given(schedule=valid_schedules(), gathered=st.integers(1, 3), data=st.data())
def test_a_gather_dropped_doubled_or_moved_across_its_ops_is_refused(
    schedule: Schedule, gathered: int, data: st.DataObject
) -> None:
    program = lower(schedule, gathered=gathered)
    places = [
        (rank, at) for rank, row in enumerate(program.ranks) for at, entry in enumerate(row) if entry.kind in GATHERS
    ]
    rank, at = data.draw(st.sampled_from(places))
    row = list(program.ranks[rank])
    entry = row.pop(at)
    how = data.draw(st.sampled_from(["drop", "double", "move"]))
    if how == "double":
        row[at:at] = [entry, entry]
    elif how == "move":
        step = 1 if entry.kind == UNSHARD else -1
        uses = range(at, len(row)) if step == 1 else range(at - 1, -1, -1)
        use = next(i for i in uses if row[i].kind in NEEDS_PARAMETERS and row[i].stage == entry.stage)
        row.insert(use + (step == 1), entry)
    ranks = (*program.ranks[:rank], tuple(row), *program.ranks[rank + 1 :])
    with pytest.raises(VerificationError, match=rf"rank {rank} position \d+: "):
        verify(Program(schedule, ranks))


WRONG = {
    "a compute op whose parameters are not there": (
        lambda row: [entry for entry in row if str(entry) != "2UNSHARD"],
        "rank 0 position 9: 2F0 finds the parameters of stage 2 not gathered",
    ),
    "a stage of another rank": (
        lambda row: [Op(UNSHARD, 1, NO_MICROBATCH), *row],
        r"rank 0 position 0: 1UNSHARD is of a stage that the rank does not hold; it holds \[0, 2\]",
    ),
    "gathered twice": (
        lambda row: [row[0], *row],
        "rank 0 position 1: 0UNSHARD gathers what is there since position 0",
    ),
    "let go twice": (
        lambda row: [*row, row[-1]],
        r"0RESHARD lets go what is not there; they were let go at position \d+",
    ),
    "never let go": (lambda row: row[:-1], "0UNSHARD is let go by no RESHARD before the end"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_gather_is_told_with_its_place(case: str) -> None:
    change, message = WRONG[case]
    program = lower(BREADTH, gathered=1)
    with pytest.raises(VerificationError, match=message):
        verify(Program(BREADTH, (tuple(change(list(program.ranks[0]))), *program.ranks[1:])))


def test_a_program_that_shares_nothing_needs_no_gathers() -> None:
    assert verify(BREADTH).peak_gathered == (0, 0)


@pytest.mark.parametrize("gathered", [0, -1, True, 1.5])
def test_a_number_that_is_none_is_refused(gathered: int) -> None:
    with pytest.raises(ScheduleError, match=f"gathered={gathered!r}; give how many stages a rank holds at once"):
        lower(BREADTH, gathered=gathered)


def test_a_schedule_that_steps_by_itself_is_refused() -> None:
    schedule = named_schedule("pipedream", num_ranks=2, num_microbatches=4)
    with pytest.raises(ScheduleError, match="pipedream steps its weights inside the program"):
        lower(schedule, gathered=1)
