"""A command as `penstock train` is one: the launcher in a shell, a rank under an elastic agent.

python job.py DEED [RANKS]     DEED is what the ranks do once they are joined: a row of DEEDS
"""

from __future__ import annotations

import os
import sys
import time

from penstock.errors import UserError
from penstock.train.failures import Position
from penstock.train.launch import is_worker, launch
from penstock.train.processes import Worker, worker

FOREVER = 1000.0


def tell(*words: object) -> None:
    """One write per line, so that lines of several ranks do not mix."""
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def finish(me: Worker) -> None:
    import torch
    import torch.distributed as dist

    total = torch.ones(1)
    dist.all_reduce(total)
    tell("sum", me.rank, int(total), os.environ.get("OMP_NUM_THREADS"), os.environ.get("MALLOC_TRIM_THRESHOLD_"))


def hang(me: Worker) -> None:
    """Rank 0 waits inside Gloo for rank 1, which waits inside Gloo for rank 0."""
    import torch
    import torch.distributed as dist

    dist.barrier()
    me.report_position(lambda: Position(f"RECV stage {me.rank}", step=12, waiting_for=f"rank {1 - me.rank}"))
    time.sleep(0.8)  # so that the position is published
    tell("pid", me.rank, os.getpid())
    dist.recv(torch.zeros(1), 1 - me.rank)


def wait_for_rank_1(me: Worker, error: BaseException) -> None:
    import torch
    import torch.distributed as dist

    dist.barrier()
    if me.rank == 1:
        raise error
    me.report_position(lambda: Position("RECV stage 0", step=3, waiting_for="rank 1"))
    dist.recv(torch.zeros(1), 1)


def refuse(me: Worker) -> None:
    wait_for_rank_1(me, UserError("num_microbatches=3 does not fit; use a multiple of 4, e.g. 4"))


def fail(me: Worker) -> None:
    wait_for_rank_1(me, ValueError("the loss is not finite"))


def fail_apart(me: Worker) -> None:
    """Rank 0 is busy with something else while rank 1 fails."""
    if me.rank == 1:
        raise ValueError("the loss is not finite")
    time.sleep(FOREVER)


def exit_silently(me: Worker) -> None:
    if me.rank == 1:
        os._exit(7)
    time.sleep(FOREVER)


def close_files(me: Worker) -> None:
    tell("pid", me.rank, os.getpid())
    try:
        time.sleep(FOREVER)
    finally:
        tell("closed", me.rank)


def swallow(me: Worker) -> None:
    """Never leaves by itself."""
    tell("pid", me.rank, os.getpid())
    while True:
        try:
            time.sleep(FOREVER)
        except BaseException:
            continue


DEEDS = {deed.__name__: deed for deed in (finish, hang, refuse, fail, fail_apart, exit_silently, close_files, swallow)}


def main() -> int:
    deed, ranks = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 2
    if not is_worker():
        return launch([sys.executable, *sys.argv], ranks=ranks)
    with worker() as me:
        DEEDS[deed](me)
    tell("left", me.rank)
    return 0


if __name__ == "__main__":
    sys.exit(main())
