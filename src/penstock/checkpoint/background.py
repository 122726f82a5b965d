"""Saves while training goes on.

    step n   |save|  next steps …                              |save|
              copy   thread: write, sync, report                agree, or raise what went wrong
                     rank 0's: wait for the reports, commit

The copy is taken before `save` returns; nothing that comes later is in the checkpoint. Ranks tell rank 0 through small
files beside their shards, because the way between the ranks belongs to the steps that go on. The next `save`, or
`wait`, agrees over all ranks how it went.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec

from penstock.checkpoint.directory import report_name
from penstock.checkpoint.ranks import Ranks
from penstock.checkpoint.shard import Shard
from penstock.checkpoint.write import REPORTS, Label, Report, attempt, clear, commit, finish, write_own

_GRACE_SECONDS = 10.0
"""How long rank 0 waits for others' reports when its own program has ended without `wait`."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.002, 0.5


class Writing:
    """A checkpoint that a thread is writing.

    Args:
        file: this rank's; its directory exists.
        shard: tensors that nobody changes while it is written.
        label: what the manifest says.
        ranks: this rank among all.
        keep: newest checkpoints that stay; None keeps all.
        ready: waits, in the thread, until the copies are complete.
        timeout_seconds: deadline of rank 0's wait for the other ranks' reports, and of `join`.
    """

    def __init__(
        self,
        file: Path,
        shard: Shard,
        label: Label,
        *,
        ranks: Ranks,
        keep: int | None,
        ready: Callable[[], None],
        timeout_seconds: float,
    ) -> None:
        self.file = file
        self._shard, self._label, self._ranks, self._ready = shard, label, ranks, ready
        self._keep = keep
        self._timeout_seconds = timeout_seconds
        self._report = Report(error=f"rank {ranks.rank}: the thread that writes did not end")
        self._committed: Report | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"checkpoint of step {label.step}")
        self._thread.start()

    def join(self) -> None:
        """Waits until this rank has written; raises nothing."""
        self._stop.set()
        self._thread.join(self._timeout_seconds)

    def finish(self) -> None:
        """Waits until all ranks have written and the manifest is there. Every rank calls it.

        Raises:
            CheckpointError: Any rank failed; the same message on every rank.
        """
        self.join()
        ranks = self._ranks
        finish(
            self.file, self._report, self._label, rank=ranks.rank, exchange=ranks.exchange, committed=self._committed
        )
        if ranks.rank == 0 and self._committed is None:
            self._clear()

    def _run(self) -> None:
        ranks = self._ranks
        self._report = attempt(ranks.rank, self._write)
        if ranks.rank:
            attempt(ranks.rank, self._tell)
        elif not self._report.error:
            reports = self._reports()
            if reports and not any(report.error for report in reports):
                self._committed = attempt(0, partial(commit, self.file.parent, reports, self._label))
                if not self._committed.error:
                    self._clear()

    def _clear(self) -> None:
        directory = self.file.parent
        clear(directory.parent, directory, keep=self._keep)

    def _write(self) -> Report:
        self._ready()
        return write_own(self.file, self._shard)

    def _tell(self) -> Report:
        """Leaves this rank's report where rank 0 finds it; where the disk fails, `finish` tells it instead."""
        file = self.file.parent / report_name(self.file.name)
        temporary = file.with_name(f"{file.name}.tmp")
        temporary.write_bytes(msgspec.json.encode(self._report))
        os.replace(temporary, file)
        return self._report

    def _reports(self) -> list[Report] | None:
        """Returns every rank's report as soon as they are there, None if they are not and `finish` is called."""
        names = [self.file.name.replace("rank-0", f"rank-{rank}") for rank in range(1, self._ranks.num_ranks)]
        files = [self.file.parent / report_name(name) for name in names]
        deadline = time.monotonic() + self._timeout_seconds
        pause = _FIRST_PAUSE
        while not all(file.exists() for file in files):
            if time.monotonic() > deadline or self._stop.wait(pause):
                return None
            if not threading.main_thread().is_alive():
                deadline = min(deadline, time.monotonic() + _GRACE_SECONDS)
            pause = min(2 * pause, _LONGEST_PAUSE)
        try:
            return [self._report, *(REPORTS.decode(file.read_bytes()) for file in files)]
        except (OSError, msgspec.DecodeError):
            return None
