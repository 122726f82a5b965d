"""Transport for several ranks as threads of one process: for tests, and for a debugger to step through.

A message is copied when both its ends are posted, never before: the strictest semantics a network may have.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from penstock.errors import PenstockError, RankFailedError, UserError, check_type
from penstock.ir.ops import Channel
from penstock.runtime.transport.cursor import Cursor

Result = TypeVar("Result")


class _Hub:
    """What the ranks share. Every access holds `changed`."""

    def __init__(self, num_ranks: int, timeout_seconds: float) -> None:
        self.num_ranks = num_ranks
        self.timeout_seconds = timeout_seconds
        self.changed = threading.Condition()
        self.sends: dict[Channel, deque[_Half]] = defaultdict(deque)
        self.receives: dict[Channel, deque[_Half]] = defaultdict(deque)
        self.rows: list[torch.Tensor | None] = [None] * num_ranks
        self.gathered: torch.Tensor | None = None
        self.round = 0
        self.arrived = 0
        self.failure: tuple[int, str] | None = None
        self.cursors = [Cursor(rank) for rank in range(num_ranks)]

    def wait_for(self, rank: int, condition: Callable[[], bool], what: Callable[[], str]) -> None:
        """Makes `rank` wait, holding `changed`, until `condition`; raises if a rank fails or the deadline passes."""
        deadline = time.monotonic() + self.timeout_seconds
        while not condition():
            if self.failure is not None:
                culprit, reason = self.failure
                raise RankFailedError(f"rank {culprit} {reason}; rank {rank} waited for {what()}")
            left = deadline - time.monotonic()
            if left <= 0:
                places = "; ".join(f"rank {cursor.rank} is {cursor}" for cursor in self.cursors)
                raise RankFailedError(
                    f"rank {rank} waited {self.timeout_seconds:g} s for {what()}, the deadline. {places}"
                )
            self.changed.wait(left)

    def fail(self, rank: int, reason: str) -> None:
        """Wakes all ranks with the first reason."""
        with self.changed:
            if self.failure is None:
                self.failure = (rank, reason)
            self.changed.notify_all()


class _Half:
    """One posted end of a message."""

    def __init__(self, hub: _Hub, channel: Channel, tensor: torch.Tensor, *, sends: bool) -> None:
        self.hub, self.channel, self.tensor, self.sends = hub, channel, tensor, sends
        self.complete = False
        self.error: str | None = None

    def done(self) -> bool:
        return self.complete

    def wait(self) -> None:
        if not self.complete:
            source, target, _ = self.channel
            mine, peer = (source, target) if self.sends else (target, source)
            cursor = self.hub.cursors[mine]
            cursor.waiting_for = peer
            with self.hub.changed:
                self.hub.wait_for(mine, lambda: self.complete, lambda: f"rank {peer} (channel {self.channel})")
            cursor.waiting_for = -1
        if self.error:
            raise RankFailedError(self.error)


class LoopbackTransport:
    """One rank's end of a loopback; made by `run_ranks`."""

    def __init__(self, hub: _Hub, rank: int) -> None:
        self._hub = hub
        self._rank = rank

    @property
    def rank(self) -> int:
        """This rank's place in the pipeline."""
        return self._rank

    @property
    def num_ranks(self) -> int:
        """Number of ranks, p."""
        return self._hub.num_ranks

    @property
    def cursor(self) -> Cursor:
        """This rank's place in its program."""
        return self._hub.cursors[self._rank]

    def fail(self, reason: str) -> None:
        """Tells the other ranks that this one fails, and wakes them."""
        self._hub.fail(self._rank, reason)

    def open(self, channels: Sequence[Channel]) -> None:
        """Does nothing: channels exist on first use."""

    def close(self) -> None:
        """Does nothing: threads share all they have."""

    def send(self, channel: Channel, tensor: torch.Tensor) -> _Half:
        """Starts to send `tensor`; done once the receiver has posted its end."""
        return self._post(_Half(self._hub, channel, tensor.detach(), sends=True), self._hub.sends)

    def recv(self, channel: Channel, tensor: torch.Tensor) -> _Half:
        """Starts to receive into `tensor`."""
        return self._post(_Half(self._hub, channel, tensor.detach(), sends=False), self._hub.receives)

    def _post(self, half: _Half, queues: dict[Channel, deque[_Half]]) -> _Half:
        hub, channel = self._hub, half.channel
        with hub.changed:
            queues[channel].append(half)
            while hub.sends[channel] and hub.receives[channel]:
                _copy(hub.sends[channel].popleft(), hub.receives[channel].popleft())
            hub.changed.notify_all()
        return half

    def gather(self, row: torch.Tensor) -> torch.Tensor:
        """Returns the rows of all ranks, stacked."""
        hub = self._hub
        with hub.changed:
            mine = hub.round
            hub.rows[self._rank] = row.clone()
            hub.arrived += 1
            if hub.arrived == hub.num_ranks:
                hub.gathered = torch.stack([row for row in hub.rows if row is not None])
                hub.round, hub.arrived = mine + 1, 0
                hub.changed.notify_all()
            hub.wait_for(self._rank, lambda: hub.round > mine, lambda: "every rank to make the same call")
            return hub.gathered.clone()  # type: ignore[union-attr]

    def broadcast(self, tensor: torch.Tensor, source: int) -> None:
        """Overwrites `tensor` on every rank by that of rank `source`."""
        tensor.copy_(self.gather(tensor.detach())[source])

    def clock_offsets(self) -> list[float]:
        """Returns zeros: threads share one clock."""
        return [0.0] * self.num_ranks


def _copy(send: _Half, receive: _Half) -> None:
    if send.tensor.shape != receive.tensor.shape or send.tensor.dtype != receive.tensor.dtype:
        send.error = receive.error = (
            f"channel {send.channel}: {tuple(send.tensor.shape)} {send.tensor.dtype} was sent into a buffer of "
            f"{tuple(receive.tensor.shape)} {receive.tensor.dtype}"
        )
    else:
        receive.tensor.copy_(send.tensor)
    send.complete = receive.complete = True


def run_ranks(
    function: Callable[[LoopbackTransport], Result], num_ranks: int, *, timeout_seconds: float = 60.0
) -> list[Result]:
    """Returns what `function` returned on each rank, having run it once a rank in threads of this process.

    Args:
        function: the program of one rank; gets its transport, e.g. for `Pipeline(..., transport=transport)`.
        num_ranks: p.
        timeout_seconds: how long a rank may wait for another.

    Raises:
        UserError: num_ranks is no number of ranks.
        Exception: what the first failing rank raised; the others are woken and end.
    """
    check_type("num_ranks", num_ranks, int, example="2")
    if num_ranks < 1:
        raise UserError(f"num_ranks={num_ranks}; use at least 1, e.g. num_ranks=2")
    hub = _Hub(num_ranks, timeout_seconds)
    results: list[Result | None] = [None] * num_ranks
    errors: dict[int, BaseException] = {}

    def main(rank: int) -> None:
        try:
            results[rank] = function(LoopbackTransport(hub, rank))
        except BaseException as error:  # a rank may fail in any way; the others must not hang
            errors[rank] = error
            hub.fail(rank, f"failed: {type(error).__name__}: {error}")

    threads = [threading.Thread(target=main, args=(rank,), name=f"rank {rank}") for rank in range(num_ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        first = hub.failure[0] if hub.failure else -1
        rank = first if first in errors else min(errors)
        error = errors[rank]
        if not isinstance(error, PenstockError):
            error.add_note(f"raised on rank {rank} of {num_ranks} over the loopback transport")
        raise error
    return results  # type: ignore[return-value]
