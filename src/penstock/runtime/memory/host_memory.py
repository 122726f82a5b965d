"""Rows of bytes between a device and its host's memory, beside what the device computes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from penstock.runtime.transport.protocol import Pending


class Copied(NamedTuple):
    """A copy under way, for which the device's compute waits, never the host; without an event it has been made."""

    event: torch.cuda.Event | None

    def done(self) -> bool:
        """Returns whether the copy has been made."""
        return self.event is None or bool(self.event.query())

    def wait(self) -> None:
        """Lets what the current stream does from now on wait for the copy."""
        if self.event is not None:
            torch.cuda.current_stream().wait_event(self.event)


class HostMemory:
    """Copies to and from the host of one device; on a GPU in a stream of their own, through pinned memory.

    Args:
        device: whose activations they are. Of a CPU the host's memory is its own.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def take(self, pieces: Sequence[torch.Tensor], sizes: Sequence[int]) -> tuple[Pending, torch.Tensor]:
        """Returns a row in the host's memory with `pieces` side by side, and when it is there.

        Args:
            pieces: rows of bytes on the device, whose memory is free once the copy is made.
            sizes: what each takes in the row, its own length or more.
        """
        row = torch.empty(sum(sizes), dtype=torch.uint8, pin_memory=self._stream is not None)
        if self._stream is None:
            fill(row, pieces, sizes)
            return Copied(None), row
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            fill(row, pieces, sizes)
        for piece in pieces:
            piece.record_stream(self._stream)
        return Copied(self._stream.record_event()), row

    def give(self, row: torch.Tensor) -> tuple[Pending, torch.Tensor]:
        """Returns `row` on the device, and when it is there."""
        if self._stream is None:
            return Copied(None), row
        here = torch.empty(len(row), dtype=torch.uint8, device=self._device)
        self._stream.wait_stream(torch.cuda.current_stream(self._device))  # what used this memory before
        with torch.cuda.stream(self._stream):
            here.copy_(row, non_blocking=True)
        here.record_stream(self._stream)
        return Copied(self._stream.record_event()), here


def fill(row: torch.Tensor, pieces: Sequence[torch.Tensor], sizes: Sequence[int]) -> None:
    """Copies `pieces`, rows of bytes, into `row`, each in its share of it."""
    for share, piece in zip(row.split(list(sizes)), pieces, strict=True):
        share[: len(piece)].copy_(piece, non_blocking=True)
