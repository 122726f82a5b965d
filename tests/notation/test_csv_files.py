"""CSV as torch.distributed.pipelining writes and reads it."""

import pytest

import penstock as ps
from penstock.errors import NotationError
from penstock.ir import Op, OpKind, Placement, Schedule
from penstock.notation.csv_files import schedule_from_csv, schedule_to_csv


@pytest.mark.parametrize("schedule", [ps.naive(3, 2), ps.gpipe(2, 3), ps.one_f_one_b(4, 6)], ids=lambda s: s.name)
def test_csv_round_trips(schedule: Schedule) -> None:
    assert schedule_from_csv(schedule_to_csv(schedule), name=schedule.name) == schedule


def test_the_text_is_one_row_a_rank() -> None:
    assert schedule_to_csv(ps.one_f_one_b(2, 2)) == "0F0,0F1,0B0,0B1\n1F0,1B0,1F1,1B1\n"


def test_a_split_backward_on_two_chunks_round_trips() -> None:
    f, i, w = OpKind.F, OpKind.I, OpKind.W
    ops = tuple(Op(kind, stage, 0) for kind, stage in [(f, 0), (f, 1), (i, 1), (i, 0), (w, 1), (w, 0)])
    schedule = Schedule("split", Placement(((0, 0),)), 1, (ops,))
    assert schedule_from_csv(schedule_to_csv(schedule), name="split") == schedule


def test_an_overlapped_pair_is_one_cell() -> None:
    schedule = Schedule(
        "pairs",
        Placement(((0,),)),
        2,
        ((Op(OpKind.F, 0, 0), Op(OpKind.F, 0, 1), Op(OpKind.B, 0, 0), Op(OpKind.B, 0, 1)),),
        overlapped=((1,),),
    )
    assert schedule_to_csv(schedule) == "0F0,(0F1;0B0)OVERLAP_F_B,0B1\n"
    assert schedule_from_csv(schedule_to_csv(schedule), name="pairs") == schedule


def test_idle_slots_and_communication_are_passed_over() -> None:
    text = "0UNSHARD,0F0,0SEND_F0,,0RECV_B0,0B0,0REDUCE_GRAD\n,1RECV_F0,1F0,1B0,1SEND_B0\n"
    assert schedule_from_csv(text) == Schedule("csv", ps.Placement.looped(2), 1, ps.gpipe(2, 1).ranks)


def test_torch_reads_what_is_written() -> None:
    actions = pytest.importorskip("torch.distributed.pipelining.schedules")._Action
    for row, ops in zip(schedule_to_csv(ps.one_f_one_b(3, 4)).splitlines(), ps.one_f_one_b(3, 4).ranks, strict=True):
        assert [str(actions.from_str(cell)) for cell in row.split(",")] == list(map(str, ops))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0F0,0X0\n", 'row 1, cell 2: "0X0" is no action; write stage, kind, microbatch, e.g. 0F3 or 1B0'),
        ("0F0\n0F1\n", "stage 0 has forwards on ranks 0 and 1"),
        ("0F\n", 'row 1, cell 1: "0F" names no microbatch; write e.g. 0F0'),
        ("1F0\n", "no rank runs a forward of stage 0"),
        ("", "no rank runs a forward of stage 0"),
        ("(0F0;0F1)OVERLAP_F_B\n", "no pair at position 0"),
    ],
)
def test_what_is_no_schedule_is_refused_with_its_place(text: str, said: str) -> None:
    with pytest.raises(NotationError, match=said.replace("(", r"\(").replace("?", r"\?")):
        schedule_from_csv(text)


def test_what_the_form_cannot_say_is_refused() -> None:
    two_directions = Schedule(
        "both", Placement.replicas((0, 1), (1, 0)), 1, ((Op(OpKind.F, 1, 0, 1),), (Op(OpKind.F, 0, 0, 1),))
    )
    with pytest.raises(NotationError, match=r"both cannot be written as CSV: its op 1F0@1 has no form there; use JSON"):
        schedule_to_csv(two_directions)
