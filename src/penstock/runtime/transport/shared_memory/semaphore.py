"""POSIX semaphores in shared memory, by the C library's own functions."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable

BYTES = 64
"""Room for a sem_t, with a cache line of its own; glibc's and musl's are 32 bytes."""


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


def _function(library: ctypes.CDLL, name: str, *arguments: type) -> Callable[..., int]:
    function = getattr(library, name)
    function.argtypes, function.restype = arguments, ctypes.c_int
    return function  # type: ignore[no-any-return]


try:
    # PyDLL keeps the interpreter's lock: to hand it over would take longer than these calls do.
    _QUICK, _SLOW = ctypes.PyDLL(None), ctypes.CDLL(None)
    _INIT = _function(_QUICK, "sem_init", ctypes.c_void_p, ctypes.c_int, ctypes.c_uint)
    post = _function(_QUICK, "sem_post", ctypes.c_void_p)
    _TRY = _function(_QUICK, "sem_trywait", ctypes.c_void_p)
    _CLOCK = time.CLOCK_MONOTONIC
    _WAIT = _function(_SLOW, "sem_clockwait", ctypes.c_void_p, ctypes.c_int, ctypes.POINTER(_Timespec))
    AVAILABLE = True
    """Whether this system has them."""
except (AttributeError, OSError, TypeError):  # not POSIX, or a C library without waits by a clock that nobody sets
    AVAILABLE = False


def make(address: int) -> None:
    """Makes a semaphore of count 0 at `address`, in memory that processes share."""
    if _INIT(address, 1, 0) != 0:
        raise OSError("sem_init failed")


def take(address: int) -> bool:
    """Returns whether the count was above 0 and is one less now; never blocks."""
    return _TRY(address) == 0


def wait(address: int, seconds: float) -> bool:
    """Returns what `take` does, having slept for at most `seconds`; a signal ends it early."""
    until = time.clock_gettime(_CLOCK) + seconds
    whole = int(until)
    moment = _Timespec(whole, int((until - whole) * 1e9))
    return _WAIT(address, _CLOCK, ctypes.byref(moment)) == 0
