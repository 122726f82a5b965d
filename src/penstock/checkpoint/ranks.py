"""All ranks that hold a pipeline, its data-parallel replicas included, as one row."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import msgspec

from penstock.checkpoint.manifest import Layout
from penstock.runtime import Pipeline
from penstock.runtime.replicas import replicas_of

Exchange = Callable[[bytes], list[bytes]]
"""An all-gather: takes this rank's bytes, returns every rank's, by rank."""


class Ranks(NamedTuple):
    """This rank among all: replica by replica, in each by rank of the pipeline."""

    rank: int
    layout: Layout
    exchange: Exchange

    @property
    def num_ranks(self) -> int:
        """Number of all."""
        return self.layout.num_ranks * self.layout.num_replicas


def ranks_of(pipe: Pipeline) -> Ranks:
    """Returns this rank among all that hold `pipe`."""
    replicas = replicas_of(pipe)
    if replicas is None:
        return Ranks(pipe.rank, Layout(pipe.num_ranks), pipe.exchange)

    def exchange(payload: bytes) -> list[bytes]:
        own = msgspec.msgpack.encode(pipe.exchange(payload))
        return [part for row in replicas.gather_bytes(own) for part in msgspec.msgpack.decode(row, type=list[bytes])]

    return Ranks(replicas.index * pipe.num_ranks + pipe.rank, Layout(pipe.num_ranks, replicas.size), exchange)
