"""Real processes over real Gloo. A test starts `workers/job.py`, as a person starts `penstock train`."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from penstock.errors import UserError
from penstock.train.launch import launch

ROOT = Path(__file__).resolve().parents[2]
JOB = Path(__file__).parent / "workers" / "job.py"
PATIENCE_SECONDS = 60.0  # for a start on a busy machine
LEAVING_SECONDS = 6.0  # for all processes to be gone
LISTEN_STATE = "0A"
LOOPBACK_ADDRESSES = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}


class Job:
    """A running command whose output is read from files, so that nothing blocks on a pipe."""

    def __init__(self, directory: Path, *command: str, interface: str) -> None:
        self.out, self.err, self.temporary = directory / "out", directory / "err", directory / "temporary"
        self.temporary.mkdir(parents=True)
        environment = dict(
            os.environ,
            PYTHONPATH=str(ROOT / "src"),
            TMPDIR=str(self.temporary),
            GLOO_SOCKET_IFNAME=interface,
        )
        environment.pop("OMP_NUM_THREADS", None)
        with self.out.open("w") as out, self.err.open("w") as err:
            self.process = subprocess.Popen(
                [sys.executable, *command], stdout=out, stderr=err, env=environment, start_new_session=True
            )
        self.seen: set[int] = {self.process.pid}

    def lines(self, word: str) -> list[list[str]]:
        """The words after `word` of each line of the output that starts with it."""
        return [line.split()[1:] for line in self.out.read_text().splitlines() if line.split()[:1] == [word]]

    def wait_for(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            self.seen |= _family(self.process.pid)
            assert self.process.poll() is None, f"ended early\n{self.err.read_text()}"
            assert time.monotonic() < deadline, f"took too long\n{self.err.read_text()}"
            time.sleep(0.02)
        self.seen |= _family(self.process.pid)

    def wait_for_ranks(self, count: int = 2) -> dict[int, int]:
        """Waits until all ranks are in the midst of their deed; returns rank -> process id."""
        self.wait_for(lambda: len(self.lines("pid")) == count)
        time.sleep(0.3)  # from the line to the transfer
        return {int(rank): int(process) for rank, process in self.lines("pid")}

    def finish(self) -> int:
        return self.process.wait(PATIENCE_SECONDS)

    def assert_nothing_left(self) -> None:
        deadline = time.monotonic() + LEAVING_SECONDS
        while any(_runs(process) for process in self.seen):
            assert time.monotonic() < deadline, f"still running: {[p for p in self.seen if _runs(p)]}"
            time.sleep(0.05)
        assert list(self.temporary.glob("penstock-*")) == []


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Job]]:
    jobs: list[Job] = []

    def start_job(*command: str, interface: str = "lo") -> Job:
        jobs.append(Job(tmp_path / f"job{len(jobs)}", *command, interface=interface))
        return jobs[-1]

    yield start_job
    for job in jobs:
        for process in job.seen | _family(job.process.pid):
            if _runs(process):
                os.kill(process, signal.SIGKILL)
        job.process.wait()


def test_ranks_join_share_the_cores_and_leave_without_noise(start: Callable[..., Job]) -> None:
    job = start(str(JOB), "finish")
    assert job.finish() == 0
    threads = max(1, len(os.sched_getaffinity(0)) // 2)
    assert sorted(job.lines("sum")) == [[rank, "2", str(threads), str(1 << 31)] for rank in ("0", "1")]
    assert sorted(job.lines("left")) == [["0"], ["1"]]
    assert job.err.read_text() == ""


def test_nothing_listens_beyond_loopback_and_only_the_launcher_hosts_a_store(
    start: Callable[..., Job],
) -> None:
    others = [name for _, name in socket.if_nameindex() if not name.startswith("lo")]
    job = start(str(JOB), "hang", interface=others[0] if others else "lo")  # Gloo would listen there
    ranks = job.wait_for_ranks()
    launcher = _listening_addresses(job.process.pid)
    assert launcher, "found no listening socket at all: the test looks in the wrong place"
    assert len(launcher) == 1
    for process in (job.process.pid, *ranks.values()):
        assert set(_listening_addresses(process)) <= LOOPBACK_ADDRESSES
    assert all(len(_listening_addresses(process)) <= 1 for process in ranks.values())  # Gloo's own


@pytest.mark.parametrize("whole_group", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_ctrl_c_ends_ranks_blocked_in_gloo_with_one_line(start: Callable[..., Job], whole_group: bool) -> None:
    job = start(str(JOB), "hang")
    job.wait_for_ranks()
    (os.killpg if whole_group else os.kill)(job.process.pid, signal.SIGINT)
    began = time.monotonic()
    assert job.finish() == 130
    assert time.monotonic() - began < LEAVING_SECONDS
    assert job.err.read_text() == "stopped by Ctrl-C in step 12; all 2 ranks have ended\n"
    job.assert_nothing_left()


@pytest.mark.parametrize("seconds", [0.7, pytest.param(2.2, marks=pytest.mark.slow)])
def test_ctrl_c_during_the_start_ends_it_with_one_line(start: Callable[..., Job], seconds: float) -> None:
    job = start(str(JOB), "hang")
    time.sleep(seconds)
    job.seen |= _family(job.process.pid)
    os.kill(job.process.pid, signal.SIGINT)
    assert job.finish() == 130
    assert job.err.read_text() == "stopped by Ctrl-C; all 2 ranks have ended\n"
    job.assert_nothing_left()


def test_sigterm_to_the_launcher_ends_all(start: Callable[..., Job]) -> None:
    job = start(str(JOB), "close_files")
    job.wait_for_ranks()
    job.process.send_signal(signal.SIGTERM)
    assert job.finish() == 128 + signal.SIGTERM
    assert job.err.read_text() == "stopped by SIGTERM; all 2 ranks have ended\n"
    assert sorted(job.lines("closed")) == [["0"], ["1"]], "a rank has time to clean up"
    job.assert_nothing_left()


@pytest.mark.slow
def test_a_second_ctrl_c_kills_a_rank_that_cannot_leave(start: Callable[..., Job]) -> None:
    job = start(str(JOB), "close_files", "1")
    os.kill(job.wait_for_ranks(1)[0], signal.SIGSTOP)
    job.process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    job.process.send_signal(signal.SIGINT)
    began = time.monotonic()
    assert job.finish() == 130
    assert time.monotonic() - began < 3.0, "waited for the stopped rank"
    job.assert_nothing_left()


@pytest.mark.parametrize("deed", ["hang", pytest.param("swallow", marks=pytest.mark.slow)])
def test_ranks_follow_a_killed_launcher(start: Callable[..., Job], deed: str) -> None:
    ranks = 2 if deed == "hang" else 1
    job = start(str(JOB), deed, str(ranks))
    job.wait_for_ranks(ranks)
    job.process.kill()
    job.finish()
    job.assert_nothing_left()
    assert job.err.read_text() == ""


def test_a_killed_rank_is_named_with_where_all_were(start: Callable[..., Job]) -> None:
    job = start(str(JOB), "hang")
    os.kill(job.wait_for_ranks()[1], signal.SIGKILL)
    assert job.finish() == 1
    assert job.err.read_text() == (
        "rank 1 was killed by SIGKILL (somebody's kill -9, or the system ran out of memory: see its kernel "
        "log)\n"
        "  it was at RECV stage 1 of step 12, waiting for rank 0\n"
        "  rank 0 was at RECV stage 0 of step 12, waiting for rank 1\n"
    )
    job.assert_nothing_left()


@pytest.mark.slow
def test_a_stopped_rank_that_swallows_every_exception_leaves_all_the_same(start: Callable[..., Job]) -> None:
    job = start(str(JOB), "swallow", "1")
    os.kill(job.wait_for_ranks(1)[0], signal.SIGTERM)
    assert job.finish() == 1
    assert job.err.read_text() == "rank 0 was stopped: SIGTERM\n"
    job.assert_nothing_left()


def test_a_user_error_is_printed_as_its_message_alone(start: Callable[..., Job]) -> None:
    job = start(str(JOB), "refuse")
    assert job.finish() == 2
    assert job.err.read_text() == "num_microbatches=3 does not fit; use a multiple of 4, e.g. 4\n"
    job.assert_nothing_left()


def test_another_error_is_printed_once_with_rank_and_traceback(start: Callable[..., Job]) -> None:
    job = start(str(JOB), "fail")
    assert job.finish() == 1
    message = job.err.read_text()
    assert message.startswith("rank 1 failed: ValueError: the loss is not finite\n")
    assert message.count("Traceback") == 1
    assert message.endswith("    raise error\nValueError: the loss is not finite\n")
    assert "processes.py" not in message, "our own frame is of no use to the reader"
    assert "Connection" not in message
    job.assert_nothing_left()


@pytest.mark.slow
def test_a_rank_that_exits_without_a_word_is_named(start: Callable[..., Job]) -> None:
    job = start(str(JOB), "exit_silently")
    assert job.finish() == 1
    assert job.err.read_text() == "rank 1 ended with exit code 7 and gave no reason\n"
    job.assert_nothing_left()


@pytest.mark.slow
def test_the_same_command_runs_under_two_torchrun_agents(start: Callable[..., Job]) -> None:
    agents = [start(*_torchrun(port), str(JOB), "finish") for port in [_free_port()] for _ in range(2)]
    assert [agent.finish() for agent in agents] == [0, 0], agents[0].err.read_text()
    sums = [line[:2] for agent in agents for line in agent.lines("sum")]
    assert sorted(sums) == [["0", "2"], ["1", "2"]]


@pytest.mark.slow
def test_under_torchrun_a_failure_is_told_on_both_hosts_and_ends_both(start: Callable[..., Job]) -> None:
    agents = [start(*_torchrun(port), str(JOB), "fail_apart") for port in [_free_port()] for _ in range(2)]
    for agent in agents:
        assert agent.finish() == 1
        agent.assert_nothing_left()
    texts = [agent.err.read_text() for agent in agents]
    here = "rank 1 failed: ValueError: the loss is not finite\nTraceback"
    there = "rank 0 was stopped: rank 1: ValueError: the loss is not finite\n"
    assert sorted((here in text, there in text) for text in texts) == [(False, True), (True, False)]


def test_a_port_in_use_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"port {port} is in use .* or 0 for any free port"):
            launch(["touch", str(tmp_path / "started")], ranks=1, port=port)
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize(("ranks", "port", "words"), [(0, 0, "ranks=0"), (1, 70000, "port 70000 cannot be")])
def test_sizes_that_cannot_be_are_refused(ranks: int, port: int, words: str) -> None:
    with pytest.raises(UserError, match=words):
        launch(["true"], ranks=ranks, port=port)


def _torchrun(port: int) -> list[str]:
    endpoint = f"--rdzv-endpoint=127.0.0.1:{port}"
    agent = [
        "-m",
        "torch.distributed.run",
        "--nnodes=2",
        "--nproc-per-node=1",
        "--rdzv-backend=c10d",
        endpoint,
    ]
    return [*agent, "--local-addr=127.0.0.1", "--max-restarts=0"]


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def _family(process: int) -> set[int]:
    """The process and all its descendants."""
    try:
        tasks = list(Path(f"/proc/{process}/task").iterdir())
        children = [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except OSError:
        return {process}
    return {process}.union(*(_family(child) for child in children))


def _runs(process: int) -> bool:
    """Whether it does more than wait for its parent to read its exit code."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def _listening_addresses(process: int) -> list[str]:
    """The addresses, in the kernel's hexadecimal, of the listening TCP sockets of one process."""
    links = []
    for descriptor in Path(f"/proc/{process}/fd").iterdir():
        try:
            links.append(os.readlink(descriptor))
        except OSError:
            continue
    addresses = []
    for table in ("tcp", "tcp6"):
        for row in Path(f"/proc/{process}/net/{table}").read_text().splitlines()[1:]:
            fields = row.split()
            if fields[3] == LISTEN_STATE and f"socket:[{fields[9]}]" in links:
                addresses.append(fields[1].partition(":")[0])
    return addresses
