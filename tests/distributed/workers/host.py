"""Forks the ranks of all jobs of an order, holds their stores as torchrun's agent does, tells how and when they end."""

from __future__ import annotations

import json
import os
import runpy
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import NoReturn

import tests.runtime.runs
import tests.runtime.zoo  # noqa: F401
from torch import distributed as dist

import penstock.testing  # noqa: F401  # so that the ranks need not import them again

HERE = Path(__file__).parent


def become_rank(place: list[str], job: list, files: Path, ports: int) -> NoReturn:
    """Runs the job's worker in this process, which ends with it as a process of its own would."""
    for stream, ending in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{files}.{ending}", os.O_CREAT | os.O_WRONLY), stream)
    port = os.read(ports, 16).decode()
    worker, arguments, *_ = job
    sys.argv = [worker, *place, port, *arguments]
    sys.path.insert(0, str(HERE))
    code = 0
    try:
        runpy.run_path(str(HERE / worker), run_name="__main__")
    except SystemExit as error:
        code = int(error.code or 0)
    except BaseException:
        traceback.print_exc()
        code = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        import atexit

        atexit._run_exitfuncs()
        os._exit(code)


def main() -> None:
    order = json.loads(sys.argv[1])
    jobs, directory = order["jobs"], Path(order["directory"])
    ranks: dict[int, tuple[str, int]] = {}
    pipes: dict[str, list[int]] = {}
    for name, job in jobs.items():
        for rank in range(job[2]):
            read, write = os.pipe()
            pid = os.fork()
            if pid == 0:
                become_rank([str(rank), str(job[2])], job, directory / f"{name}.{rank}", read)
            ranks[pid] = (name, rank)
            pipes.setdefault(name, []).append(write)
    # Only now, since a store has threads and a fork takes none along.
    stores = {name: dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False) for name in jobs}
    for name, written in pipes.items():
        for end in written:
            os.write(end, str(stores[name].port).encode())
    ends = {name: [(-9, float("inf"))] * job[2] for name, job in jobs.items()}
    unending = {pid for pid, (name, rank) in ranks.items() if rank in jobs[name][3]}
    give_up = time.monotonic() + order["patience_seconds"]
    while ranks.keys() - unending and time.monotonic() < give_up:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            name, rank = ranks.pop(pid)
            ends[name][rank] = os.waitstatus_to_exitcode(status), time.monotonic()
        else:
            time.sleep(0.02)
    for pid in ranks:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    print(json.dumps(ends), flush=True)


if __name__ == "__main__":
    main()
