"""Threads as ranks, and an exchange of bytes between them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from penstock.checkpoint import Exchange, Label, Shard, write_checkpoint

Result = TypeVar("Result")


def run_ranks(count: int, work: Callable[[int, Exchange], Result]) -> list[Result | Exception]:
    """Returns what `work(rank, exchange)` returned or raised by rank; waiting ends after 20 s."""
    barrier = threading.Barrier(count, timeout=20)
    board: list[bytes] = [b""] * count

    def one(rank: int) -> Result | Exception:
        def exchange(mine: bytes) -> list[bytes]:
            board[rank] = mine
            barrier.wait()
            everyone = list(board)
            barrier.wait()
            return everyone

        try:
            return work(rank, exchange)
        except Exception as error:
            return error

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


def save(
    root: Path, shard: Shard, *, step: int, rank: int, exchange: Exchange, keep: int, extra: dict[str, Any]
) -> Path:
    """Returns the checkpoint that all ranks have saved."""
    return write_checkpoint(root, shard, Label(step, extra), rank=rank, exchange=exchange, keep=keep)


def alone(mine: bytes) -> list[bytes]:
    """Returns the exchange of a single rank."""
    return [mine]
