"""Makes a rank leave at once when it is told to, or when the process that started it is gone.

A wait inside Gloo or NCCL runs in C++, where Python's signal handlers are not called. So a signal has two
ways out of the process:

    signal ──> handler in the main thread ──> KeyboardInterrupt, if the main thread runs Python
       └─────> wake-up socket ──> watching thread ── grace period over ──> leave(signal)

The main thread has the grace period to close its files and leave by itself; then the process ends wherever
it is. An elastic agent would otherwise wait half a minute before it kills.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
GRACE_SECONDS = 1.0
PARENT_CHECK_SECONDS = 0.2


class Guard:
    """Watches over this process while used as a context. Must be entered in the main thread.

    Args:
        leave: ends the process; called in the watching thread with the signal's number, does not return.
        parent: the process whose end is ours too.
        note: called in the main thread when it is about to be interrupted: the last moment at which what it
            does is still in its place.
    """

    def __init__(self, leave: Callable[[int], None], *, parent: int, note: Callable[[], None] = lambda: None) -> None:
        self._leave = leave
        self._note = note
        self._parent = parent
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="penstock-guard", daemon=True)
        self._previous: dict[signal.Signals, Any] = {}
        self._settled = False
        self.stopped_by: int | None = None

    def __enter__(self) -> Self:
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._previous_fd = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        self._previous = {number: signal.signal(number, self._interrupt) for number in STOP_SIGNALS}
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._previous_fd)
        self._thread.join()
        self._reader.close()
        self._writer.close()

    def settle(self) -> None:
        """Keeps later signals from interrupting the main thread, which is on its way out already."""
        self._settled = True

    def is_orphaned(self) -> bool:
        """Returns whether the process that started this one is gone."""
        return os.getppid() != self._parent

    def stop(self) -> None:
        """Asks this process to leave, as a signal from outside would. For any thread."""
        os.kill(os.getpid(), signal.SIGTERM)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self.stopped_by is None and not self._settled:  # a second signal must not break into the clean-up
            self.stopped_by = number
            self._note()
            raise KeyboardInterrupt

    def _watch(self) -> None:
        orphaned = False
        while not self._closed.is_set():
            number = self._wait_for_signal()
            if number is not None:
                if not self._closed.wait(GRACE_SECONDS):
                    self._leave(number)
                return
            if self.is_orphaned() and not orphaned:
                orphaned = True
                self.stop()

    def _wait_for_signal(self) -> int | None:
        """Returns the stop signal that arrived within one check interval; other signals are not ours."""
        ready, _, _ = select.select([self._reader], [], [], PARENT_CHECK_SECONDS)
        numbers = self._reader.recv(64) if ready else b""
        return next((number for number in numbers if number in STOP_SIGNALS), None)
