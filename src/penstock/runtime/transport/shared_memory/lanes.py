"""The two ends of a channel through a ring: order, waiting, and rings that grow with what is sent.

A send copies into the ring where there is room and is done; else it is done later, whenever this rank waits for
anything. A ring holds several of the largest messages, up to a bound; a message beyond the bound passes in pieces.
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from penstock.errors import RankFailedError
from penstock.ir.ops import Channel
from penstock.runtime.transport.shared_memory import semaphore
from penstock.runtime.transport.shared_memory.description import RING, describe, told
from penstock.runtime.transport.shared_memory.ring import SLOTS, Ring, make_ring, occupied
from penstock.runtime.transport.watch import Watch

LEAST_BYTES = 1 << 16
MOST_BYTES = 1 << 26
"""Capacity of a ring, at first and at most."""

_MESSAGES = 4
"""Messages of the largest size so far that a ring is made for: two boundaries of two tensors."""

_AWAKE_SECONDS = 0.05
"""How long a wait asks before it sleeps, where nobody else wants the core: one that slept computes slowly at first."""

_SHORT_SECONDS = 60e-6
"""How long it asks without giving way: what it takes to wake a sleeping core."""

_TAKEN_SECONDS = 1e-3
"""Between two questions so much time passes only where somebody else had the core."""

_SELDOM = 8
"""Of so many waits one asks although the last one that did found the core wanted, as where ranks share one."""

_LOOK_SECONDS = 0.1
"""How often one that sleeps looks whether the other end is still there."""

_PUSH_SECONDS = 5e-4
"""How often one that sleeps tries to go on with sends that found no room."""


class ControlChannel(NamedTuple):
    """A directed pair of ranks and what all ranks say to each other, beside the program's channels."""

    source: int
    target: int

    def __str__(self) -> str:
        return f"{self.source}→{self.target} control"


@dataclass
class Patience:
    """How this rank waits, shared by all its lanes.

    Attributes:
        watch: knows who failed.
        timeout_seconds: deadline of every wait.
        stuck: lanes with messages that found no room.
    """

    watch: Watch
    timeout_seconds: float
    stuck: set[SendLane] = field(default_factory=set)
    _waits: int = 0
    _alone: bool = True

    def take(self, count: int, lane: _Lane) -> None:
        """Takes one from the semaphore at address `count`, waiting for the other end of `lane`.

        Raises:
            RankFailedError: the other end, or any rank, failed or fell silent, or the deadline passed.
        """
        if semaphore.take(count):
            return
        begin = time.perf_counter()
        cursor = self.watch.cursor
        cursor.waiting_for = lane.peer
        self._waits += 1
        if not ((self._alone or self._waits % _SELDOM == 0) and self._asked(count, lane, begin)):
            self._sleep(count, lane, begin)
        cursor.waiting_for = -1

    def _asked(self, count: int, lane: _Lane, begin: float) -> bool:
        """Returns whether it came while this rank kept asking; notes whether anybody else wants the core."""
        self._alone = True
        now = begin
        while now - begin < _AWAKE_SECONDS:
            if semaphore.take(count):
                return True
            self._push_others(lane)
            if now - begin > _SHORT_SECONDS:
                os.sched_yield()  # lets other threads and processes have their turn
            before, now = now, time.perf_counter()
            if now - before > _TAKEN_SECONDS:
                self._alone = False
                break
        return False

    def _sleep(self, count: int, lane: _Lane, begin: float) -> None:
        """Returns once it has come; looks meanwhile whether it still can."""
        looked = begin
        while not semaphore.wait(count, _PUSH_SECONDS if self.stuck else _LOOK_SECONDS):
            self._push_others(lane)
            now = time.perf_counter()
            if now - looked >= _LOOK_SECONDS:
                looked = now
                if self._look(count, lane, now - begin):
                    break

    def _push_others(self, lane: _Lane) -> None:
        """Goes on with sends that found no room, but for those of `lane`."""
        for other in [other for other in self.stuck if other is not lane]:
            other.push()

    def _look(self, count: int, lane: _Lane, waited: float) -> bool:
        """Returns whether what was waited for has come at the last moment; raises where it will not come."""
        if self.watch.report is not None:
            raise RankFailedError(self.watch.report)
        if lane.closed():
            if semaphore.take(count):  # it came before the other end went
                return True
            raise RankFailedError(self.watch.diagnose(f"it closed channel {lane.channel}", peer=lane.peer))
        if waited > self.timeout_seconds:
            reason = f"nothing passed on channel {lane.channel} for {self.timeout_seconds:g} s, the deadline"
            raise RankFailedError(self.watch.diagnose(reason, peer=lane.peer))
        return False


