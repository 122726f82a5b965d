"""What holds for every test: hypothesis' profile, one thread per process, and nothing left running."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

GRACE_SECONDS = 3.0
"""How long a test's processes and threads may take to end after it."""

SERVICES = (
    "multiprocessing.resource_tracker",
    "multiprocessing.forkserver",
    "torch._inductor.compile_worker",
)
"""Processes that Python and torch start once and keep for the life of this one."""

settings.register_profile("local", deadline=None)
# Half as many examples as on a developer's machine, the same ones each time: time on two cores is short.
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True, max_examples=50)
settings.load_profile("ci" if os.environ.get("CI") else "local")

# For the processes that tests start; this one's torch is seen to below.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips a gpu test where there is no CUDA device; torch is imported for such a test only."""
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")


@pytest.fixture(autouse=True)
def one_torch_thread() -> None:
    """Keeps torch to one thread, so that tests side by side do not slow each other; imports nothing."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture(autouse=True)
def nothing_left_running() -> Iterator[None]:
    """Fails the test that leaves a child process or a non-daemon thread behind, and ends the process."""
    processes, threads = _children(), _threads()
    yield
    left_processes = _what_stays(_children, processes)
    left_threads = _what_stays(_threads, threads)
    for pid in left_processes:
        _kill(pid)
    left = [f"process {pid} ({command})" for pid, command in left_processes.items()]
    left += [f"thread {name}" for name in left_threads.values()]
    if left:
        pytest.fail(f"the test left behind, {GRACE_SECONDS:g} s after its end: " + ", ".join(left), pytrace=False)


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _what_stays(running: Callable[[], dict[int, str]], before: dict[int, str]) -> dict[int, str]:
    """Returns what is running and was not `before`, once it is nothing or the time of grace is over."""
    give_up = time.monotonic() + GRACE_SECONDS
    while new := {key: name for key, name in running().items() if key not in before}:
        if time.monotonic() > give_up:
            break
        time.sleep(0.01)
    return new


def _threads() -> dict[int, str]:
    """Returns the names of the live non-daemon threads of Python, by their identity."""
    return {id(thread): thread.name for thread in threading.enumerate() if not thread.daemon}


def _children() -> dict[int, str]:
    """Returns the command lines of the live children of this process, by pid; none where /proc is missing."""
    children = {}
    for listing in Path("/proc/self/task").glob("*/children"):
        for pid in _read(listing).split():
            # A child that has ended is a zombie, state Z, until it is waited for.
            ended = _read(Path("/proc", pid, "stat")).rpartition(") ")[2][:1] in {"", "Z", "X"}
            # Empty while the child is between fork and exec.
            command = _read(Path("/proc", pid, "cmdline")).replace("\0", " ").strip()
            if not ended and not any(service in command for service in SERVICES):
                children[int(pid)] = command[:200]
    return children


def _read(path: Path) -> str:
    """Returns the text of a file in /proc, empty if what it tells of has ended meanwhile."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
