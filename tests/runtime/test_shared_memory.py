"""Lanes through shared memory: order, sizes, mismatches, deaths and idleness, without a pipeline around them."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from penstock.errors import ModelError, RankFailedError
from penstock.ir.ops import Channel, OpKind
from penstock.runtime.transport.cursor import Cursor
from penstock.runtime.transport.shared_memory import Patience, lanes, semaphore
from penstock.runtime.transport.shared_memory.host import Host, receive_lane, send_lane, shared
from penstock.runtime.transport.shared_memory.lanes import ReceiveLane, SendLane

pytestmark = pytest.mark.skipif(not semaphore.AVAILABLE or not hasattr(os, "memfd_create"), reason="Linux only")

CHANNEL = Channel(0, 1, OpKind.F)
MEBIBYTE = 1 << 20


class Told:
    """Stands for a Watch: says what it was asked about."""

    def __init__(self) -> None:
        self.cursor = Cursor(0)
        self.report: str | None = None

    def diagnose(self, reason: str, *, peer: int) -> str:
        return f"lost rank {peer}: {reason}"

    def fail(self, reason: str) -> str:
        return f"rank 1 {reason}"


def patience(timeout_seconds: float = 20.0) -> Patience:
    return Patience(Told(), timeout_seconds)  # type: ignore[arg-type]


@pytest.fixture
def ends() -> Iterator[tuple[SendLane, ReceiveLane]]:
    """Both ends in this process."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pair = send_lane(CHANNEL, here, patience=patience()), receive_lane(CHANNEL, there, patience=patience())
    yield pair
    for lane in pair:
        lane.close()


