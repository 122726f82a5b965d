"""A program compiled to be timed again and again under other costs, as a search does.

`simulate` finds out in which order things happen. Where no two channels share a link that takes time, that
order does not depend on the costs: ops follow one another on their rank, messages on their channel. So the
program becomes rows in an order in which every row's predecessors stand before it, and timing it is one pass:

    op         start = max(end of the op before on its rank, arrival of its message)
    message    start = max(end of the op before its send, of the op before its receive, link free)
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from penstock.cluster import Cluster
from penstock.costs import StageCosts
from penstock.errors import ScheduleError
from penstock.ir.dependencies import Value, carried, consumed
from penstock.ir.ops import COMPUTE, RECEIVES, Channel, Op, OpKind, Transfer
from penstock.ir.program import Program
from penstock.ir.steps import awaited_gradients
from penstock.simulator.events import simulate

Times = npt.NDArray[np.float64]
_Place = tuple[int, Op | None]
_NOTHING = 0
"""Row 0 stands for what is there from the start: it ends at time 0."""


class _Rows(NamedTuple):
    """The program as columns; entry i is row i."""

    is_message: npt.NDArray[np.bool_]
    before: npt.NDArray[np.int64]  # the op before on the rank; of a message: the op before its send
    message: npt.NDArray[np.int64]  # what an op waits for; of a message: the op before its receive
    link: npt.NDArray[np.int64]  # of a message: the message before on its channel
    cost: npt.NDArray[np.int64]  # which entry of the seconds, or of the transfer times


class Replay:
    """A verified program, compiled.

    Args:
        program: one that runs to its end.

    Raises:
        ScheduleError: the schedule has overlapped pairs, activations kept on other ranks, gathered parameters, or
            optimizer steps of a stage that several ranks hold; only `simulate` times these.
        VerificationError: the program deadlocks.
    """

    def __init__(self, program: Program) -> None:
        if program.schedule.overlapped:
            raise ScheduleError(f"{program.schedule.name} overlaps ops; use simulate for it")
        if program.schedule.keepers:
            raise ScheduleError(f"{program.schedule.name} offloads activations; use simulate for it")
        if (program.columns.kind == OpKind.UNSHARD).any():
            raise ScheduleError(f"{program.schedule.name} gathers parameters; use simulate for it")
        if awaited_gradients(program.schedule):
            raise ScheduleError(f"{program.schedule.name} has ranks that step a stage together; use simulate for it")
        self.program = program
        self._kernel = _kernel()
        compiled = _Compiler(program)
        self._rows = compiled.rows()
        self._op_keys, self._message_keys = compiled.op_keys, compiled.message_keys
        self.num_ops = int(len(self._rows.cost) - 1 - self._rows.is_message.sum())

    def makespan(self, costs: StageCosts, cluster: Cluster | None = None) -> float:
        """Returns the flush makespan in seconds, equal to that of `simulate` in double precision.

        Raises:
            UserError: costs of another number of stages.
            ScheduleError: a cluster whose ranks stand still while they send, or whose links several channels share.
        """
        if cluster is not None and not cluster.overlap:
            raise ScheduleError("ranks of this cluster stand still while they send; use simulate for it")
        seconds, busy, latency = self._tables(costs, cluster or Cluster.uniform(self.program.num_ranks))
        return float(self._kernel(*self._rows, seconds, busy, latency))

    def _tables(self, costs: StageCosts, cluster: Cluster) -> tuple[Times, Times, Times]:
        """Returns the seconds of each kind of op, stage and rank, then how long messages keep a link and lag behind."""
        num_stages = self.program.schedule.num_stages
        of_kind, boundary = costs.seconds(num_stages), costs.per_stage("boundary_bytes", num_stages)
        links = [(cluster.link(channel.source, channel.target), stage) for channel, stage in self._message_keys]
        busy = [link.busy_seconds(boundary[stage]) for link, stage in links]
        self._check_links(busy)
        seconds = [
            of_kind[kind][stage] / cluster.devices[rank].speed if kind in of_kind else 0
            for kind, stage, rank in self._op_keys
        ]
        latency = [link.latency_seconds for link, _ in links]
        return np.array(seconds, float), np.array(busy, float), np.array(latency, float)

    def _check_links(self, busy: list[float]) -> None:
        """Refuses costs under which channels would queue for one link in an order that depends on them."""
        channels: dict[tuple[int, int], set[Channel]] = defaultdict(set)
        for (channel, _), seconds in zip(self._message_keys, busy, strict=True):
            if seconds:
                channels[channel[:2]].add(channel)
        shared = next((link for link, users in channels.items() if len(users) > 1), None)
        if shared is not None:
            raise ScheduleError(
                f"messages of several channels queue for the link from rank {shared[0]} to rank {shared[1]}; use "
                "simulate for this cluster, or a link with latency only"
            )


class _Compiler:
    """Brings ops and messages into an order of rows: that of a simulation in which every op takes a second."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.op_keys: dict[tuple[OpKind, int, int], int] = {}
        self.message_keys: dict[tuple[Channel, int], int] = {}
        self.row_of_op: dict[_Place, int] = {}
        self.row_of_message: dict[Value, int] = {}
        self.last_on_channel: dict[Channel, int] = {}
        self.sent_after, self.received_after = _neighbours(program)

    def rows(self) -> _Rows:
        timeline = simulate(self.program, StageCosts())
        events: list[tuple[float, int, Any]] = [(span.start, 1, span) for span in timeline.spans]
        events += [(message.start, 0, message) for message in timeline.transmissions]
        events.sort(key=lambda event: event[:2])
        last_on_rank = [_NOTHING] * self.program.num_ranks
        columns: list[tuple[bool, int, int, int, int]] = [(False, 0, 0, 0, 0)]
        for row, (_, is_op, event) in enumerate(events, start=1):
            if is_op:
                columns.append(self._op(event.rank, event.op, last_on_rank[event.rank]))
                last_on_rank[event.rank] = self.row_of_op[(event.rank, event.op)] = row
            else:
                columns.append(self._message(event.channel, event.op))
                self.last_on_channel[event.channel] = self.row_of_message[_value(event.channel, event.op)] = row
        is_message, before, message, link, cost = zip(*columns, strict=True)
        ints = (np.array(column, np.int64) for column in (before, message, link, cost))
        return _Rows(np.array(is_message, bool), *ints)

    def _op(self, rank: int, op: Op, before: int) -> tuple[bool, int, int, int, int]:
        needs = consumed(op, self.program.schedule.num_stages) if op.kind in COMPUTE else []
        message = next((self.row_of_message[value] for value in needs if value in self.received_after), _NOTHING)
        cost = self.op_keys.setdefault((op.kind, op.stage, rank), len(self.op_keys))
        return False, before, message, _NOTHING, cost

    def _message(self, channel: Channel, op: Op) -> tuple[bool, int, int, int, int]:
        value = _value(channel, op)
        sent = self.row_of_op.get(self.sent_after[value], _NOTHING)
        received = self.row_of_op.get(self.received_after[value], _NOTHING)
        cost = self.message_keys.setdefault((channel, min(value.stage, op.stage)), len(self.message_keys))
        return True, sent, received, self.last_on_channel.get(channel, _NOTHING), cost


