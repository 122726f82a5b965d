"""Programs as values: their channels, and the digest by which ranks compare them."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from tests.random_schedules import valid_schedules

from penstock import Program, Schedule, gpipe, lower, one_f_one_b
from penstock.ir import WeightRule


def test_channels_are_listed_once_in_order() -> None:
    assert [str(channel) for channel in lower(gpipe(3, 4)).channels] == ["0→1 F", "1→0 B", "1→2 F", "2→1 B"]


def test_instructions_come_rank_by_rank() -> None:
    program = lower(gpipe(2, 1))
    assert [entry for rank, _, entry in program.instructions() if rank == 1] == list(program.ranks[1])


def test_a_program_prints_one_line_a_rank() -> None:
    lines = str(lower(gpipe(2, 1))).splitlines()
    assert lines[0] == "program of gpipe: 2 ranks"
    assert lines[2] == "rank 1: 1RECV_F0 1F0 1B0 1SEND_B0"


@given(schedule=valid_schedules(), data=st.data())
def test_any_other_order_has_another_digest(schedule: Schedule, data: st.DataObject) -> None:
    program = lower(schedule)
    rank = data.draw(st.sampled_from([rank for rank, row in enumerate(program.ranks) if len(row) > 1]))
    row = list(program.ranks[rank])
    at = data.draw(st.integers(0, len(row) - 2))
    row[at], row[at + 1] = row[at + 1], row[at]
    rows = (*program.ranks[:rank], tuple(row), *program.ranks[rank + 1 :])
    assert Program(schedule, rows).digest != program.digest


def test_reductions_sizes_and_the_weight_rule_change_the_digest() -> None:
    schedule = one_f_one_b(2, 4)
    latest = Schedule(schedule.name, schedule.placement, 4, schedule.ranks, WeightRule.LATEST)
    programs = [
        lower(schedule),
        lower(schedule, reduce_gradients=True),
        lower(one_f_one_b(2, 5)),
        lower(gpipe(2, 4)),
        lower(latest),
    ]
    assert len({program.digest for program in programs}) == len(programs)


def test_pairs_and_keepers_change_the_digest() -> None:
    schedule = one_f_one_b(2, 4)
    paired = replace(schedule, overlapped=((1,), ()))
    kept = replace(schedule, keepers=(1, 0))
    programs = [Program(each, lower(schedule).ranks) for each in (schedule, paired, kept)]
    assert len({program.digest for program in programs}) == 3


def test_pairs_are_found_where_their_ops_stand_in_the_program() -> None:
    program = lower(replace(one_f_one_b(2, 3), overlapped=((1, 3), ())))
    assert [[str(program.ranks[0][at]) for at in sorted(pairs)] for pairs in program.pairs[:1]] == [["0F1", "0F2"]]
    assert lower(one_f_one_b(2, 3)).pairs == (frozenset(), frozenset())


def test_the_name_alone_does_not_change_the_digest() -> None:
    schedule = one_f_one_b(2, 4)
    renamed = Schedule("mine", schedule.placement, 4, schedule.ranks)
    assert lower(renamed).digest == lower(schedule).digest
