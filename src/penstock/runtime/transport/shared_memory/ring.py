"""One ring: a piece of anonymous memory that two processes map, with two semaphores, slots and data.

0      64     128              _DATA                      _DATA + capacity
| ready | room | 64 descriptions | data, from the end on to the beginning |
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os

from penstock.runtime.transport.shared_memory import description, semaphore

SLOTS = 64
"""Most frames under way at once."""

_READY, _ROOM, _TABLE = 0, semaphore.BYTES, 2 * semaphore.BYTES
_STRIDE = description.BYTES
_DATA = -(-(_TABLE + SLOTS * _STRIDE) // mmap.PAGESIZE) * mmap.PAGESIZE
_LINE = 64


class Ring:
    """One end's mapping of a ring, and its place in it: the frames that this end has written or read so far.

    Args:
        descriptor: of the memory; stays the caller's.

    Attributes:
        capacity: bytes of data.
        ready: address of the semaphore that counts frames to read.
        room: address of the semaphore that counts frames that have been read.
    """

    def __init__(self, descriptor: int) -> None:
        size = os.fstat(descriptor).st_size
        self._memory = mmap.mmap(descriptor, size)
        base = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        self.capacity = size - _DATA
        self.ready, self.room = base + _READY, base + _ROOM
        self._data = base + _DATA
        self._frames = 0
        self._at = 0
        self._described = [b""] * SLOTS

    def describe(self, text: bytes) -> None:
        """Writes the description of this end's next frame."""
        slot = self._frames % SLOTS
        if self._described[slot] != text:  # a steady pipeline sends the same again and again
            at = _TABLE + slot * _STRIDE
            self._memory[at : at + len(text)] = text
            self._described[slot] = text

    def description(self, length: int = _STRIDE) -> bytes:
        """Returns the first bytes of the description of this end's next frame."""
        at = _TABLE + self._frames % SLOTS * _STRIDE
        return self._memory[at : at + length]

    def write(self, address: int, length: int) -> None:
        """Copies this end's next frame in."""
        first = min(length, self.capacity - self._at)
        ctypes.memmove(self._data + self._at, address, first)
        if first < length:
            ctypes.memmove(self._data, address + first, length - first)
        self._advance(length)

    def read(self, address: int, length: int) -> None:
        """Copies this end's next frame out."""
        first = min(length, self.capacity - self._at)
        ctypes.memmove(address, self._data + self._at, first)
        if first < length:
            ctypes.memmove(address + first, self._data, length - first)
        self._advance(length)

    def _advance(self, length: int) -> None:
        self._frames += 1
        self._at = (self._at + occupied(length)) % self.capacity


def occupied(length: int) -> int:
    """Returns how much of a ring a frame of `length` bytes takes: whole cache lines."""
    return -(-length // _LINE) * _LINE


def make_ring(capacity: int) -> tuple[Ring, int]:
    """Returns a new ring and the descriptor of its memory, to hand over and close.

    Args:
        capacity: bytes of data, rounded up to whole pages.
    """
    size = _DATA + -(-capacity // mmap.PAGESIZE) * mmap.PAGESIZE
    descriptor = os.memfd_create("penstock", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(descriptor, size)
        # A memory that shrinks under a process that reads it would kill it.
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        ring = Ring(descriptor)
        semaphore.make(ring.ready)
        semaphore.make(ring.room)
    except BaseException:
        os.close(descriptor)
        raise
    return ring, descriptor
