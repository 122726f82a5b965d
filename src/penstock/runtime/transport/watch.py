"""The control connection: who is alive, who is where, who failed first. It does not use the data transport.

A wait inside Gloo or NCCL cannot be interrupted from within. So every rank has a thread that writes where it
is to a key-value store twice a second and reads the others. When a rank fails it writes why before it raises;
when one falls silent the others notice. A rank that is still blocked after that prints the report and exits.
"""

from __future__ import annotations

import atexit
import json
import os
import sys
import threading
import time
from datetime import timedelta

from torch import distributed as dist

from penstock.runtime.transport.cursor import Cursor

PERIOD_SECONDS = 0.5
LOST_SECONDS = 15.0
GRACE_SECONDS = 3.0
_FAILED = "failed"
_LEFT = "left"


class Watch:
    """One rank's view of the others.

    Attributes:
        report: why the pipeline cannot go on; None while it can.
    """

    def __init__(self, store: dist.Store, *, rank: int, num_ranks: int) -> None:
        self.rank, self.num_ranks = rank, num_ranks
        self.cursor = Cursor(rank)
        self.report: str | None = None
        self._store: dist.Store = store.clone()  # type: ignore[attr-defined]  # missing in torch's stub
        self._store.set_timeout(timedelta(seconds=LOST_SECONDS))
        self._lock = threading.RLock()  # the collector may close a pipeline whose watch has it
        self._beats = 0
        self._heard: dict[int, tuple[int, float, str]] = {}
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        self._around: tuple[dist.Store, str] | None = None

    def start(self) -> None:
        """Starts to beat; every rank has made its watch by then."""
        atexit.register(self.close)
        self._beat()
        self._thread = threading.Thread(target=self._run, name=f"penstock watch of rank {self.rank}", daemon=True)
        self._thread.start()

    def surround(self, store: dist.Store, *, name: str) -> None:
        """Takes part in what the failure of one pipeline means for others: that of data-parallel replicas.

        Args:
            store: where all of them tell of their failures.
            name: of this rank's pipeline among them.
        """
        with self._lock:
            own = store.clone()  # type: ignore[attr-defined]  # missing in torch's stub
            own.set_timeout(timedelta(seconds=LOST_SECONDS))
            self._around = (own, name)

    def close(self) -> None:
        """Stops the thread and tells the others that this rank left on purpose."""
        if not self._closed.is_set():
            self._closed.set()
            atexit.unregister(self.close)
            # A pipeline that nobody holds any more is closed by whichever thread finds it: perhaps by this very one.
            if self._thread is not None and self._thread is not threading.current_thread():
                self._thread.join(timeout=GRACE_SECONDS)
            if self.report is None:
                self._try_beat()
            self._count_left(1)

    def all_have_left(self) -> bool:
        """Returns whether every rank has closed its pipeline, or the store that would tell of it is gone."""
        return self._count_left(0) >= self.num_ranks

    def _count_left(self, more: int) -> int:
        with self._lock:
            try:
                return int(self._store.add(_LEFT, more))
            except RuntimeError:  # the store went down with the rank or launcher that held it
                return self.num_ranks

    def disconnect(self) -> None:
        """Gives the control connection up, after all have left."""
        with self._lock:
            self._store, self._around = dist.HashStore(), None

    def fail(self, reason: str) -> str:
        """Publishes why this rank fails, unless another was first; returns the first reason."""
        with self._lock:
            try:
                first = self._store.compare_set(_FAILED, "", f"rank {self.rank} {reason}").decode()
                if self._around is not None:
                    store, name = self._around
                    store.compare_set(_FAILED, "", f"{name}: {first}")
            except RuntimeError:  # the store went down with the rank or launcher that held it
                first = f"rank {self.rank} {reason}"
        self.report = self.report or first
        return self.report

    def diagnose_replica(self, reason: str) -> str:
        """Returns why a call over data-parallel replicas failed, after giving the culprit time to say so."""
        self._await_report()
        return self.report or self.fail(f"lost a data-parallel replica of its stages: {reason}")

    def diagnose(self, reason: str, *, peer: int) -> str:
        """Returns why a message from or to `peer` failed, after giving the culprit time to say so."""
        self._await_report(peer)
        return self.report or self.fail(f"lost rank {peer}: {reason}. {self._where(peer)}")

    def _await_report(self, peer: int | None = None) -> None:
        """Waits a while for somebody's report; no longer once `peer` has fallen silent."""
        deadline = time.monotonic() + GRACE_SECONDS
        while time.monotonic() < deadline and self.report is None:
            try:
                self._read_failure()
            except RuntimeError:  # the store went down with the rank or launcher that held it
                return
            if peer is not None and self._silent(peer, PERIOD_SECONDS * 4):
                return
            time.sleep(0.05)

    def _run(self) -> None:
        while not self._closed.wait(PERIOD_SECONDS):
            try:
                with self._lock:
                    self._beat()
                    self._listen()
                self._read_failure()
            except RuntimeError:
                if self._closed.is_set():
                    return
                self.report = self.report or "lost the control connection: the process that holds its store is gone"
            if self.report is None and self.cursor.call:
                lost = next((rank for rank in self._heard if self._silent(rank, LOST_SECONDS)), None)
                if lost is not None:
                    self.fail(f"has not heard of rank {lost} for {LOST_SECONDS:g} s. {self._where(lost)}")
            if self.report is not None:
                self._leave()
                return

    def _leave(self) -> None:
        """Gives the main thread time to raise by itself, then ends the process."""
        step = self.cursor.step
        end = time.monotonic() + GRACE_SECONDS
        while time.monotonic() < end:
            if self._closed.wait(0.05) or not self.cursor.call or self.cursor.step != step:
                return
        sys.stderr.write(f"penstock: {self.report}\npenstock: rank {self.rank} was {self.cursor}; it ends now\n")
        sys.stderr.flush()
        os._exit(1)

    def _try_beat(self) -> None:
        try:
            with self._lock:
                self._beat()
        except RuntimeError:  # the others and the store may be gone already
            return

    def _beat(self) -> None:
        self._beats += 1
        where = "gone: it closed its pipeline" if self._closed.is_set() else str(self.cursor)
        self._store.set(f"beat/{self.rank}", json.dumps([self._beats, where]))

    def _listen(self) -> None:
        others = [rank for rank in range(self.num_ranks) if rank != self.rank]
        keys = [f"beat/{rank}" for rank in others]
        if not keys or not self._store.check(keys):
            return
        now = time.monotonic()
        for rank, data in zip(others, self._store.multi_get(keys), strict=True):
            beats, where = json.loads(data)
            if rank not in self._heard or self._heard[rank][0] != beats:
                self._heard[rank] = (beats, now, where)

    def _read_failure(self) -> None:
        with self._lock:
            if self.report is None and self._store.check([_FAILED]):
                self.report = self._store.get(_FAILED).decode()
            if self.report is None and self._around is not None and self._around[0].check([_FAILED]):
                self.report = self._around[0].get(_FAILED).decode()

    def _silent(self, rank: int, seconds: float) -> bool:
        return rank in self._heard and time.monotonic() - self._heard[rank][1] > seconds

    def _where(self, rank: int) -> str:
        if rank not in self._heard:
            return f"Rank {rank} was never heard of"
        _, at, where = self._heard[rank]
        ago = time.monotonic() - at
        return f"Rank {rank} was last heard of {ago:.1f} s ago, {where}; rank {self.rank} was {self.cursor}"
