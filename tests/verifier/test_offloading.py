"""What is offloaded is reloaded before it is needed, and counted where it is kept."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.random_schedules import runs_to_its_end, with_ranks

from penstock import Schedule, bpipe, one_f_one_b, parse_grid, verify
from penstock.errors import VerificationError
from penstock.ir import Op, OpKind
from penstock.verifier.peaks import peak_activations, peak_guests

OFFLOADS = """
    away p=2 m=3 weights=flush placement=0,1 keepers=1,0
    rank 0: F0 F1,OFFLOAD1 F2 B0,RELOAD1 B1 B2
    rank 1: F0 B0 F1 B1 F2 B2
"""


def refusal(schedule: Schedule) -> str:
    with pytest.raises(VerificationError) as refused:
        verify(schedule)
    return str(refused.value)


def test_an_activation_that_is_reloaded_before_its_backward_is_accepted() -> None:
    proof = verify(parse_grid(OFFLOADS))
    assert proof.peak_guests == (0, 1)
    assert proof.peak_activations == (2, 2), "rank 1 holds one of its own and one of rank 0's"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (",RELOAD1", "", "rank 0 position 5: 0B1 needs what is not there; it was offloaded at position 2 and not"),
        (",RELOAD1 B1", " B1,RELOAD1", "rank 0 position 5: 0B1 needs what is not there; it was offloaded at"),
        (",OFFLOAD1", "", "rank 0 position 4: 0RELOAD1 reloads what has not been offloaded"),
        (",OFFLOAD1", ",OFFLOAD2", "rank 0 position 2: 0OFFLOAD2 offloads what is not there"),
        ("RELOAD1 B1", "RELOAD1 B1,OFFLOAD0", "rank 0 position 7: 0OFFLOAD0 offloads what is not there"),
        (" keepers=1,0", "", "rank 0 position 2: 0OFFLOAD1 has nowhere to put the activations; name in keepers"),
    ],
)
def test_what_is_offloaded_wrongly_is_refused_with_its_place(old: str, new: str, said: str) -> None:
    assert refusal(parse_grid(OFFLOADS.replace(old, new))).startswith(said)


def test_a_rank_that_keeps_its_own_activations_keeps_them_in_its_hosts_memory() -> None:
    proof = verify(parse_grid(OFFLOADS.replace("keepers=1,0", "keepers=0,1")))
    assert proof.peak_guests == (0, 0)
    assert proof.peak_activations == (2, 1)


def test_an_activation_is_offloaded_once() -> None:
    twice = OFFLOADS.replace("B0,RELOAD1", "B0,RELOAD1,OFFLOAD1")
    assert "0OFFLOAD1 is doubled; it already ran on rank 0 position 2" in refusal(parse_grid(twice))


def test_an_op_of_a_stage_elsewhere_is_misplaced() -> None:
    moved = parse_grid(OFFLOADS)
    rows = [list(row) for row in moved.ranks]
    rows[1].append(Op(OpKind.OFFLOAD, 0, 0))
    assert "rank 1 position 6: 0OFFLOAD0 belongs on rank 0" in refusal(replace(moved, ranks=tuple(map(tuple, rows))))


def dropped(rows: list[list[Op]], rank: int, at: int) -> None:
    del rows[rank][at]


def doubled(rows: list[list[Op]], rank: int, at: int) -> None:
    rows[rank].insert(at, rows[rank][at])


@pytest.mark.parametrize("mutate", [dropped, doubled])
@given(data=st.data())
@settings(max_examples=50)
def test_an_op_of_bpipe_dropped_or_doubled_is_refused(
    mutate: Callable[[list[list[Op]], int, int], None], data: st.DataObject
) -> None:
    schedule = bpipe(data.draw(st.integers(4, 7)), data.draw(st.integers(6, 10)))
    rows = [list(row) for row in schedule.ranks]
    moves = [(rank, at) for rank, at, op in schedule.ops() if op.kind in (OpKind.OFFLOAD, OpKind.RELOAD)]
    mutate(rows, *data.draw(st.sampled_from(moves)))
    refusal(with_ranks(schedule, rows))


@given(data=st.data())
@settings(max_examples=50)
def test_two_swapped_ops_of_bpipe_are_refused_exactly_if_a_dependency_lies_between(data: st.DataObject) -> None:
    schedule = bpipe(4, data.draw(st.integers(5, 8)))
    rows = [list(row) for row in schedule.ranks]
    first = data.draw(st.integers(0, len(rows[0]) - 2))
    second = data.draw(st.integers(first + 1, len(rows[0]) - 1))
    rows[0][first], rows[0][second] = rows[0][second], rows[0][first]
    swapped = with_ranks(schedule, rows)
    if runs_to_its_end(swapped):
        verify(swapped)
    else:
        refusal(swapped)


def test_guests_of_several_ranks_add_up() -> None:
    row = parse_grid(OFFLOADS).ranks[0]
    schedule = replace(one_f_one_b(3, 3), ranks=(row, row, ()), keepers=(2, 2, 0))
    assert peak_guests(schedule) == (0, 0, 2)
    assert peak_guests(one_f_one_b(3, 3)) == (0, 0, 0)


def test_what_is_away_is_not_held() -> None:
    row = parse_grid(OFFLOADS).ranks[0]
    assert peak_activations(row) == 2
    assert peak_activations([op for op in row if op.kind in (OpKind.F, OpKind.B)]) == 3
