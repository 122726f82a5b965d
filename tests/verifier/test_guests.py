"""The rank that keeps another's activations takes in and sends back exactly these, and nobody waits in a circle."""

from dataclasses import replace

import pytest

from penstock import Program, bpipe, lower, program_from_json, program_to_json, verify
from penstock.errors import VerificationError
from penstock.ir import Op, OpKind
from penstock.ir.program import Instruction

HOST2, RETURN2 = Op(OpKind.HOST, 0, 2), Op(OpKind.RETURN, 0, 2)


def changed(rank: int, row: list[Instruction]) -> Program:
    program = lower(bpipe(4, 6))
    return replace(program, ranks=tuple(tuple(row) if at == rank else old for at, old in enumerate(program.ranks)))


def keeper() -> list[Instruction]:
    return list(lower(bpipe(4, 6)).ranks[3])


def moved(entry: Op, to: int) -> list[Instruction]:
    row = keeper()
    row.remove(entry)
    row.insert(to, entry)
    return row


def refusal(program: Program) -> str:
    with pytest.raises(VerificationError) as refused:
        verify(program)
    return str(refused.value)


def test_the_keeper_takes_part_where_its_guest_is_at_that_time() -> None:
    """Rank 0's F2 ends in slot 3, in which rank 3 starts; B1 ends in slot 11, in which rank 3 is at F4's place."""
    row = [str(entry) for entry in keeper() if entry.kind in (OpKind.F, OpKind.B, OpKind.HOST, OpKind.RETURN)]
    expected = "0HOST2 3F0 3B0 3F1 3B1 3F2 3B2 3F3 0HOST4 3B3 0RETURN2 3F4 3B4 3F5 3B5 0RETURN4"
    assert " ".join(row) == expected


def test_a_program_with_guests_survives_its_file() -> None:
    program = lower(bpipe(4, 6))
    assert program_from_json(program_to_json(program)) == program


def test_every_size_is_proven() -> None:
    for num_ranks in range(1, 9):
        for num_microbatches in range(1, 18):
            verify(bpipe(num_ranks, num_microbatches))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ([entry for entry in keeper() if entry != HOST2], "0RETURN2 comes before the activations have been taken in"),
        (
            [entry for entry in keeper() if entry != RETURN2],
            "number 0 of RELOAD is 0RELOAD2, of RETURN on rank 3 0RETURN4",
        ),
        ([HOST2, *keeper()], "number 1 of OFFLOAD is 0OFFLOAD4, of HOST on rank 3 0HOST2"),
        (moved(RETURN2, len(keeper()) - 1), "number 0 of RELOAD is 0RELOAD2, of RETURN on rank 3 0RETURN4"),
        ([*keeper(), Op(OpKind.HOST, 3, 2)], "rank 3: 3HOST2 is of no other rank's stage"),
        ([*keeper(), Op(OpKind.HOST, 1, 2)], "between rank 1 and its keeper 3: number 0 of HOST is 1HOST2, of OFFLOAD"),
        ([*keeper(), Op(OpKind.HOST, 9, 2)], "rank 3: 9HOST2 is of no other rank's stage"),
    ],
)
def test_a_keeper_that_does_something_else_is_refused(row: list[Instruction], said: str) -> None:
    assert said in refusal(changed(3, row))


def test_a_keeper_that_is_no_partner_is_refused_at_its_own_rank() -> None:
    program = lower(bpipe(4, 6))
    rows = [list(row) for row in program.ranks]
    rows[3].remove(HOST2)
    rows[3].remove(RETURN2)
    rows[2] = [HOST2, *rows[2], RETURN2]
    assert "0 and its keeper" in refusal(replace(program, ranks=tuple(map(tuple, rows))))


def test_a_receive_that_is_posted_too_late_is_a_cycle() -> None:
    """Rank 0 stands at OFFLOAD2 until HOST2 is posted, which waits for a forward that rank 0 has not sent."""
    at = keeper().index(Op(OpKind.F, 3, 3))
    text = refusal(changed(3, moved(HOST2, at)))
    assert "deadlocks" in text
    assert "0OFFLOAD2 waits for 0HOST2" in text


def test_a_guest_sent_back_too_early_is_a_cycle() -> None:
    """Rank 3 stands at RETURN2 until rank 0 posts RELOAD2, behind B1, which needs rank 3's B1."""
    text = refusal(changed(3, moved(RETURN2, 5)))
    assert "deadlocks" in text
    assert "0RETURN2 waits for 0RELOAD2" in text


def test_a_guest_may_be_sent_back_late() -> None:
    """Rank 0 waits for it with B2; the keeper needs nothing of that."""
    row = keeper()
    for later in (row.index(Op(OpKind.F, 3, 4)) + 1, len(row) - 2):
        verify(changed(3, moved(RETURN2, later)))