class _Lane:
    """What both ends have: a ring, and the connection over which rings come and by whose end a death is seen."""

    def __init__(
        self, channel: Channel | ControlChannel, ring: Ring, *, connection: socket.socket, peer: int, patience: Patience
    ) -> None:
        self.channel, self.peer = channel, peer
        self._ring, self._connection, self._patience = ring, connection, patience
        self._poll = select.poll()
        self._poll.register(connection, 0)  # only hang-ups

    def closed(self) -> bool:
        """Returns whether the other end is closed, or its process gone."""
        return bool(self._poll.poll(0))

    def close(self) -> None:
        """Closes this end."""
        self._connection.close()


class _Message:
    """A message under way: the tensor that is sent from or received into, and what of it is not copied yet."""

    __slots__ = ("address", "complete", "lane", "left", "length", "tensor", "text", "then")

    def __init__(self, lane: SendLane | ReceiveLane, tensor: torch.Tensor, then: torch.Tensor | None = None) -> None:
        self.lane, self.tensor, self.then = lane, tensor, then
        self.text = describe(tensor.shape, tensor.dtype)
        self.left = self.length = tensor.nbytes
        self.address = tensor.data_ptr()
        self.complete = False

    def done(self) -> bool:
        if not self.complete:
            self.lane.push()
        return self.complete

    def wait(self) -> None:
        if not self.complete:
            self.lane.finish(self)


class SendLane(_Lane):
    """The end that writes; see `Host` for how it is made."""

    def __init__(
        self, channel: Channel | ControlChannel, ring: Ring, *, connection: socket.socket, peer: int, patience: Patience
    ) -> None:
        super().__init__(channel, ring, connection=connection, peer=peer, patience=patience)
        self._queue: deque[_Message] = deque()
        self._under_way: deque[int] = deque()
        self._free = ring.capacity

    def send(self, tensor: torch.Tensor) -> _Message:
        """Starts to send `tensor`, unchanged until done; done already if there is room."""
        if not tensor.is_contiguous() or tensor.is_conj() or tensor.is_neg():
            tensor = tensor.contiguous().resolve_conj().resolve_neg()
        message = _Message(self, tensor)
        self._queue.append(message)
        if len(self._queue) == 1:
            self.push()
        return message

    def push(self) -> None:
        """Goes on with what is queued as far as there is room; never blocks."""
        while self._queue:
            message = self._queue[0]
            if message.left == message.length and _wanted(message.left) > self._ring.capacity:
                if not self._has_room(0):
                    break
                self._grow(_wanted(message.left))
            length = min(message.left, _piece(message.length, self._ring.capacity))
            if not self._has_room(length):
                break
            self._ring.describe(message.text)
            self._ring.write(message.address, length)
            self._publish(length)
            message.address += length
            message.left -= length
            if not message.left:
                message.complete = True
                self._queue.popleft()
        (self._patience.stuck.add if self._queue else self._patience.stuck.discard)(self)

    def _publish(self, length: int) -> None:
        size = occupied(length)
        self._under_way.append(size)
        self._free -= size
        semaphore.post(self._ring.ready)

    def _has_room(self, length: int) -> bool:
        """Returns whether a frame fits, having taken back what has been read only if it must."""
        size = occupied(length)
        while self._free < size or len(self._under_way) == SLOTS:
            if not semaphore.take(self._ring.room):
                return False
            self._free += self._under_way.popleft()
        return True

    def _grow(self, capacity: int) -> None:
        """Goes on in a larger ring; the receiver follows once it has read all of this one."""
        ring, descriptor = make_ring(capacity)
        try:
            socket.send_fds(self._connection, [b"ring"], [descriptor])
        except OSError as error:
            reason = f"it closed channel {self.channel} ({error})"
            raise RankFailedError(self._patience.watch.diagnose(reason, peer=self.peer)) from None
        finally:
            os.close(descriptor)
        self._ring.describe(RING)
        semaphore.post(self._ring.ready)
        self._ring, self._free = ring, ring.capacity
        self._under_way.clear()

    def finish(self, message: _Message) -> None:
        """Blocks until `message`, and with it all before it, has passed."""
        while not message.complete:
            self.push()
            if not message.complete:
                self._patience.take(self._ring.room, self)
                self._free += self._under_way.popleft()


