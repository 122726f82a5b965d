"""What the engine needs from the world: tensors on channels, and a little control data between all ranks."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

from penstock.ir.ops import Channel
from penstock.runtime.transport.cursor import Cursor


class Pending(Protocol):
    """One end of a message under way."""

    def done(self) -> bool:
        """Returns whether the message has been taken over; never blocks."""
        ...

    def wait(self) -> None:
        """Blocks until the message has arrived or left.

        Raises:
            RankFailedError: the other end failed or fell silent, or the deadline passed.
        """
        ...


class Transport(Protocol):
    """One rank's way to the others. Channels are first in, first out; sends and receives are matched in order.

    A send may block its message (not the caller) until the receive is posted: nothing relies on buffering.
    """

    @property
    def rank(self) -> int:
        """This rank's place in the pipeline."""
        ...

    @property
    def num_ranks(self) -> int:
        """Number of ranks, p."""
        ...

    @property
    def cursor(self) -> Cursor:
        """This rank's place in its program: the engine writes it, reports of the transport read it."""
        ...

    def fail(self, reason: str) -> None:
        """Tells the other ranks that this one fails, before it raises."""
        ...

    def open(self, channels: Sequence[Channel]) -> None:
        """Sets up `channels`, the same sorted list on every rank, before the first message."""
        ...

    def send(self, channel: Channel, tensor: torch.Tensor) -> Pending:
        """Starts to send `tensor`, contiguous, unchanged until done."""
        ...

    def recv(self, channel: Channel, tensor: torch.Tensor) -> Pending:
        """Starts to receive into `tensor`, contiguous, of the sender's shape and dtype."""
        ...

    def gather(self, row: torch.Tensor) -> torch.Tensor:
        """Returns the rows of all ranks, stacked: CPU tensors of one shape and dtype. Every rank calls it."""
        ...

    def broadcast(self, tensor: torch.Tensor, source: int) -> None:
        """Overwrites `tensor` on every rank by that of rank `source`. Every rank calls it."""
        ...

    def clock_offsets(self) -> list[float]:
        """Returns per rank how many seconds its perf_counter is ahead of rank 0's. Every rank calls it."""
        ...

    def close(self) -> None:
        """Releases what `open` set up."""
        ...


Exchange = Callable[[bytes], list[bytes]]
"""An all-gather: takes this rank's bytes, returns every rank's, by rank."""


def gather_bytes(transport: Transport, payload: bytes) -> list[bytes]:
    """Returns the payloads of all ranks, of any lengths. Every rank calls it."""
    lengths = transport.gather(torch.tensor([len(payload)])).flatten().tolist()
    row = torch.zeros(max(*lengths, 1), dtype=torch.uint8)
    if payload:
        row[: len(payload)] = torch.frombuffer(bytearray(payload), dtype=torch.uint8)
    rows = transport.gather(row)
    return [bytes(rows[rank, :length].numpy()) for rank, length in enumerate(lengths)]


def gather_json(transport: Transport, value: Any) -> list[Any]:
    """Returns the plain values of all ranks (dicts, lists, strings, numbers). Every rank calls it."""
    return [json.loads(payload) for payload in gather_bytes(transport, json.dumps(value).encode())]
