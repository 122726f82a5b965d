"""Where receives are posted."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.strategies import schedule_or_reject

from penstock import OpKind, Program, StageCosts, lower, parse_grid, simulate, verify
from penstock.ir import BACKWARD, RECEIVES, SENDS, Channel
from penstock.schedules import SCHEDULES, breadth_first, one_f_one_b


def test_a_receive_is_posted_before_the_op_that_takes_the_message_before_it() -> None:
    first = lower(one_f_one_b(2, 4)).ranks[1]
    at = {str(entry): position for position, entry in enumerate(first)}
    for microbatch in range(1, 4):
        assert at[f"1RECV_F{microbatch}"] < at[f"1F{microbatch - 1}"]


def most_ahead(program: Program) -> int:
    """Returns the most messages that a channel has posted and not yet taken; one of them is worked on."""
    most = 0
    for row in program.ranks:
        waiting: Counter[Channel] = Counter()
        brought: dict[tuple[bool, int, int, int], Channel] = {}
        for entry in row:
            key = (entry.kind in (OpKind.RECV_F, OpKind.F), *entry[1:4])
            if entry.kind in RECEIVES:
                brought[key] = entry.channel
                waiting[entry.channel] += 1
                most = max(most, waiting[entry.channel])
            elif entry.kind in (OpKind.F, *BACKWARD) and key in brought:
                waiting[brought[key]] -= 1
    return most


ONE_CHUNK = sorted(name for name, family in SCHEDULES.items() if family.num_chunks == 1)
"""On a loop a rank takes the messages of other chunks in between, so that some are posted far ahead."""


@given(name=st.sampled_from(ONE_CHUNK), num_ranks=st.integers(2, 5), num_microbatches=st.integers(1, 12))
def test_no_channel_is_posted_more_than_one_message_ahead(name: str, num_ranks: int, num_microbatches: int) -> None:
    assert most_ahead(lower(schedule_or_reject(name, num_ranks, num_microbatches))) <= 2


def test_breadth_first_has_as_many_messages_under_way_as_its_first_rank_is_behind() -> None:
    """Rank 1 is done with chunk 0 of all but p microbatches when rank 0 takes the first of them into its chunk 1."""
    for num_microbatches in range(4, 9):
        assert most_ahead(lower(breadth_first(2, num_microbatches))) == num_microbatches - 2


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


def test_a_receive_that_a_sender_waits_for_is_posted_before_a_pair_and_never_within() -> None:
    """Rank 1 stands in its send of F3 until rank 0 receives it; rank 0 waits for rank 1's B0, at the pair's start."""
    schedule = parse_grid("""
        facing p=2 m=4 weights=flush placement=0,1/1,0
        rank 0: F0 F1+B0 F2@1 B2@1 F3@1 B3@1 B1
        rank 1: F2@1 F3@1 F0 B0 F1 B1 B2@1 B3@1
    """)
    row = [str(entry) for entry in verify(schedule).program.ranks[0]]
    pair = row.index("0F1")
    assert row[pair - 1 : pair + 2] == ["1RECV_F3@1", "0F1", "0B0"]
