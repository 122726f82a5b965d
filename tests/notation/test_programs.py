"""The JSON file of a program: round trip, every damage told with its place, and the proof of what it holds."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.random_schedules import any_schedules, paired_schedules, valid_schedules
from tests.strategies import asynchronous, schedule_or_reject

from penstock import (
    Program,
    Schedule,
    bpipe,
    chimera,
    dualpipe,
    gpipe,
    interleaved_1f1b,
    lower,
    one_f_one_b,
    pipedream,
    program_from_json,
    program_to_json,
    schedule_to_json,
    verify,
)
from penstock.errors import NotationError, VerificationError
from penstock.ir import Channel, Op, OpKind, Transfer
from penstock.notation import draw_grid, load_schedule_or_program, programs, schedule_to_csv
from penstock.schedules import SCHEDULES


def rows(program: Program) -> list[list[str]]:
    """Returns the instructions of the ranks as they stand in the file."""
    found: list[list[str]] = json.loads(program_to_json(program))["ranks"]
    return found


@given(
    name=st.sampled_from(sorted(SCHEDULES)),
    num_ranks=st.integers(1, 6),
    num_microbatches=st.integers(1, 12),
    reduce_gradients=st.booleans(),
)
@settings(max_examples=50)
def test_the_program_of_every_registered_schedule_is_read_back_as_written(
    name: str, num_ranks: int, num_microbatches: int, reduce_gradients: bool
) -> None:
    program = lower(schedule_or_reject(name, num_ranks, num_microbatches), reduce_gradients=reduce_gradients)
    again = program_from_json(program_to_json(program))
    assert again == program
    assert again.digest == program.digest


@given(
    schedule=st.one_of(valid_schedules(), any_schedules(), paired_schedules(), asynchronous()),
    reduce_gradients=st.booleans(),
)
@settings(max_examples=50)
def test_any_program_is_read_back_as_written(schedule: Schedule, reduce_gradients: bool) -> None:
    """Several chunks a rank, two replicas, pairs, S ops and reductions; orders that run and orders that do not."""
    program = lower(schedule, reduce_gradients=reduce_gradients)
    assert program_from_json(program_to_json(program)) == program
    assert program_from_json(program_to_json(program).encode()) == program


@pytest.mark.parametrize(
    "schedule",
    [
        interleaved_1f1b(2, 4, num_chunks=3),
        chimera(4, 8),
        dualpipe(4, 8),
        bpipe(5, 8),
        pipedream(3, 4, replicas=(2, 1)),
    ],
    ids=lambda schedule: schedule.name,
)
def test_chunks_replicas_pairs_offloads_and_optimizer_steps_survive(schedule: Schedule) -> None:
    program = lower(schedule, reduce_gradients=schedule.placement.num_replicas == 1)
    again = program_from_json(program_to_json(program))
    assert again == program
    assert verify(again) == verify(program)


def test_the_order_of_instructions_is_kept_and_not_made_anew() -> None:
    program = lower(gpipe(2, 2))
    first, *others = program.ranks
    swapped = replace(program, ranks=((first[1], first[0], *first[2:]), *others))
    assert swapped != program
    assert program_from_json(program_to_json(swapped)) == swapped


def test_an_instruction_says_stage_kind_microbatch_replica_and_the_other_rank() -> None:
    assert rows(lower(gpipe(2, 1), reduce_gradients=True)) == [
        ["0RECV_B0<1", "0F0", "0SEND_F0>1", "0B0", "0REDUCE_GRAD"],
        ["1RECV_F0<0", "1F0", "1B0", "1SEND_B0>0", "1REDUCE_GRAD"],
    ]
    assert rows(lower(chimera(2, 2)))[0] == [
        "1RECV_F1@1<1", "0RECV_B0<1", "0F0", "0SEND_F0>1", "1F1@1", "1B1@1", "1SEND_B1@1>1", "1REDUCE_GRAD@1", "0B0",
        "0REDUCE_GRAD",
    ]  # fmt: skip
    assert rows(lower(pipedream(3, 2, replicas=(2, 1))))[1] == [
        "0RECV_B1@1<2", "0F1@1", "0SEND_F1@1>2", "0B1@1", "0REDUCE_GRAD1@1", "0S1@1",
    ]  # fmt: skip


def test_kinds_that_no_schedule_has_yet_survive() -> None:
    program = lower(gpipe(2, 1))
    kinds = (OpKind.UNSHARD, OpKind.RESHARD, OpKind.RECOMPUTE)
    more = tuple(Op(kind, 0, microbatch) for kind in kinds for microbatch in (-1, 0))
    longer = replace(program, ranks=(program.ranks[0] + more, program.ranks[1]))
    assert program_from_json(program_to_json(longer)) == longer


def test_the_file_in_the_docstring_is_the_program_of_its_schedule() -> None:
    lines = (programs.__doc__ or "").splitlines()
    shown = json.loads("".join(line for line in lines if line.startswith("    ")))
    assert shown == json.loads(program_to_json(lower(gpipe(2, 1))))


@pytest.mark.parametrize(
    "channel", [Channel(1, 2, OpKind.F), Channel(1, 0, OpKind.F), Channel(0, 1, OpKind.B)], ids=str
)
def test_a_message_that_does_not_leave_its_own_rank_is_not_written(channel: Channel) -> None:
    program = lower(gpipe(3, 1))
    foreign = Transfer(OpKind.SEND_F, 0, 0, 0, channel)
    broken = replace(program, ranks=((foreign,), *program.ranks[1:]))
    with pytest.raises(NotationError, match=rf"rank 0: 0SEND_F0 on channel {channel} cannot be written"):
        program_to_json(broken)


def test_a_file_holds_a_program_or_a_schedule_in_any_form(tmp_path: Path) -> None:
    program = lower(one_f_one_b(2, 3))
    path = tmp_path / "file"
    path.write_text("\n " + program_to_json(program))
    assert load_schedule_or_program(path) == load_schedule_or_program(str(path)) == program
    for text in (schedule_to_json(program.schedule), draw_grid(program.schedule)):
        path.write_text(text)
        assert load_schedule_or_program(path) == program.schedule
    table = tmp_path / "file.csv"
    table.write_text(schedule_to_csv(program.schedule))
    assert load_schedule_or_program(table) == replace(program.schedule, name="file")


WHOLE = json.loads(program_to_json(lower(gpipe(2, 1), reduce_gradients=True)))


def changed(**fields: Any) -> str:
    return json.dumps(WHOLE | fields)


def with_instruction(text: str) -> str:
    return changed(ranks=[[], [text]])


def with_schedule(**fields: Any) -> str:
    return changed(schedule=WHOLE["schedule"] | fields)


WRONG: dict[str, tuple[str | bytes, str]] = {
    "nothing": ("", "not a program file: Input data was truncated"),
    "half a file": (json.dumps(WHOLE)[:60], "truncated"),
    "another format": (changed(format="x"), 'the file says format "x"; a program says "penstock.program"'),
    "a newer version": (changed(version=2), "the file has version 2; this penstock reads version 1; write it again"),
    "an unknown field": (changed(colour="red"), "Object contains unknown field `colour`"),
    "no instructions": (json.dumps({key: WHOLE[key] for key in WHOLE if key != "ranks"}), "required field `ranks`"),
    "instructions in no list": (changed(ranks=["0F0"]), "Expected `array`, got `str` - at `$.ranks["),
    "a number for an instruction": (changed(ranks=[[0], []]), "Expected `str`, got `int` - at `$.ranks["),
    "a rank too few": (changed(ranks=[[]]), "for 1 ranks, but its schedule gpipe has 2; give one row a rank"),
    "a rank too many": (changed(ranks=[[], [], []]), "instructions for 3 ranks, but its schedule gpipe has 2"),
    "a schedule that is none": (changed(schedule=[]), "schedule of the program: not a schedule file: Expected"),
    "a schedule of a newer version": (with_schedule(version=2), "schedule of the program: the file has version 2"),
    "a schedule with a wrong field": (with_schedule(placement=[[0, "1"]]), "got `str` - at `$.placement["),
    "not an instruction": (with_instruction("F0"), 'rank 1: "F0" is not an instruction; write stage, kind, microbatch'),
    "an unknown kind": (with_instruction("0SENDF0>1"), '"0SENDF0>1" is of an unknown kind. Did you mean "SEND_F"?'),
    "an op without microbatch": (with_instruction("1F"), 'rank 1: "1F" is not an op; write stage, kind, microbatch'),
    "an op with another rank": (with_instruction("1F0>0"), '"1F0>0" names rank 0, but is no message; leave it out'),
    "a reduction with another rank": (with_instruction("1REDUCE_GRAD<0"), "names rank 0, but is no message"),
    "a send without its target": (with_instruction("1SEND_B0"), 'rank 1: "1SEND_B0" does not end in > and the rank at'),
    "a send from another rank": (with_instruction("1SEND_B0<0"), 'rank 1: "1SEND_B0<0" does not end in >'),
    "a receive to another rank": (with_instruction("1RECV_F0>0"), 'rank 1: "1RECV_F0>0" does not end in <'),
    "a message of no microbatch": (with_instruction("1RECV_F<0"), 'rank 1: "1RECV_F<0" names no microbatch; write'),
    "a message from a rank outside": (with_instruction("1RECV_F0<2"), 'rank 1: "1RECV_F0<2" names rank 2 of 2'),
    "a stage outside": (with_instruction("2RECV_F0<0"), 'rank 1: "2RECV_F0<0" names stage 2 of 2'),
    "an op's stage outside": (with_instruction("2F0"), 'rank 1: "2F0" names stage 2 of 2'),
    "a replica outside": (with_instruction("1RECV_F0@1<0"), 'rank 1: "1RECV_F0@1<0" names replica 1 of 1'),
    "a number beyond all": (with_instruction("1F" + "9" * 5000), "is not an instruction"),
    "not UTF-8": (b'{"format": "\xff"}', "can't decode byte 0xff"),
    "a nest without end": ('{"format": "penstock.program", "version": 1, "x": ' + "[" * 100_000, "not a program file"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_file_is_refused_with_its_place(case: str) -> None:
    content, said = WRONG[case]
    with pytest.raises(NotationError) as refused:
        program_from_json(content)
    assert said in str(refused.value)


def test_a_wrong_file_is_refused_with_its_name(tmp_path: Path) -> None:
    path = tmp_path / "program.json"
    for content, said in (
        (with_instruction("1X0"), 'rank 1: "1X0" is of an unknown kind'),
        ("{", "not a schedule file"),
    ):
        path.write_text(content)
        with pytest.raises(NotationError) as refused:
            load_schedule_or_program(path)
        assert str(refused.value).startswith(f"{path}: ")
        assert said in str(refused.value)
    with pytest.raises(NotationError, match=r"cannot read .*none.json: No such file or directory"):
        load_schedule_or_program(tmp_path / "none.json")


@pytest.mark.parametrize("length", range(0, len(program_to_json(lower(gpipe(2, 1)))), 11))
def test_a_file_cut_anywhere_is_refused(length: int) -> None:
    with pytest.raises(NotationError, match="not a program file"):
        program_from_json(program_to_json(lower(gpipe(2, 1)))[:length])


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        ("0SEND_F1>1", "channel 0→1 F, message 1: rank 0 sends nothing more, but rank 1 position 1 receives 1RECV_F1"),
        ("1RECV_F0<0", "channel 0→1 F, message 0: rank 0 position 2 sends 0SEND_F0, but rank 1 position 0 receives"),
        ("1B1", "1B1"),
    ],
)
def test_an_instruction_lost_from_a_file_is_found_by_verify(lost: str, said: str) -> None:
    content = json.loads(program_to_json(lower(gpipe(2, 2))))
    content["ranks"][int(lost[0])].remove(lost)
    with pytest.raises(VerificationError, match=said):
        verify(program_from_json(json.dumps(content)))