class ReceiveLane(_Lane):
    """The end that reads."""

    def __init__(
        self, channel: Channel | ControlChannel, ring: Ring, *, connection: socket.socket, peer: int, patience: Patience
    ) -> None:
        super().__init__(channel, ring, connection=connection, peer=peer, patience=patience)
        self._queue: deque[_Message] = deque()

    def recv(self, tensor: torch.Tensor) -> _Message:
        """Starts to receive into `tensor`."""
        tensor = tensor.detach()
        if tensor.is_contiguous():
            message = _Message(self, tensor)
        else:
            message = _Message(self, torch.empty(tensor.shape, dtype=tensor.dtype), tensor)
        self._queue.append(message)
        return message

    def finish(self, message: _Message) -> None:
        """Blocks until `message`, and with it all before it, has passed."""
        while not message.complete:
            self._patience.take(self._ring.ready, self)
            self._read(self._queue[0])

    def push(self) -> None:
        """Takes what has come for the receives posted so far; never blocks."""
        while self._queue and semaphore.take(self._ring.ready):
            self._read(self._queue[0])

    def _read(self, message: _Message) -> None:
        """Takes the frame that is ready.

        Raises:
            RankFailedError: it holds another tensor than the receive was posted for.
        """
        found = self._ring.description(len(message.text))
        if found != message.text:
            if found.startswith(RING):
                self._ring = receive_ring(self._connection)
                return
            reason = (
                f"channel {self.channel}: {told(self._ring.description())} was sent into a buffer of "
                f"{tuple(message.tensor.shape)} {message.tensor.dtype}"
            )
            raise RankFailedError(self._patience.watch.fail(f"stopped: {reason}"))
        length = min(message.left, _piece(message.length, self._ring.capacity))
        self._ring.read(message.address, length)
        semaphore.post(self._ring.room)
        message.address += length
        message.left -= length
        if not message.left:
            self._queue.popleft()
            if message.then is not None:
                message.then.copy_(message.tensor)
            message.complete = True


def receive_ring(connection: socket.socket) -> Ring:
    """Returns the ring whose memory the other end has sent.

    Raises:
        OSError: the other end is gone, or did not send one in time.
    """
    _, descriptors, _, _ = socket.recv_fds(connection, 4, 1)
    if not descriptors:
        raise ConnectionError("the other end is gone")
    try:
        return Ring(descriptors[0])
    finally:
        os.close(descriptors[0])


def _wanted(length: int) -> int:
    return min(max(_MESSAGES * occupied(length), LEAST_BYTES), MOST_BYTES)


def _piece(length: int, capacity: int) -> int:
    """Returns the length of a frame of a message of `length` bytes: all of it, or of one too large a quarter ring."""
    return length if length <= capacity else capacity // 4
