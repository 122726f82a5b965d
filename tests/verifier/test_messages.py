"""Sends and receives: mutated programs are refused, and the message says what has no partner."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.random_schedules import valid_schedules

from penstock import OpKind, Program, lower, parse_grid, verify
from penstock.errors import VerificationError
from penstock.ir import COMPUTE, RECEIVES, SENDS, Channel, Instruction, Transfer
from penstock.schedules import one_f_one_b
from penstock.verifier.messages import check_messages

Rows = list[list[Instruction]]


def programs() -> st.SearchStrategy[Program]:
    """Lowered schedules that have messages."""
    return valid_schedules(max_microbatches=4).map(lower).filter(lambda program: bool(program.channels))


def pick(data: st.DataObject, program: Program, kinds: frozenset[OpKind]) -> tuple[int, int, Transfer]:
    found = [entry for entry in program.instructions() if entry[2].kind in kinds]
    rank, position, entry = data.draw(st.sampled_from(found))
    assert isinstance(entry, Transfer)
    return rank, position, entry


def rows_of(program: Program) -> Rows:
    return [list(row) for row in program.ranks]


def refusal(program: Program, rows: Rows) -> str:
    with pytest.raises(VerificationError) as refused:
        verify(Program(program.schedule, tuple(map(tuple, rows))))
    return str(refused.value)


@given(program=programs(), data=st.data())
def test_a_dropped_send_or_receive_leaves_its_partner_named(program: Program, data: st.DataObject) -> None:
    rank, position, entry = pick(data, program, SENDS | RECEIVES)
    rows = rows_of(program)
    del rows[rank][position]
    message = refusal(program, rows)
    assert f"channel {entry.channel}, message " in message
    peer = entry.channel.target if entry.kind in SENDS else entry.channel.source
    assert f"rank {peer} position " in message
    assert "nothing more" in message or f"rank {rank} position " in message


@given(program=programs(), data=st.data())
def test_a_doubled_send_or_receive_is_refused(program: Program, data: st.DataObject) -> None:
    rank, _, entry = pick(data, program, SENDS | RECEIVES)
    rows = rows_of(program)
    rows[rank].insert(data.draw(st.integers(0, len(rows[rank]))), entry)
    assert f"channel {entry.channel}, message " in refusal(program, rows)


@given(program=programs(), data=st.data())
def test_a_message_sent_and_received_twice_is_refused(program: Program, data: st.DataObject) -> None:
    """Symptom: accepted, and its second buffer was never freed. Cause: only ends were matched."""
    rank, position, send = pick(data, program, SENDS)
    rows = rows_of(program)
    rows[rank].insert(position, send)
    target = rows[send.channel.target]
    (at,) = [
        at
        for at, entry in enumerate(target)
        if isinstance(entry, Transfer)
        and entry.kind in RECEIVES
        and entry.channel == send.channel
        and entry.microbatch == send.microbatch
        and abs(entry.stage - send.stage) == 1
        and entry.replica == send.replica
        and (entry.stage > send.stage) == (send.kind == OpKind.SEND_F)
    ]
    target.insert(at, target[at])
    assert f"position {at + 1}: {target[at]} receives what an earlier receive" in refusal(program, rows)


@given(program=programs(), data=st.data(), kinds=st.sampled_from([SENDS, RECEIVES]))
def test_swapped_messages_of_one_channel_are_refused(
    program: Program, data: st.DataObject, kinds: frozenset[OpKind]
) -> None:
    rank, position, entry = pick(data, program, kinds)
    rows = rows_of(program)
    others = [
        at
        for at, other in enumerate(rows[rank])
        if isinstance(other, Transfer)
        and other.channel == entry.channel
        and other.kind == entry.kind
        and at != position
    ]
    if not others:
        return
    other = data.draw(st.sampled_from(others))
    rows[rank][position], rows[rank][other] = rows[rank][other], rows[rank][position]
    first = min(position, other)
    message = refusal(program, rows)
    assert f"channel {entry.channel}, message " in message
    verb = "sends" if kinds is SENDS else "receives"
    assert f"rank {rank} position {first} {verb} {rows[rank][first]}" in message


@given(program=programs(), data=st.data())
def test_a_receive_posted_after_its_consumer_is_refused(program: Program, data: st.DataObject) -> None:
    rank, position, entry = pick(data, program, RECEIVES)
    rows = rows_of(program)
    takers = {OpKind.F} if entry.kind == OpKind.RECV_F else {OpKind.B, OpKind.I}
    taker = next(at for at, op in enumerate(rows[rank]) if op.kind in takers and op[1:4] == entry[1:4])
    rows[rank].insert(taker, rows[rank].pop(position))
    message = refusal(program, rows)
    alone = f"rank {rank} position {taker - 1}: {rows[rank][taker - 1]} has no receive posted before it"
    assert message == alone or f"channel {entry.channel}, message " in message


@given(program=programs(), data=st.data())
def test_a_send_before_its_value_is_made_is_refused(program: Program, data: st.DataObject) -> None:
    rank, position, entry = pick(data, program, SENDS)
    rows = rows_of(program)
    makers = {OpKind.F} if entry.kind == OpKind.SEND_F else {OpKind.B, OpKind.I}
    maker = next(at for at, op in enumerate(rows[rank]) if op.kind in makers and op[1:4] == entry[1:4])
    rows[rank].insert(maker, rows[rank].pop(position))
    message = refusal(program, rows)
    alone = f"rank {rank} position {maker}: {entry} sends what no earlier op of the rank has made"
    assert message == alone or f"channel {entry.channel}, message " in message


@given(program=programs(), data=st.data())
def test_an_end_of_a_message_on_another_rank_is_refused(program: Program, data: st.DataObject) -> None:
    rank, position, _ = pick(data, program, SENDS | RECEIVES)
    rows = rows_of(program)
    other = data.draw(st.sampled_from([other for other in range(len(rows)) if other != rank]))
    rows[other].append(rows[rank].pop(position))
    assert "channel" in refusal(program, rows)


def test_a_missing_receive_is_told_with_its_send() -> None:
    program = lower(one_f_one_b(2, 2))
    rows = rows_of(program)
    rows[1] = [entry for entry in rows[1] if str(entry) != "1RECV_F1"]
    assert refusal(program, rows) == (
        "channel 0→1 F, message 1: rank 0 position 4 sends 0SEND_F1, but rank 1 receives nothing more"
    )


def test_a_missing_send_is_told_with_its_receive() -> None:
    program = lower(one_f_one_b(2, 2))
    rows = rows_of(program)
    rows[1] = [entry for entry in rows[1] if str(entry) != "1SEND_B1"]
    assert refusal(program, rows) == (
        "channel 1→0 B, message 1: rank 1 sends nothing more, but rank 0 position 5 receives 0RECV_B1"
    )


def test_a_message_by_way_of_the_wrong_rank_leaves_its_consumer_without() -> None:
    program = lower(one_f_one_b(3, 1))
    rows = rows_of(program)
    astray = Channel(0, 2, OpKind.F)
    send = next(entry for entry in rows[0] if entry.kind is OpKind.SEND_F)
    receive = next(entry for entry in rows[1] if entry.kind is OpKind.RECV_F)
    assert isinstance(send, Transfer) and isinstance(receive, Transfer)
    rows[0][rows[0].index(send)] = send._replace(channel=astray)
    rows[1].remove(receive)
    rows[2].insert(0, receive._replace(channel=astray))
    assert "1F0 has no receive posted before it" in refusal(program, rows)


def test_receives_of_different_channels_may_change_places() -> None:
    program = lower(
        parse_grid("""
        pair p=2 m=1 weights=flush placement=0,1,0
        rank 0: 0F0 2F0 2B0 0B0
        rank 1: 1F0 1B0
    """)
    )
    rows = rows_of(program)
    at = [position for position, entry in enumerate(rows[1]) if entry.kind in RECEIVES]
    assert [str(rows[1][position]) for position in at] == ["1RECV_F0", "1RECV_B0"]
    rows[1][at[0]], rows[1][at[1]] = rows[1][at[1]], rows[1][at[0]]
    verify(Program(program.schedule, tuple(map(tuple, rows))))


@given(program=programs())
def test_what_lowering_makes_matches(program: Program) -> None:
    check_messages(program)
    assert all(entry.kind in COMPUTE | SENDS | RECEIVES | {OpKind.REDUCE_GRAD} for *_, entry in program.instructions())