def in_child(receiver: Callable[[ReceiveLane], None], sender: Callable[[SendLane, int], None]) -> int:
    """Returns how a forked process ended that ran `receiver`, while this one ran `sender` with its id."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    child = os.fork()
    if child == 0:
        try:
            here.close()
            receiver(receive_lane(CHANNEL, there, patience=patience()))
            os._exit(0)
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
            os._exit(1)
    there.close()
    lane = send_lane(CHANNEL, here, patience=patience())
    try:
        sender(lane, child)
    finally:
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        lane.close()
    return code


def numbered(index: int, size: int) -> torch.Tensor:
    return torch.arange(size, dtype=torch.int32) * 7 + index


TENSORS = {
    "scalar": torch.tensor(3.25, dtype=torch.float64),
    "nothing": torch.empty(0, 4),
    "bool": torch.tensor([[True, False, True]]),
    "bfloat16": torch.linspace(-3, 3, 77).to(torch.bfloat16),
    "float8": torch.linspace(-3, 3, 8).to(torch.float8_e4m3fn),
    "int64": torch.tensor([1 << 62, -1]),
    "complex, conjugated": torch.complex(torch.rand(5), torch.rand(5)).conj(),
    "transposed": torch.arange(12.0).view(3, 4).t(),
    "every second": torch.arange(12.0)[::2],
    "needing a gradient": torch.ones(3, requires_grad=True),
    "many dimensions": torch.rand([1] * 30 + [2]),
}


@pytest.mark.parametrize("name", TENSORS)
def test_a_tensor_arrives_bit_for_bit(name: str, ends):
    sender, receiver = ends
    tensor = TENSORS[name]
    sent = sender.send(tensor)
    found = torch.empty(tensor.shape, dtype=tensor.dtype)
    receiver.recv(found).wait()
    assert sent.done()
    assert torch.equal(
        found.resolve_conj().view(torch.uint8) if found.dim() and found.numel() else found,
        (tensor.detach().contiguous().resolve_conj().view(torch.uint8) if found.dim() and found.numel() else tensor),
    )


def test_a_buffer_with_gaps_is_filled_and_its_gaps_are_left(ends):
    sender, receiver = ends
    sender.send(torch.arange(4.0))
    whole = torch.full((8,), -1.0)
    receiver.recv(whole[::2]).wait()
    assert whole.tolist() == [0, -1, 1, -1, 2, -1, 3, -1]


def test_messages_of_all_sizes_come_in_order_while_the_ring_wraps_and_grows(ends):
    sender, receiver = ends
    sizes = [1, 5000, 0, 16000, 3, 15, 16, 17, 40_000, 2, 100_000, 99_999, 7] * 3
    for start in range(0, len(sizes), 3):
        batch = list(enumerate(sizes))[start : start + 3]
        sent = [sender.send(numbered(index, size)) for index, size in batch]
        assert all(message.done() for message in sent)
        found = [torch.empty(size, dtype=torch.int32) for _, size in batch]
        pending = [receiver.recv(tensor) for tensor in found]
        pending[-1].wait()
        assert all(message.done() for message in pending), "a channel is first in, first out"
        for tensor, (index, size) in zip(found, batch, strict=True):
            assert torch.equal(tensor, numbered(index, size))


def test_a_send_without_room_is_done_once_there_is_room(ends):
    sender, receiver = ends
    sent = [sender.send(numbered(index, 16)) for index in range(100)]
    undone = [index for index, message in enumerate(sent) if not message.done()]
    assert undone == list(range(64, 100)), "64 frames are under way at once"
    for index in range(100):
        found = torch.empty(16, dtype=torch.int32)
        message = receiver.recv(found)
        assert message.done() == (index < 64 or sent[index].done())
        assert torch.equal(found, numbered(index, 16))
        assert sent[min(index + 64, 99)].done()


def test_a_tensor_is_kept_until_it_has_left(ends):
    sender, receiver = ends
    for index in range(100):
        sender.send(numbered(index, 16))  # nobody else holds it
    for index in range(100):
        sender.push()
        found = torch.empty(16, dtype=torch.int32)
        receiver.recv(found).wait()
        assert torch.equal(found, numbered(index, 16))


@pytest.mark.parametrize(
    "buffer", [torch.empty(4, 6, dtype=torch.float64), torch.empty(6, 4), torch.empty(24), torch.empty(4, 6, 1)]
)
def test_a_buffer_of_another_shape_or_dtype_is_an_error_in_words_and_stays_untouched(buffer: torch.Tensor, ends):
    sender, receiver = ends
    sender.send(torch.zeros(4, 6))
    buffer.fill_(5)
    with pytest.raises(RankFailedError) as caught:
        receiver.recv(buffer).wait()
    assert str(caught.value) == (
        f"rank 1 stopped: channel 0→1 F: (4, 6) torch.float32 was sent into a buffer of {tuple(buffer.shape)} "
        f"{buffer.dtype}"
    )
    assert (buffer == 5).all()


def test_more_dimensions_than_a_frame_describes_are_refused(ends):
    with pytest.raises(ModelError, match="a tensor of 65 dimensions cannot pass"):
        ends[0].send(torch.empty([1] * 65))


def test_a_message_larger_than_the_largest_ring_passes_in_pieces(monkeypatch: pytest.MonkeyPatch):
    """And small ones behind it wait their turn."""
    monkeypatch.setattr(lanes, "MOST_BYTES", 2 * MEBIBYTE)
    big = 2 * MEBIBYTE + 4321
    closed, opened = os.pipe()

    def receiver(lane: ReceiveLane) -> None:
        os.read(closed, 1)
        found = [torch.empty(size, dtype=torch.int32) for size in (big, 3, big)]
        pending = [lane.recv(tensor) for tensor in found]
        for index, message in enumerate(pending):
            message.wait()
            assert torch.equal(found[index], numbered(index, len(found[index])))

    def sender(lane: SendLane, _: int) -> None:
        sent = [lane.send(numbered(index, size)) for index, size in enumerate((big, 3, big))]
        assert not sent[0].done()
        os.write(opened, b"!")
        for message in sent:
            message.wait()
        assert lane._ring.capacity <= 2 * MEBIBYTE

    assert in_child(receiver, sender) == 0


def test_two_ranks_that_send_more_than_fits_to_each_other_both_go_on(monkeypatch: pytest.MonkeyPatch):
    """While a rank waits for a message it goes on with its own sends, or two such ranks would wait for ever."""
    monkeypatch.setattr(lanes, "MOST_BYTES", 1 << 16)
    size = 50_000
    there = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(2)]

    def both(first: int) -> None:
        shared_patience = patience()
        out = send_lane(CHANNEL, there[first][0], patience=shared_patience)
        into = receive_lane(CHANNEL, there[1 - first][1], patience=shared_patience)
        sent = [out.send(numbered(first, size)) for _ in range(2)]
        found = torch.empty(size, dtype=torch.int32)
        for _ in range(2):
            into.recv(found).wait()
            assert torch.equal(found, numbered(1 - first, size))
        for message in sent:
            message.wait()
        assert not shared_patience.stuck

    child = os.fork()
    if child == 0:
        code = 1
        try:
            both(1)
            code = 0
        finally:
            os._exit(code)
    both(0)
    assert os.waitpid(child, 0)[1] == 0
    for pair in there:
        for end in pair:
            end.close()


def test_a_sender_killed_in_mid_message_is_named_at_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lanes, "MOST_BYTES", 1 << 16)
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    child = os.fork()
    if child == 0:
        there.close()
        send_lane(CHANNEL, here, patience=patience()).send(torch.zeros(MEBIBYTE))
        os.kill(os.getpid(), signal.SIGKILL)
    here.close()
    lane = receive_lane(CHANNEL, there, patience=patience())
    begin = time.monotonic()
    with pytest.raises(RankFailedError, match="lost rank 0: it closed channel 0→1 F"):
        lane.recv(torch.empty(MEBIBYTE)).wait()
    assert time.monotonic() - begin < 5
    os.waitpid(child, 0)
    lane.close()


def test_a_receiver_killed_before_it_reads_is_named_at_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lanes, "MOST_BYTES", 1 << 16)

    def sender(lane: SendLane, child: int) -> None:
        message = lane.send(torch.zeros(MEBIBYTE))
        os.kill(child, signal.SIGKILL)
        with pytest.raises(RankFailedError, match="lost rank 1: it closed channel 0→1 F"):
            message.wait()

    assert in_child(lambda lane: time.sleep(60), sender) == -signal.SIGKILL


def test_what_was_sent_before_the_sender_left_still_arrives(ends):
    sender, receiver = ends
    sender.send(numbered(1, 40_000))  # with a larger ring on its way
    sender.close()
    found = torch.empty(40_000, dtype=torch.int32)
    receiver.recv(found).wait()
    assert torch.equal(found, numbered(1, 40_000))
    with pytest.raises(RankFailedError, match="lost rank 0"):
        receiver.recv(found).wait()


def test_a_wait_ends_with_the_deadline():
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sender = send_lane(CHANNEL, here, patience=patience())
    receiver = receive_lane(CHANNEL, there, patience=patience(0.3))
    with pytest.raises(RankFailedError, match=r"nothing passed on channel 0→1 F for 0.3 s, the deadline"):
        receiver.recv(torch.empty(3)).wait()
    for lane in (sender, receiver):
        lane.close()


def test_a_wait_ends_when_another_rank_is_known_to_have_failed(ends):
    receiver = ends[1]
    receiver._patience.watch.report = "rank 3 failed in step 2"
    with pytest.raises(RankFailedError, match="rank 3 failed in step 2"):
        receiver.recv(torch.empty(3)).wait()


def test_a_rank_that_waits_for_long_uses_no_core():
    def receiver(lane: ReceiveLane) -> None:
        used = time.process_time()
        lane.recv(torch.empty(3)).wait()
        assert time.process_time() - used < 0.1, "of a second"

    def sender(lane: SendLane, _: int) -> None:
        time.sleep(1)
        lane.send(torch.zeros(3))

    assert in_child(receiver, sender) == 0


def test_a_rank_stays_awake_while_nobody_else_wants_its_core(ends, monkeypatch: pytest.MonkeyPatch):
    sender, receiver = ends
    turns = iter(range(500))
    monkeypatch.setattr(os, "sched_yield", lambda: next(turns) == 300 and sender.send(torch.ones(3)))
    monkeypatch.setattr(semaphore, "wait", lambda *_: pytest.fail("it slept"))
    monkeypatch.setattr(lanes, "_AWAKE_SECONDS", 20.0)
    monkeypatch.setattr(lanes, "_TAKEN_SECONDS", 20.0)
    receiver.recv(torch.empty(3)).wait()
    assert next(turns) == 301


def test_a_rank_sleeps_where_somebody_else_wants_its_core(ends, monkeypatch: pytest.MonkeyPatch):
    sender, receiver = ends
    yielded: list[float] = []
    monkeypatch.setattr(os, "sched_yield", lambda: yielded.append(time.sleep(0.002) or 0.0))
    monkeypatch.setattr(semaphore, "wait", lambda count, _: sender.send(torch.ones(3)) and semaphore.take(count))
    for _ in range(lanes._SELDOM):
        receiver.recv(torch.empty(3)).wait()
    assert len(yielded) == 2, "it asks once to find out, and again at the eighth wait"


def test_nothing_is_left_of_lanes_that_were_closed_or_dropped():
    def names() -> list[str]:
        return sorted(os.listdir("/dev/shm"))

    def open_files() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = names(), open_files(), Path("/proc/self/maps").read_text().count("memfd:penstock")
    for _ in range(3):
        pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sender, receiver = (
            make(CHANNEL, end, patience=patience()) for make, end in zip((send_lane, receive_lane), pair, strict=True)
        )
        sender.send(torch.zeros(MEBIBYTE))
        found = torch.empty(MEBIBYTE)
        receiver.recv(found).wait()
        assert names() == before[0], "the memory has no name"
        sender.close()
        receiver.close()
        del sender, receiver
    assert (names(), open_files(), Path("/proc/self/maps").read_text().count("memfd:penstock")) == before


def test_a_host_takes_the_connections_it_was_told_of_and_no_stranger():
    host, guest, stranger = Host(enabled=True), Host(enabled=True), Host(enabled=True)
    channel, other = CHANNEL, Channel(0, 2, OpKind.F)
    unknown = stranger.connect(host.identity._replace(secret="guessed"), channel)
    known = guest.connect(host.identity, channel)
    taken = host.accept([channel], 5)
    assert known is not None and unknown is not None
    assert list(taken) == [channel]
    known.send(b"hello")
    assert taken[channel].recv(5) == b"hello"
    assert unknown.recv(5) == b"", "a stranger is sent away"
    assert stranger.connect(host.identity._replace(address="nowhere"), other) is None
    assert shared([host.identity, guest.identity], channel)
    assert not shared([host.identity, guest.identity._replace(machine="another")], channel)
    out = Host(enabled=False)
    assert not shared([out.identity, out.identity], channel)
    for socket_ in (unknown, known, *taken.values()):
        socket_.close()
    for each in (host, guest, stranger, out):
        each.close()
