"""Tells the other side where this rank is, through the store that the elastic agent hosts.

Every rank writes its position under its own key about twice a second, from a thread of its own and over a
connection of its own, so a rank that is stuck in a transfer still has its last position on record. A rank
that fails says so under one common key, so ranks whose agent cannot see the failure (on another host) leave.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING

from penstock.train.failures import Position

if TYPE_CHECKING:
    from torch.distributed import Store

INTERVAL_SECONDS = 0.5


PositionSource = Callable[[], Position | None]
"""Gives the rank's position now. Called in another thread: quick, without locks or communication."""


class Beacon:
    """Publishes one rank's position and watches for another rank's failure.

    Args:
        store: a connection that nobody else uses.
        rank: this rank.
        attempt: which start of the ranks this is; an agent that restarts them keeps the store.
        on_failure: called once, in the beacon's thread, with the failing rank's message.
        is_orphaned: whether the agent is known to be gone, and perhaps its store: talking to a store that is
            gone makes torch print a warning.
    """

    def __init__(
        self,
        store: Store,
        *,
        rank: int,
        attempt: str,
        on_failure: Callable[[str], None],
        is_orphaned: Callable[[], bool],
    ) -> None:
        self._store = store
        self._rank = rank
        self._failure_key = f"penstock/failure/{attempt}"
        self._on_failure = on_failure
        self._is_orphaned = is_orphaned
        self._closed = threading.Event()
        self._published = ""
        self._thread = threading.Thread(target=self._run, name="penstock-beacon", daemon=True)
        self.source: PositionSource | None = None

    def start(self) -> None:
        """Starts publishing."""
        self._thread.start()

    def close(self) -> None:
        """Stops publishing, after at most one exchange with the store."""
        self._closed.set()
        self._thread.join(INTERVAL_SECONDS * 2)

    def position(self) -> Position | None:
        """Returns where the rank is now; a source that raises is told as the position, never raised."""
        try:
            return None if self.source is None else self.source()
        except Exception as error:
            return Position(f"an unknown place ({type(error).__name__}: {error})")

    def announce_failure(self, message: str) -> None:
        """Tells all ranks that this one has failed. A store that is gone already is no further failure."""
        self._closed.set()
        if self._is_orphaned():
            return
        try:
            self._store.set(self._failure_key, message)
        except RuntimeError:
            return

    def wait_until_heard(self, ranks: int, *, seconds: float) -> None:
        """Waits until `ranks` others have read this rank's failure, for at most `seconds`.

        The agent that hosts the store ends with its ranks; who has not read by then never hears.
        """
        deadline = time.monotonic() + seconds
        try:
            while not self._is_orphaned() and time.monotonic() < deadline:
                if int(self._store.add(f"{self._failure_key}/heard", 0)) >= ranks:
                    return
                time.sleep(INTERVAL_SECONDS / 10)
        except RuntimeError:
            return

    def is_first_to_tell(self, message: str, *, host: str) -> bool:
        """Returns whether no other rank of `host` has asked this about `message`; True where nobody can know."""
        if self._is_orphaned():
            return True
        digest = hashlib.sha256(message.encode()).hexdigest()
        try:
            return int(self._store.add(f"{self._failure_key}/told/{host}/{digest}", 1)) == 1
        except RuntimeError:
            return True

    def _run(self) -> None:
        while not self._closed.wait(INTERVAL_SECONDS) and not self._is_orphaned():
            try:
                failure = self._exchange()
            except RuntimeError:  # the store's host is gone, which the agent or the transport notices
                return
            if failure is not None and not self._closed.is_set():
                self._on_failure(failure)
                return

    def _exchange(self) -> str | None:
        position = self.position()
        text = "" if position is None else json.dumps(asdict(position))
        if text != self._published:
            self._store.set(_key(self._rank), text)
            self._published = text
        if not self._store.check([self._failure_key]):
            return None
        self._store.add(f"{self._failure_key}/heard", 1)
        return self._store.get(self._failure_key).decode()


def read_positions(store: Store, *, ranks: int) -> dict[int, Position]:
    """Returns the last published position of every rank that has published one."""
    positions = {}
    for rank in range(ranks):
        text = store.get(_key(rank)) if store.check([_key(rank)]) else b""
        if text:
            positions[rank] = Position(**json.loads(text))
    return positions


def _key(rank: int) -> str:
    return f"penstock/position/{rank}"