def _value(channel: Channel, taker: Op) -> Value:
    kind = OpKind.RECV_F if channel.kind == OpKind.F else OpKind.RECV_B
    return carried(Transfer(kind, *taker[1:4], channel))


def _neighbours(program: Program) -> tuple[dict[Value, _Place], dict[Value, _Place]]:
    """Returns for every message the op before its send on the sender, and the op before its receive."""
    sent: dict[Value, _Place] = {}
    received: dict[Value, _Place] = {}
    for rank, entries in enumerate(program.ranks):
        last: Op | None = None
        for entry in entries:
            if isinstance(entry, Transfer):
                (received if entry.kind in RECEIVES else sent)[carried(entry)] = (rank, last)
            else:
                last = entry
    return sent, received


def _sweep(  # noqa: PLR0913  # arrays side by side: what a compiler of numeric code takes
    is_message: Any, before: Any, message: Any, link: Any, cost: Any, seconds: Any, busy: Any, latency: Any
) -> float:
    """Returns the latest end: one pass over rows whose predecessors stand before them."""
    end = np.zeros(len(cost))
    free = np.zeros(len(cost))
    latest = 0.0
    for row in range(1, len(cost)):
        start = max(end[before[row]], end[message[row]])
        key = cost[row]
        if is_message[row]:
            free[row] = max(start, free[link[row]]) + busy[key]
            end[row] = free[row] + latency[key]
        else:
            end[row] = start + seconds[key]
            latest = max(latest, end[row])
    return latest


_compiled: list[Callable[..., float]] = []


def _kernel() -> Callable[..., float]:
    """Returns the sweep, compiled where numba is installed (the extra `speed`)."""
    if not _compiled:
        try:
            from numba import njit
        except ImportError:
            return _sweep
        _compiled.append(njit(cache=True)(_sweep))
    return _compiled[0]
