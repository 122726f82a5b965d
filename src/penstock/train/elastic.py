"""torch's elastic agent, fitted to one host: nothing listens beyond loopback, nothing waits for other hosts.

torch's own c10d rendezvous would open a second store on every interface for the ranks. One host needs no
meeting of agents, so the rendezvous here hands out the one store that the launcher already has.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import socket
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch.distributed import PrefixStore, TCPStore
from torch.distributed.elastic.agent.server.api import WorkerSpec
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import LogsDest, LogsSpecs, SignalException
from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousInfo, RendezvousStoreInfo

from penstock.train.beacon import read_positions
from penstock.train.failures import Ending, Failure, Position, died

LOOPBACK = "127.0.0.1"
_MONITOR_SECONDS = 0.1
_SHUTDOWN_SECONDS = 5  # a rank leaves on SIGTERM within its grace period of one second; later it is killed


@dataclass(frozen=True)
class Outcome:
    """How a run ended: the failures of its ranks, if any, and where each rank was seen last."""

    stopped: bool
    failures: Sequence[Failure]
    positions: Mapping[int, Position]


class LocalRun:
    """One run of `command` as `ranks` processes on this host.

    Args:
        command: a program and its arguments.
        ranks: how many processes.
        listener: a listening socket on loopback; the store takes it over.
        environment: what the ranks get in addition to this process's environment.
        stop_asked: asked ten times a second; once it says yes, the ranks are stopped.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        ranks: int,
        listener: socket.socket,
        environment: Mapping[str, str],
        stop_asked: Callable[[], bool],
    ) -> None:
        port = listener.getsockname()[1]
        self._ranks = ranks
        self._store = TCPStore(
            LOOPBACK, port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach()
        )
        self._directory = Path(tempfile.mkdtemp(prefix="penstock-"))
        spec = WorkerSpec(
            role="rank",
            local_world_size=ranks,
            entrypoint=command[0],
            args=tuple(argument.replace("$", "$$") for argument in command[1:]),  # the agent expands ${…}
            rdzv_handler=_LoopbackRendezvous(self._store, port=port, stop_asked=stop_asked),
            max_restarts=0,
            monitor_interval=_MONITOR_SECONDS,
        )
        self._agent = LocalElasticAgent(
            spec, _RankFiles(self._directory, environment=environment), shutdown_timeout=_SHUTDOWN_SECONDS
        )

    def run(self) -> Outcome:
        """Runs the ranks to their end. Raises OSError if the command cannot be started."""
        try:
            failures = self._run_agent()
            return Outcome(False, failures, self._positions())
        except SignalException:
            return Outcome(True, (), self._positions())
        finally:
            shutil.rmtree(self._directory, ignore_errors=True)

    def kill(self) -> None:
        """Kills all ranks that still run."""
        for process in self._agent.get_worker_group().workers:
            if process.id is not None:
                try:
                    os.killpg(process.id, signal.SIGKILL)
                except ProcessLookupError:
                    continue

    def _run_agent(self) -> list[Failure]:
        with _quiet_agent():
            result = self._agent.run()
        failures = []
        for rank, ending in result.failures.items():
            record = _read_record(self._directory, rank=rank)
            failures.append(record or died(rank, ending.exitcode, seconds=ending.timestamp))
        return failures

    def _positions(self) -> dict[int, Position]:
        """Returns where each rank was last: by its own record if it left by itself, else by the store."""
        positions = read_positions(self._store, ranks=self._ranks)
        for rank in range(self._ranks):
            record = _read_record(self._directory, rank=rank)
            if record is not None and record.position is not None:
                positions[rank] = record.position
        return positions


class _LoopbackRendezvous(RendezvousHandler):
    """A meeting of one agent, which is also where the agent's monitor loop asks whether to go on."""

    def __init__(self, store: TCPStore, *, port: int, stop_asked: Callable[[], bool]) -> None:
        self._store = store
        self._port = port
        self._stop_asked = stop_asked
        self._run_id = uuid.uuid4().hex

    def get_backend(self) -> str:
        return "penstock-loopback"

    @property
    def use_agent_store(self) -> bool:
        return True  # so no rank opens a store of its own

    def next_rendezvous(self) -> RendezvousInfo:
        self._go_on()
        address = RendezvousStoreInfo(LOOPBACK, self._port)
        return RendezvousInfo(PrefixStore("agent", self._store), 0, 1, address)

    def num_nodes_waiting(self) -> int:
        self._go_on()
        return 0

    def is_closed(self) -> bool:
        return False

    def set_closed(self) -> None:
        return None

    def get_run_id(self) -> str:
        return self._run_id

    def shutdown(self) -> bool:
        return True

    def _go_on(self) -> None:
        if self._stop_asked():
            # Never SIGINT, which a rank that is not set up yet would answer with a traceback.
            raise SignalException("stopped", sigval=signal.SIGTERM)


class _RankFiles(LogsSpecs):
    """Lets ranks write to our own output, gives each a file for its error, and adds to their environment."""

    def __init__(self, directory: Path, *, environment: Mapping[str, str]) -> None:
        super().__init__(log_dir=str(directory))
        self._directory = directory
        self._environment = environment

    @property
    def root_log_dir(self) -> str:
        return str(self._directory)

    def reify(self, envs: dict[int, dict[str, str]]) -> LogsDest:
        console = dict.fromkeys(envs, "")
        files = {rank: str(_record_path(self._directory, rank=rank)) for rank in envs}
        for rank, variables in envs.items():
            variables.update(self._environment)
            variables["TORCHELASTIC_ERROR_FILE"] = files[rank]
        return LogsDest(stdouts=console, stderrs=dict(console), error_files=files)


def _record_path(directory: Path, *, rank: int) -> Path:
    return directory / f"rank{rank}.json"


def _read_record(directory: Path, *, rank: int) -> Failure | None:
    """Returns what a rank has written about its own end, if it has."""
    try:
        content = json.loads(_record_path(directory, rank=rank).read_text())["penstock"]
    except (OSError, KeyError):
        return None
    position = content["position"] and Position(**content["position"])
    return Failure(**content | {"ending": Ending(content["ending"]), "position": position})


@contextmanager
def _quiet_agent() -> Iterator[None]:
    """Keeps the agent from logging to the terminal and from taking over our handling of Ctrl-C and SIGTERM.

    It installs handlers for the signals in this variable, which torchrun sets in the same way. One must be
    named, so it is one that we do not handle.
    """
    variable = "TORCHELASTIC_SIGNALS_TO_HANDLE"
    previous = os.environ.get(variable)
    quit_handler = signal.getsignal(signal.SIGQUIT)
    logger = logging.getLogger("torch.distributed.elastic")
    silence, propagate = logging.NullHandler(), logger.propagate
    logger.addHandler(silence)
    logger.propagate = False
    os.environ[variable] = "SIGQUIT"
    try:
        yield
    finally:
        signal.signal(signal.SIGQUIT, quit_handler)
        logger.removeHandler(silence)
        logger.propagate = propagate
        os.environ.pop(variable)
        if previous is not None:
            os.environ[variable] = previous
