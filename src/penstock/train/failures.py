"""How a rank ended, which ending came first, and how that is told to a person.

When one rank dies its neighbours fail too: their connections break, or the launcher stops them. Only the
first cause is of use, so endings are ordered by what they can have been caused by, then by time.
"""

from __future__ import annotations

import enum
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from penstock.errors import RankFailedError

STOPPED_LATER_SECONDS = 3.0
"""A rank that is killed this long after the first ending was killed by the launcher for not leaving."""


class Ending(enum.Enum):
    """Why a rank ended without finishing."""

    USER_ERROR = "user error"
    ERROR = "error"
    KILLED = "killed"
    EXITED = "exited"
    LOST_CONNECTION = "lost connection"
    STOPPED = "stopped"


# An ending of a later row may be the consequence of one of an earlier row, never the other way round.
_PRECEDENCE = {
    Ending.USER_ERROR: 0,
    Ending.ERROR: 0,
    Ending.KILLED: 0,
    Ending.EXITED: 0,
    Ending.LOST_CONNECTION: 1,
    Ending.STOPPED: 2,
}

_SIGNAL_HINTS = {
    signal.SIGKILL: "somebody's kill -9, or the system ran out of memory: see its kernel log",
    signal.SIGSEGV: "a crash in native code",
    signal.SIGABRT: "native code gave up",
    signal.SIGBUS: "a crash in native code, often a full /dev/shm or a truncated file",
}

# How torch words a broken or overdue connection; most of these errors are a plain RuntimeError.
_LOST_CONNECTION = (
    "connection closed by peer",
    "connection reset by peer",
    "connection refused",
    "broken pipe",
    "socket closed",
    "connectfullmesh failed",
    "timed out waiting",
    "failed to recv",
    "failed to send",
    "remote process exited",
)


@dataclass(frozen=True)
class Position:
    """Where a rank is: the step, the op and, if it waits, for whom (`"rank 0"`)."""

    op: str
    step: int | None = None
    waiting_for: str | None = None

    def __str__(self) -> str:
        step = "" if self.step is None else f" of step {self.step}"
        waiting = "" if self.waiting_for is None else f", waiting for {self.waiting_for}"
        return f"{self.op}{step}{waiting}"


@dataclass(frozen=True)
class Failure:
    """One rank's ending. `seconds` is the wall-clock time at which it ended, as far as is known."""

    rank: int
    ending: Ending
    seconds: float
    message: str = ""
    traceback: str = ""
    position: Position | None = None

    def at(self, position: Position | None) -> Failure:
        """Returns the same failure, told with where the rank was."""
        return replace(self, position=position)


def died(rank: int, exit_code: int, *, seconds: float) -> Failure:
    """Returns the failure of a rank that ended without a word; `exit_code` < 0 is a signal's number."""
    if exit_code >= 0:
        return Failure(rank, Ending.EXITED, seconds, f"ended with exit code {exit_code} and gave no reason")
    if -exit_code == signal.SIGTERM:
        return Failure(rank, Ending.STOPPED, seconds, "SIGTERM")
    return Failure(rank, Ending.KILLED, seconds, f"was killed by {_signal_text(-exit_code)}")


def first_cause(failures: Sequence[Failure]) -> Failure:
    """Returns the failure that the others may have followed from.

    A rank killed long after the first ending did not leave when it was told to, which is a consequence.
    """
    start = min(failure.seconds for failure in failures)

    def order(failure: Failure) -> tuple[int, float, int]:
        late_kill = failure.ending is Ending.KILLED and failure.seconds > start + STOPPED_LATER_SECONDS
        precedence = len(_PRECEDENCE) if late_kill else _PRECEDENCE[failure.ending]
        return precedence, failure.seconds, failure.rank

    return min(failures, key=order)


def is_lost_connection(error: BaseException) -> bool:
    """Returns whether `error`, or one that it was raised from, says that a peer went away."""
    current: BaseException | None = error
    while current is not None:
        if isinstance(current, ConnectionError | RankFailedError):  # another rank is to blame
            return True
        text = str(current).lower()
        if isinstance(current, RuntimeError) and any(words in text for words in _LOST_CONNECTION):
            return True
        current = current.__cause__ or current.__context__
    return False


def tell(failure: Failure, *, others: Mapping[int, Position] | None = None) -> str:
    """Returns the message for a person: the failure, where the rank and the `others` were, the traceback."""
    if failure.ending is Ending.USER_ERROR:
        return failure.message
    lines = [f"rank {failure.rank} {_what_happened(failure)}"]
    if failure.position is not None:
        lines.append(f"  it was at {failure.position}")
    for rank, position in sorted((others or {}).items()):
        if rank != failure.rank:
            lines.append(f"  rank {rank} was at {position}")
    if failure.traceback:
        lines.append(failure.traceback.rstrip())
    return "\n".join(lines)


def _what_happened(failure: Failure) -> str:
    if failure.ending is Ending.ERROR:
        return f"failed: {failure.message}"
    if failure.ending is Ending.LOST_CONNECTION:
        return f"lost its connection to another rank: {failure.message}"
    if failure.ending is Ending.STOPPED:
        return f"was stopped: {failure.message}"
    return failure.message


def _signal_text(number: int) -> str:
    try:
        known = signal.Signals(number)
    except ValueError:
        return f"signal {number}"
    hint = _SIGNAL_HINTS.get(known)
    return known.name if hint is None else f"{known.name} ({hint})"
