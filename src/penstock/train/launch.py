"""Starts the ranks of a run on this host and tells in one message how they ended.

    penstock train ──> launch ──> torch's elastic agent ──> rank 0, rank 1, …   (same command, `is_worker()`)
    torchrun ────────────────────> torch's elastic agent ──> rank 0, rank 1, …   (on every host)

Importing this module is cheap: torch is loaded once arguments and port are found to be good.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Self

from penstock.errors import UserError
from penstock.train.failures import Ending, first_cause, tell
from penstock.train.guard import STOP_SIGNALS
from penstock.train.processes import LAUNCHER_PID, is_worker

if TYPE_CHECKING:
    from penstock.train.elastic import Outcome

__all__ = ["is_worker", "launch"]

_SIGNAL_NAMES = {signal.SIGINT: "Ctrl-C"}

KEEPS_MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(1 << 31), "MALLOC_MMAP_THRESHOLD_": str(1 << 30)}
"""What glibc reads when a process starts: memory that is freed stays the process's, up to these bytes.

Every step asks for the same memory again, and each page that had been given back costs a fault.
"""


def launch(command: Sequence[str], *, ranks: int, port: int = 0, say: Callable[[str], None] | None = None) -> int:
    """Returns the exit code of `command` run as `ranks` processes on this host.

    Nothing listens beyond loopback, and no process is left behind however the run ends. Each rank is given
    its share of the cores as OMP_NUM_THREADS, and keeps the memory that it frees for its next step, unless the
    environment says otherwise. Call it in the main thread: only there can Ctrl-C be taken care of.

    Args:
        command: program and arguments; the process must enter `penstock.train.processes.worker`.
        ranks: how many processes.
        port: where the ranks meet, on 127.0.0.1; 0 takes any free port.
        say: receives the message about a failure or a stop; by default it goes to stderr.

    Returns:
        0 if all ranks finished; 2 after a rank's UserError; 1 after any other failure; 128 + the signal's
        number when this process was told to stop (130 for Ctrl-C).

    Raises:
        UserError: if `ranks` or `port` cannot be had, or the command cannot be started.
    """
    if ranks < 1:
        raise UserError(f"ranks={ranks}: a run needs at least one rank, e.g. ranks=2")
    say = say or _say_to_stderr
    with _listen(port) as listener, _StopRequest() as stop:
        outcome = _run(command, ranks=ranks, listener=listener, stop=stop)
    if stop.number is not None and _was_stopped(outcome):
        say(_stop_message(stop.number, outcome, ranks=ranks))
        return 128 + stop.number
    return _report(outcome, say=say)


def _run(command: Sequence[str], *, ranks: int, listener: socket.socket, stop: _StopRequest) -> Outcome:
    from penstock.train.elastic import LocalRun  # imports torch

    run = LocalRun(
        command,
        ranks=ranks,
        listener=listener,
        environment=_rank_environment(ranks),
        stop_asked=lambda: stop.number is not None,
    )
    stop.on_second = run.kill
    try:
        return run.run()
    except OSError as error:
        raise UserError(f"{command[0]} cannot be started: {error}; check the path") from error


class _StopRequest:
    """Notes the first stop signal while used as a context; a second one calls `on_second`."""

    def __init__(self) -> None:
        self.number: int | None = None
        self.on_second: Callable[[], None] | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        self._previous = {number: signal.signal(number, self._handle) for number in STOP_SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.number is None:
            self.number = number
        elif self.on_second is not None:
            self.on_second()


def _was_stopped(outcome: Outcome) -> bool:
    """Returns whether the ranks ended because they were told to, by us or by whoever told us as well."""
    if outcome.stopped:
        return True
    return bool(outcome.failures) and first_cause(outcome.failures).ending is Ending.STOPPED


def _report(outcome: Outcome, *, say: Callable[[str], None]) -> int:
    if not outcome.failures:
        return 0
    cause = first_cause(outcome.failures)
    if cause.position is None and cause.rank in outcome.positions:
        cause = cause.at(outcome.positions[cause.rank])
    say(tell(cause, others=outcome.positions))
    return 2 if cause.ending is Ending.USER_ERROR else 1


def _stop_message(number: int, outcome: Outcome, *, ranks: int) -> str:
    name = _SIGNAL_NAMES.get(signal.Signals(number), signal.Signals(number).name)
    steps = [position.step for position in outcome.positions.values() if position.step is not None]
    where = f" in step {min(steps)}" if steps else ""
    return f"stopped by {name}{where}; all {ranks} ranks have ended"


def _listen(port: int) -> socket.socket:
    """Returns a socket that listens on loopback; torch's own would listen on every interface."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", port))
        listener.listen()
    except (OSError, OverflowError) as error:
        listener.close()
        raise UserError(_port_message(port, error)) from error
    return listener


def _port_message(port: int, error: Exception) -> str:
    code = error.errno if isinstance(error, OSError) else None
    if code == errno.EADDRINUSE:
        return f"port {port} is in use by another process; choose another one, or 0 for any free port"
    if code == errno.EACCES:
        return f"port {port} may not be opened by this user; choose one from 1024 on, or 0 for any free port"
    return f"port {port} cannot be opened ({error}); choose one from 1024 to 65535, or 0 for any free port"


def _rank_environment(ranks: int) -> dict[str, str]:
    loopback = "lo0" if sys.platform == "darwin" else "lo"
    environment = {
        LAUNCHER_PID: str(os.getpid()),
        "GLOO_SOCKET_IFNAME": loopback,
        "NCCL_SOCKET_IFNAME": loopback,
    }
    defaults = {"OMP_NUM_THREADS": str(max(1, _usable_cores() // ranks)), **KEEPS_MEMORY}
    return environment | {name: value for name, value in defaults.items() if name not in os.environ}


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _say_to_stderr(message: str) -> None:
    print(message, file=sys.stderr)
