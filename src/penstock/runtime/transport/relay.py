"""Rows of numbers from one rank of the pipeline to all others, which nobody waits for longer than for data.

A collective call would hold the first rank up until the last has arrived: a flush in all but name. Here every row has
left before whoever needs it asks, because it was sent before the data that this rank has had from the same batch.
"""

from __future__ import annotations

from collections import deque

import torch

from penstock.ir.ops import Channel, OpKind
from penstock.runtime.transport.protocol import Pending, Transport

_MOST_SENDING = 2
"""Rows to one rank under way at once."""


def relay_channels(source: int, num_ranks: int) -> list[Channel]:
    """Returns the channels from `source` to all other ranks."""
    return [Channel(source, rank, OpKind.S) for rank in range(num_ranks) if rank != source]


class Relay:
    """One rank's end of the rows that `source` sends.

    Args:
        transport: channels of `relay_channels` are open.
        source: who sends.
        width: numbers in a row.
        dtype: of the numbers.
        device: where rows are.

    Attributes:
        sends: whether this rank is the source.
    """

    def __init__(
        self, transport: Transport, source: int, *, width: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._transport, self._source = transport, source
        self._empty = torch.zeros(width, dtype=dtype, device=device)
        self._channels = relay_channels(source, transport.num_ranks)
        self._leaving: deque[list[tuple[Pending, torch.Tensor]]] = deque()
        self.sends = transport.rank == source

    def send(self, row: torch.Tensor) -> None:
        """Starts to send a row to all others. The rows before the last two have been asked for and have left."""
        row = row.detach().reshape(-1).to(self._empty).clone()
        while len(self._leaving) >= _MOST_SENDING:
            for pending, _ in self._leaving.popleft():
                pending.wait()
        self._leaving.append([(self._transport.send(channel, row), row) for channel in self._channels])

    def post(self) -> Awaited:
        """Returns the next row from the source, once it is waited for."""
        row = torch.zeros_like(self._empty)
        channel = Channel(self._source, self._transport.rank, OpKind.S)
        return Awaited(row, self._transport.recv(channel, row))


class Awaited:
    """A row that is here or on its way.

    Args:
        row: what it is, or where it arrives.
        pending: its message; None where it is here.
    """

    def __init__(self, row: torch.Tensor, pending: Pending | None = None) -> None:
        self._row, self._pending = row, pending

    def wait(self) -> torch.Tensor:
        """Returns the row."""
        if self._pending is not None:
            self._pending.wait()
            self._pending = None
        return self._row
