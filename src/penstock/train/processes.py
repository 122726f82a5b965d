"""What a rank's process does around its work: join the others, be watched over, and say how it ended.

The same code serves `penstock train` on one host, whose launcher is `penstock.train.launch`, and `torchrun`
on many. Both start ranks by torch's elastic agent and tell them who they are in the environment.
"""

from __future__ import annotations

import datetime
import json
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import NoReturn

from penstock.errors import UserError
from penstock.train.beacon import Beacon, PositionSource
from penstock.train.failures import Ending, Failure, Position, is_lost_connection, tell
from penstock.train.guard import Guard

LAUNCHER_PID = "PENSTOCK_LAUNCHER_PID"
"""Set by our launcher for its ranks: its process id. It makes a rank end with its launcher, however early."""

_AGENT_VARIABLES = ("TORCHELASTIC_RUN_ID", "RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_FLUSH_SECONDS = 0.5
_HEARD_SECONDS = 2.0
"""How long a failed rank waits for the ranks of other hosts to hear of it."""


def is_worker() -> bool:
    """Returns whether this process was started as a rank, by our launcher or by torchrun."""
    return all(name in os.environ for name in _AGENT_VARIABLES)


class Worker:
    """This process as one rank of a run. Made by `worker`."""

    def __init__(self) -> None:
        self.rank = int(os.environ["RANK"])
        self.local_rank = int(os.environ["LOCAL_RANK"])
        self.world_size = int(os.environ["WORLD_SIZE"])
        self.local_world_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        self._beacon: Beacon | None = None
        self._source: PositionSource | None = None
        self._other_failure = ""
        self._stopped_at: Position | None = None
        self._leaving = threading.Lock()

    def report_position(self, source: PositionSource) -> None:
        """Has `source()` asked about twice a second, so that a failure is told with where every rank was."""
        self._source = source
        if self._beacon is not None:
            self._beacon.source = source

    def from_rank_0(self, name: str, make: Callable[[], str]) -> str:
        """Returns on every rank what `make()` has returned on rank 0. Every rank calls it, with a new name."""
        from torch.distributed.distributed_c10d import _get_default_store

        store, key = _get_default_store(), f"penstock/{name}/{_attempt()}"
        if self.rank == 0:
            store.set(key, make())
        return store.get(key).decode()

    def _connect(self, guard: Guard) -> None:
        """Starts publishing over a store connection of its own: a client's calls wait for one another."""
        from torch.distributed import TCPStore

        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])

        def leave(message: str) -> None:
            self._other_failure = message
            guard.stop()

        store = TCPStore(address, port)
        self._beacon = Beacon(
            store,
            rank=self.rank,
            attempt=_attempt(),
            on_failure=leave,
            is_orphaned=guard.is_orphaned,
        )
        self._beacon.source = self._source
        self._beacon.start()

    def _position(self) -> Position | None:
        return None if self._beacon is None else self._beacon.position()

    def _note_position(self) -> None:
        self._stopped_at = self._position()

    def _leave_stopped(self, number: int) -> NoReturn:
        message = self._other_failure or signal.Signals(number).name
        failure = self._failure(Ending.STOPPED, message)
        self._leave(failure.at(self._stopped_at or failure.position), exit_code=128 + number)

    def _leave_failed(self, error: BaseException) -> NoReturn:
        if isinstance(error, SystemExit):
            code = error.code if isinstance(error.code, int) else 1
            text = error.code if isinstance(error.code, str) else f"the program ended with exit code {code}"
            self._leave(self._failure(Ending.ERROR, text), exit_code=code)
        if isinstance(error, UserError):
            self._leave(self._failure(Ending.USER_ERROR, str(error)), exit_code=2)
        ending = Ending.LOST_CONNECTION if is_lost_connection(error) else Ending.ERROR
        trace = "".join(traceback.format_exception(_without_our_frame(error)))
        self._leave(self._failure(ending, f"{type(error).__name__}: {error}", trace=trace), exit_code=1)

    def _failure(self, ending: Ending, message: str, *, trace: str = "") -> Failure:
        return Failure(self.rank, ending, time.time(), message, trace, self._position())

    def _leave(self, failure: Failure, *, exit_code: int) -> NoReturn:
        """Ends the process without its exit handlers, which could wait for peers that are gone.

        The first of the two threads that may come here decides; the other waits for the end of the process.
        """
        self._leaving.acquire()
        _record(failure)
        beacon = self._beacon
        if beacon is not None and failure.ending is not Ending.STOPPED:
            _finish_in_time(lambda: beacon.announce_failure(f"rank {self.rank}: {failure.message}"))
            beacon.wait_until_heard(self.world_size - self.local_world_size, seconds=_HEARD_SECONDS)
        if LAUNCHER_PID not in os.environ:
            _finish_in_time(lambda: _print_failure(failure, beacon))
        elif os.getppid() != int(os.environ[LAUNCHER_PID]):
            _remove_records()
        _finish_in_time(_flush_output)
        _finish_in_time(_kill_children)
        os._exit(exit_code)


