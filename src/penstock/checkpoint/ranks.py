"""All ranks that hold a pipeline as one row: its data-parallel replicas, and pipelines that share its tensors."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from penstock.checkpoint.manifest import Layout
from penstock.checkpoint.spread import spread_of
from penstock.runtime import Pipeline
from penstock.runtime.shared_weights.replicas import replicas_of
from penstock.runtime.transport.protocol import Exchange


class Ranks(NamedTuple):
    """This rank among all: replica by replica, in each by rank of the pipeline.

    Attributes:
        rank: this one.
        layout: of all; pipelines over which tensors are spread count as replicas.
        exchange: over all.
        collects: this rank has a part in what is saved of the model; the first replica has.
        is_spread: there are tensors to be made whole.
    """

    rank: int
    layout: Layout
    exchange: Exchange
    collects: bool = True
    is_spread: bool = False

    @property
    def num_ranks(self) -> int:
        """Number of all."""
        return self.layout.num_ranks * self.layout.num_replicas

    @property
    def saves(self) -> bool:
        """This rank writes tensors of the model."""
        return self.rank < self.layout.num_ranks


def ranks_of(pipe: Pipeline) -> Ranks:
    """Returns this rank among all that hold `pipe`. Every rank calls it.

    Raises:
        CheckpointError: tensors are spread in a way that cannot be saved; the same message on every rank.
    """
    own = _with_replicas(pipe)
    spread = spread_of(pipe)
    if spread is None:
        return own
    return Ranks(
        spread.index * own.num_ranks + own.rank,
        Layout(pipe.num_ranks, own.layout.num_replicas * spread.count),
        spread.exchange(pipe, own.exchange),
        collects=own.collects,
        is_spread=True,
    )


def _with_replicas(pipe: Pipeline) -> Ranks:
    replicas = replicas_of(pipe)
    if replicas is None:
        return Ranks(pipe.rank, Layout(pipe.num_ranks), pipe.exchange)

    def exchange(payload: bytes) -> list[bytes]:
        own = msgspec.msgpack.encode(pipe.exchange(payload))
        return [part for row in replicas.gather_bytes(own) for part in msgspec.msgpack.decode(row, type=list[bytes])]

    layout = Layout(pipe.num_ranks, replicas.size)
    return Ranks(replicas.index * pipe.num_ranks + pipe.rank, layout, exchange, collects=replicas.index == 0)
