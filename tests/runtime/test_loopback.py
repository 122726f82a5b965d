"""Loopback: the strictest semantics a network may have, in threads of one process."""

import threading
import time
from collections import deque
from typing import Any

import pytest
import torch

import penstock as ps
from penstock.errors import RankFailedError
from penstock.ir.ops import Channel, Op, OpKind
from penstock.runtime.transport import loopback
from penstock.runtime.transport.protocol import gather_bytes, gather_json

DOWN, UP = Channel(0, 1, OpKind.F), Channel(1, 0, OpKind.B)


def number(value: float) -> torch.Tensor:
    return torch.tensor([float(value)])


def test_a_send_is_done_only_once_its_receive_is_posted():
    posted = threading.Event()

    def rank(transport: ps.LoopbackTransport) -> float:
        if transport.rank == 0:
            pending = transport.send(DOWN, number(3))
            time.sleep(0.05)
            assert not pending.done()
            posted.set()
            pending.wait()
            assert pending.done()
            return 0
        posted.wait(5)
        buffer = number(0)
        transport.recv(DOWN, buffer).wait()
        return float(buffer)

    assert ps.run_ranks(rank, 2, timeout_seconds=5) == [0, 3]


def test_messages_of_a_channel_arrive_in_order_and_channels_do_not_mix():
    def rank(transport: ps.LoopbackTransport) -> list[float]:
        out, into = (DOWN, UP) if transport.rank == 0 else (UP, DOWN)
        buffers = [number(0) for _ in range(20)]
        work = [transport.recv(into, buffer) for buffer in buffers[:10]]
        work += [transport.send(out, number(100 * transport.rank + i)) for i in range(20)]
        work += [transport.recv(into, buffer) for buffer in buffers[10:]]
        for each in reversed(work):
            each.wait()
        return [float(buffer) for buffer in buffers]

    first, second = ps.run_ranks(rank, 2, timeout_seconds=5)
    assert first == [100 + i for i in range(20)]
    assert second == list(range(20))


def test_both_ends_may_be_the_first_of_their_channel_at_the_same_time(monkeypatch: pytest.MonkeyPatch):
    """A thread that makes the channel's queue may be interrupted, e.g. by a garbage collection's finalizers."""

    class Interrupted(deque[Any]):
        def __init__(self) -> None:
            time.sleep(0.05)

    monkeypatch.setattr(loopback, "deque", Interrupted)

    def rank(transport: ps.LoopbackTransport) -> float:
        buffer = number(1 - transport.rank)
        (transport.send if transport.rank == 0 else transport.recv)(DOWN, buffer).wait()
        return float(buffer)

    assert ps.run_ranks(rank, 2, timeout_seconds=2) == [1, 1]


@pytest.mark.parametrize("wrong", [torch.zeros(2), torch.zeros(1, dtype=torch.int32)])
def test_a_message_that_does_not_fit_its_buffer_fails_both_ends(wrong: torch.Tensor):
    told = ["", ""]

    def rank(transport: ps.LoopbackTransport) -> None:
        work = transport.send(DOWN, number(1)) if transport.rank == 0 else transport.recv(DOWN, wrong)
        try:
            work.wait()
        except RankFailedError as error:
            told[transport.rank] = str(error)

    ps.run_ranks(rank, 2, timeout_seconds=5)
    assert (
        told[0]
        == told[1]
        == (f"channel 0→1 F: (1,) torch.float32 was sent into a buffer of {tuple(wrong.shape)} {wrong.dtype}")
    )


def test_the_deadline_names_who_waits_for_whom_and_where_everyone_is():
    def rank(transport: ps.LoopbackTransport) -> None:
        cursor = transport.cursor
        cursor.call, cursor.step, cursor.entries = "step", 4 + transport.rank, (Op(OpKind.F, transport.rank, 7),)
        if transport.rank == 0:
            transport.recv(UP, number(0)).wait()
        time.sleep(0.3)

    with pytest.raises(RankFailedError) as caught:
        ps.run_ranks(rank, 2, timeout_seconds=0.1)
    text = str(caught.value)
    assert text.startswith("rank 0 waited 0.1 s for rank 1 (channel 1→0 B), the deadline. ")
    assert "rank 0 is in step 4 at 0F7 (forward of stage 0 on microbatch 7), instruction 1 of 1, waiting for" in text
    assert "rank 1 is in step 5 at 1F7 (forward of stage 1 on microbatch 7), instruction 1 of 1" in text


@pytest.mark.parametrize("caught_there", [True, False])
def test_a_failure_wakes_every_rank(caught_there: bool):
    told: dict[int, str] = {}

    def rank(transport: ps.LoopbackTransport) -> None:
        if transport.rank == 2:
            time.sleep(0.02)
            if caught_there:
                transport.fail("failed on purpose")
                return
            raise KeyError("gone")
        try:
            if transport.rank == 0:
                transport.recv(UP, number(0)).wait()
            transport.gather(number(0))
        except RankFailedError as error:
            told[transport.rank] = str(error)

    started = time.monotonic()
    if caught_there:
        ps.run_ranks(rank, 3, timeout_seconds=20)
    else:
        with pytest.raises(KeyError):
            ps.run_ranks(rank, 3, timeout_seconds=20)
    assert time.monotonic() - started < 5
    why = "failed on purpose" if caught_there else "failed: KeyError: 'gone'"
    assert told == {
        0: f"rank 2 {why}; rank 0 waited for rank 1 (channel 1→0 B)",
        1: f"rank 2 {why}; rank 1 waited for every rank to make the same call",
    }


def test_gather_broadcast_and_their_like_round_after_round():
    def rank(transport: ps.LoopbackTransport) -> None:
        mine = transport.rank
        for turn in range(20):
            assert transport.gather(number(mine + turn)).flatten().tolist() == [turn, turn + 1, turn + 2]
            tensor = number(mine)
            transport.broadcast(tensor, turn % 3)
            assert float(tensor) == turn % 3
        assert gather_bytes(transport, b"x" * mine) == [b"", b"x", b"xx"]
        assert gather_json(transport, {"rank": [mine, None]}) == [{"rank": [each, None]} for each in range(3)]
        assert transport.clock_offsets() == [0, 0, 0]

    ps.run_ranks(rank, 3, timeout_seconds=5)