@contextmanager
def worker(*, backend: str = "gloo", timeout_seconds: float = 1800.0) -> Iterator[Worker]:
    """Yields this rank, watched over and joined to the others in torch's default process group.

    Enter it in the main thread and before heavy imports: from here on a stop signal or the launcher's end
    ends this process within about a second, even if it waits inside a transfer. An exception from the body
    is recorded for the launcher (under torchrun, also printed) and ends the process: nothing that is written
    after the `with` block runs then, nor do handlers registered with `atexit`.

    Args:
        backend: as `torch.distributed.init_process_group` takes it, e.g. `"gloo"`, `"cpu:gloo,cuda:nccl"`.
        timeout_seconds: after this time a transfer that does not get on fails.

    Raises:
        UserError: if this process was not started by an elastic agent.
    """
    if not is_worker():
        raise UserError("this process is no rank of a run; start it with `penstock train` or torchrun")
    this = Worker()
    parent = int(os.environ.get(LAUNCHER_PID, os.getppid()))
    with Guard(this._leave_stopped, parent=parent, note=this._note_position) as guard:
        try:
            _join(backend, timeout_seconds=timeout_seconds)
            this._connect(guard)
            yield this
            _part(this)
        except BaseException as error:
            guard.settle()
            if guard.stopped_by is not None:  # whatever was raised since then is its consequence
                this._leave_stopped(guard.stopped_by)
            if not (isinstance(error, SystemExit) and error.code in (0, None)):
                this._leave_failed(error)
            _part(this)
            raise


def _attempt() -> str:
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")


def _join(backend: str, *, timeout_seconds: float) -> None:
    """Joins the default process group through the agent's store, in which every rank is a client."""
    import torch.distributed

    timeout = datetime.timedelta(seconds=timeout_seconds)
    torch.distributed.init_process_group(backend, init_method="env://", timeout=timeout)


def _part(this: Worker) -> None:
    import torch.distributed

    if this._beacon is not None:
        this._beacon.close()
    torch.distributed.destroy_process_group()


def _record(failure: Failure) -> None:
    """Writes the failure where the agent looks for it; whole or not at all, for torn it breaks the agent."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not path:
        return
    details = {"py_callstack": failure.traceback or failure.message, "timestamp": str(int(failure.seconds))}
    content = {
        "message": {"message": failure.message, "extraInfo": details},  # what torchrun reads
        "penstock": asdict(failure) | {"ending": failure.ending.value},
    }
    try:
        with open(f"{path}.part", "w") as file:
            json.dump(content, file)
        os.replace(f"{path}.part", path)
    except OSError:  # the launcher is gone and so is its directory
        return


def _remove_records() -> None:
    """Removes what a killed launcher could not remove: the folder of its ranks' records."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path:
        shutil.rmtree(os.path.dirname(path), ignore_errors=True)


def _print_failure(failure: Failure, beacon: Beacon | None) -> None:
    """Tells the failure on this host's terminal, as torchrun's own report comes late and is hard to read.

    What is the user's to put right often fails on all ranks alike: the first of a host tells it for all.
    """
    host = os.environ.get("GROUP_RANK", "0")
    alike = failure.ending is Ending.USER_ERROR
    if alike and beacon is not None and not beacon.is_first_to_tell(failure.message, host=host):
        return
    signal_only = failure.ending is Ending.STOPPED and failure.message in signal.Signals.__members__
    if not signal_only:
        print(tell(failure), file=sys.stderr)


def _flush_output() -> None:
    sys.stdout.flush()
    sys.stderr.flush()


def _kill_children() -> None:
    """Ends helper processes such as a data loader's, which nobody else would end."""
    multiprocessing = sys.modules.get("multiprocessing")
    if multiprocessing is not None:
        for child in multiprocessing.active_children():
            child.kill()


def _without_our_frame(error: BaseException) -> BaseException:
    """Returns `error` with a traceback that starts in the caller's code, not in `worker`'s."""
    trace = error.__traceback__
    ours = trace is not None and trace.tb_frame.f_code.co_filename == __file__
    return error.with_traceback(trace.tb_next) if trace is not None and ours and trace.tb_next else error


def _finish_in_time(action: Callable[[], None]) -> None:
    """Does `action`, but does not wait long: the other thread may hold an output's lock for good."""
    thread = threading.Thread(target=action, daemon=True)
    thread.start()
    thread.join(_FLUSH_SECONDS)
