"""Reductions for the optimizer steps inside a program."""

from penstock import lower, parse_grid, pipedream, verify
from penstock.ir import Program


def texts(program: Program) -> list[str]:
    return [" ".join(map(str, row)) for row in program.ranks]


def test_what_a_step_of_a_replicated_stage_applies_is_reduced_before_it() -> None:
    """And of the stage that one rank holds only where data-parallel replicas ask for it."""
    schedule = pipedream(3, 2, replicas=(2, 1))
    assert texts(lower(schedule)) == [
        "0RECV_B0 0F0 0SEND_F0 0B0 0REDUCE_GRAD0 0S0",
        "0RECV_B1@1 0F1@1 0SEND_F1@1 0B1@1 0REDUCE_GRAD1@1 0S1@1",
        "1RECV_F0 1RECV_F1@1 1F0 1B0 1SEND_B0 1S0 1F1@1 1B1@1 1SEND_B1@1 1S1@1",
    ]
    assert texts(lower(schedule, reduce_gradients=True))[2] == (
        "1RECV_F0 1RECV_F1@1 1F0 1B0 1SEND_B0 1REDUCE_GRAD0 1S0 1F1@1 1B1@1 1SEND_B1@1 1REDUCE_GRAD1@1 1S1@1"
    )


def test_the_reduction_for_a_step_follows_the_last_gradient_it_applies() -> None:
    schedule = parse_grid("""
        late p=1 m=4 weights=latest placement=0
        rank 0: F0 F1 F2 B0 B1 F3 S1 B2 B3 S3
    """)
    program = lower(schedule, reduce_gradients=True)
    assert texts(program) == ["0F0 0F1 0F2 0B0 0B1 0REDUCE_GRAD1 0F3 0S1 0B2 0B3 0REDUCE_GRAD3 0S3"]
    verify(program)


def test_a_receive_is_posted_before_a_step_that_waits_for_a_rank_that_is_still_sending() -> None:
    """Rank 0 stands at 0S0 until rank 1 has reduced, and rank 1 in its third send until rank 0 has posted for it."""
    schedule = parse_grid("""
        early p=2 m=6 weights=latest placement=0,0/1,0
        rank 0: 0F0 1F0 1B0 1S0 0B0 1F1@1 1B1@1 1S1@1 0S0 0F2 1F2 1B2 1S2 0B2 1F3@1 1B3@1 1S3@1 0S2 0F4 1F4 1B4 1S4 \
                0B4 1F5@1 1B5@1 1S5@1 0S4
        rank 1: F1@1 F3@1 F5@1 B1@1 S1@1 B3@1 S3@1 B5@1 S5@1
    """)
    row = texts(verify(schedule).program)[0].split()
    assert row.index("1RECV_F5@1") < row.index("0S0") < row.index("1F3@1")
