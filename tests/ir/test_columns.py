"""Schedules as columns, and the codes by which their rows are compared."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.random_schedules import valid_schedules

from penstock import Op, OpKind, Placement, Schedule
from penstock.errors import ScheduleError
from penstock.ir.columns import ABSENT, Ints, codes, columns_of, first_of, last_of, numbered, rows_of, sorted_by

NUMBERS = st.integers(-5, 5) | st.integers(-(10**6), 10**6)
ROWS = st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS), max_size=30)


def code_of(rows: list[tuple[int, int, int]]) -> Ints:
    return codes(*np.array(rows, np.int64).reshape(-1, 3).T)


@given(schedule=valid_schedules())
def test_columns_hold_every_op_with_its_place(schedule: Schedule) -> None:
    columns = schedule.columns
    numbers = zip(*(column.tolist() for column in columns[:4]), strict=True)
    assert [Op(OpKind(kind), *rest) for kind, *rest in numbers] == [op for _, _, op in schedule.ops()]
    places = [columns.place(at) for at in range(len(columns.kind))]
    assert places == [(rank, position) for rank, position, _ in schedule.ops()]


@given(rows=ROWS)
def test_codes_are_equal_and_ordered_as_the_rows_are(rows: list[tuple[int, int, int]]) -> None:
    code = code_of(rows).tolist()
    for one, its in zip(rows, code, strict=True):
        for other, theirs in zip(rows, code, strict=True):
            assert (one < other, one == other) == (its < theirs, its == theirs)


@given(rows=ROWS, data=st.data())
def test_the_first_and_the_last_of_a_code_are_found(rows: list[tuple[int, int, int]], data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(rows)))
    code, found, wanted = code_of(rows), rows[:cut], rows[cut:]
    first, last = (look(code[:cut], code[cut:]).tolist() for look in (first_of, last_of))
    assert first == [found.index(row) if row in found else ABSENT for row in wanted]
    assert last == [cut - 1 - found[::-1].index(row) if row in found else ABSENT for row in wanted]


@given(numbers=st.lists(st.integers(0, 4) | st.integers(0, 10**6), max_size=30))
def test_equal_codes_are_numbered_and_sorted_as_they_stand(numbers: list[int]) -> None:
    code = np.array(numbers, np.int64)
    assert numbered(code).tolist() == [numbers[:at].count(number) for at, number in enumerate(numbers)]
    assert sorted_by(code).tolist() == sorted(range(len(numbers)), key=numbers.__getitem__)


def test_rows_are_named_tuples_of_their_columns() -> None:
    (op,) = rows_of(Op, [OpKind.F], [1], [2], [0])
    assert (op, str(op)) == (Op(OpKind.F, 1, 2), "1F2")


def test_a_number_beyond_64_bits_is_refused_in_words() -> None:
    huge = Schedule("huge", Placement.looped(1), 1, ((Op(OpKind.F, 0, 10**30),),))
    with pytest.raises(ScheduleError, match="beyond 64 bits; count from 0"):
        columns_of(huge.ranks)
