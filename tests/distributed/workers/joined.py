"""What every worker does first: it joins the job of its command line (rank, ranks, port of the store)."""

from __future__ import annotations

import json
import os
import sys
from datetime import timedelta
from typing import Any

import torch
from torch import distributed as dist

rank, num_ranks, port = map(int, sys.argv[1:4])
arguments = sys.argv[4:]


def join(*, own_store: bool = False) -> None:
    """Joins; with `own_store` rank 0 holds the job's store, as in a plain init_process_group."""
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    timeout = timedelta(seconds=30)
    store = dist.TCPStore("127.0.0.1", port, is_master=False, timeout=timeout)
    if own_store:
        theirs = store
        if rank == 0:
            store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timeout)
            theirs.set("port", str(store.port))
        else:
            store = dist.TCPStore("127.0.0.1", int(theirs.get("port")), is_master=False, timeout=timeout)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=num_ranks, timeout=timeout)


def tell(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)
