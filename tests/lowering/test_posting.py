"""Where receives are posted."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock import OpKind, Program, StageCosts, lower, parse_grid, simulate
from penstock.ir import SENDS
from penstock.schedules import SCHEDULES, named_schedule, one_f_one_b


def test_a_receive_is_posted_before_the_op_that_takes_the_message_before_it() -> None:
    first = lower(one_f_one_b(2, 4)).ranks[1]
    at = {str(entry): position for position, entry in enumerate(first)}
    for microbatch in range(1, 4):
        assert at[f"1RECV_F{microbatch}"] < at[f"1F{microbatch - 1}"]


def most_ahead(program: Program) -> int:
    """Returns the most messages that one channel has posted beyond the one its rank works on."""
    most = 0
    for row in program.ranks:
        taken = {OpKind.RECV_F: OpKind.F, OpKind.RECV_B: OpKind.B}
        for kind, taker in taken.items():
            posted = done = 0
            for entry in row:
                posted += entry.kind == kind
                done += entry.kind == taker
                if entry.kind == kind:
                    most = max(most, posted - done)
    return most


@given(name=st.sampled_from(sorted(SCHEDULES)), num_ranks=st.integers(2, 5), num_microbatches=st.integers(1, 12))
def test_no_channel_is_posted_more_than_one_message_ahead(name: str, num_ranks: int, num_microbatches: int) -> None:
    program = lower(named_schedule(name, num_ranks=num_ranks, num_microbatches=num_microbatches))
    assert most_ahead(program) <= 2


@pytest.mark.parametrize("num_ranks", [2, 3, 4])
def test_in_one_f_one_b_every_receive_is_posted_before_its_message_leaves(num_ranks: int) -> None:
    timeline = simulate(one_f_one_b(num_ranks, 8), StageCosts(forward=2, backward=3))
    ends = {(span.rank, span.op): span.end for span in timeline.spans}
    assert timeline.transmissions
    for channel, op, start, _ in timeline.transmissions:
        made_by = op._replace(stage=channel.source)
        assert start == ends[channel.source, made_by]


def test_a_receive_comes_earlier_only_where_its_sender_would_block() -> None:
    """Rank 0 sends twice before it takes; rank 1 stands in its own send, so its receive is posted there."""
    program = lower(
        parse_grid("""
        facing p=2 m=4 weights=flush placement=0,1/1,0
        rank 0: 0F0 0F2 1F1@1 1B1@1 1F3@1 1B3@1 0B0 0B2
        rank 1: 0F1@1 0F3@1 1F0 1B0 1F2 1B2 0B1@1 0B3@1
    """)
    )
    for row, opposite in zip(program.ranks, ("1F1@1", "1F0"), strict=True):
        text = [str(entry) for entry in row]
        sends = [position for position, entry in enumerate(row) if entry.kind in SENDS]
        receives = [position for position, entry in enumerate(row) if entry.kind is OpKind.RECV_F]
        assert receives[0] < sends[1], "the second send would wait for the peer, who waits as well"
        assert receives[-1] < text.index(opposite)
