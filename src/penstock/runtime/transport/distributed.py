"""Transport over torch.distributed: one connection per directed channel, made eagerly in one order.

Tensors on the CPU pass through shared memory where both ends of a channel are on one host.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
from torch import distributed as dist

from penstock.errors import HandshakeError, RankFailedError
from penstock.ir.ops import Channel
from penstock.runtime.transport.cursor import Cursor
from penstock.runtime.transport.departed import Groups, end_departed, leave, next_name
from penstock.runtime.transport.protocol import Pending
from penstock.runtime.transport.shared_memory import HostLanes, Patience
from penstock.runtime.transport.watch import Watch

_PINGS = 16


class _Work:
    """A message under way in a process group."""

    def __init__(self, work: dist.Work, tensor: torch.Tensor, *, watch: Watch, peer: int) -> None:
        self._work, self._tensor, self._watch, self._peer = work, tensor, watch, peer

    def done(self) -> bool:
        return self._work.is_completed()

    def wait(self) -> None:
        self._watch.cursor.waiting_for = self._peer
        try:
            self._work.wait()
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise RankFailedError(self._watch.diagnose(reason, peer=self._peer)) from None
        self._watch.cursor.waiting_for = -1


class DistributedTransport:
    """One rank's end in a torch.distributed job whose default group exists.

    Every rank of the pipeline makes its transport at the same place in its program. Messages of one channel have
    a connection of their own, so that the order of one channel never holds up another.

    Args:
        group: the ranks of this pipeline in order; None means all.
        timeout_seconds: deadline of every wait.
        shared_memory: whether ranks of one host exchange tensors on the CPU through shared memory; False sends
            them over gloo too.

    Attributes:
        name: of this pipeline in the job, the same on all of its ranks.

    Raises:
        HandshakeError: torch.distributed is not initialised.
    """

    def __init__(
        self, group: dist.ProcessGroup | None = None, *, timeout_seconds: float = 300.0, shared_memory: bool = True
    ) -> None:
        if not dist.is_initialized():
            raise HandshakeError(
                "torch.distributed is not initialised; call torch.distributed.init_process_group() first, start with "
                "torchrun or penstock train, or pass transport= (penstock.run_ranks gives one to each thread)"
            )
        self._global = dist.get_process_group_ranks(group or dist.group.WORLD)
        self._rank = self._global.index(dist.get_rank())
        self._timeout = timedelta(seconds=timeout_seconds)
        job = dist.distributed_c10d._get_default_store()
        self.name = next_name(job, self._global, self._rank)
        self._store = dist.PrefixStore(f"penstock/{self.name}", job)
        control = dist.ProcessGroupGloo(
            dist.PrefixStore("control", self._store), self._rank, self.num_ranks, timeout=self._timeout
        )
        self._groups = Groups(control)
        self._collective: dist.ProcessGroup | None = None  # torch.distributed's, and left to it
        if dist.get_backend(group) != "gloo":
            self._collective = self._new_group(self._global, None, "penstock collective")
        end_departed()
        self._backends = dist.BackendConfig(dist.Backend(dist.get_backend_config(group))).get_device_backend_map()
        self.watch = Watch(self._store, rank=self._rank, num_ranks=self.num_ranks)
        self.watch.start()
        patience = Patience(self.watch, timeout_seconds)
        self._lanes = HostLanes(patience, enabled=shared_memory and "cpu" in self._backends)
        self._known: set[Channel] = set()
        self._end = weakref.finalize(self, _close, self.watch, self._lanes, self._groups)

    def surround(self, replicas: Sequence[str], *, index: int) -> None:
        """Makes a failure of one data-parallel replica known to all.

        Args:
            replicas: names of their pipelines.
            index: which of them this one is.
        """
        store = dist.PrefixStore(f"penstock/around/{replicas[0]}", dist.distributed_c10d._get_default_store())
        self.watch.surround(store, name=f"data-parallel replica {index}")

    def _new_group(self, ranks: Sequence[int], backend: str | None, description: str) -> dist.ProcessGroup:
        group: dist.ProcessGroup = dist.new_group(
            list(ranks), self._timeout, backend, use_local_synchronization=True, group_desc=description
        )
        return group

    @property
    def rank(self) -> int:
        """This rank's place in the pipeline."""
        return self._rank

    @property
    def num_ranks(self) -> int:
        """Number of ranks, p."""
        return len(self._global)

    @property
    def cursor(self) -> Cursor:
        """This rank's place in its program."""
        return self.watch.cursor

    def fail(self, reason: str) -> None:
        """Tells the other ranks that this one fails, before it raises."""
        self.watch.fail(reason)

    def open(self, channels: Sequence[Channel]) -> None:
        """Connects the channels that begin or end here and are not open yet.

        Connections are not made by new_group: it names a group of some ranks by how many groups this process is in,
        which differs between a rank at an end of the pipeline and one in its middle; they would wait for each other.
        """
        new = [channel for channel in channels if channel not in self._known]
        if not new:
            return
        self._known.update(new)
        self._lanes.open(new, self)
        for channel in new:
            if self._rank not in (channel.source, channel.target) or self._lanes.carries_all(channel):
                continue
            end = 0 if self._rank == channel.source else 1
            made: dict[str, Any] = {}
            for backend in sorted(set(self._backends.values())):
                store = dist.PrefixStore(f"channel/{channel}/{backend}", self._store)
                made[backend] = self._connect(backend, store, end)
            self._groups.channels[channel] = {device: made[backend] for device, backend in self._backends.items()}

    def _connect(self, backend: str, store: dist.Store, end: int) -> Any:
        """Returns a pair of processes that only exchange tensors; `end` is 0 at the channel's source.

        Raises:
            HandshakeError: a backend other than gloo and nccl.
            RankFailedError: the other end does not come.
        """
        try:
            if backend == "gloo":
                return dist.ProcessGroupGloo(store, end, 2, timeout=self._timeout)
            if backend == "nccl":
                options = dist.ProcessGroupNCCL.Options()
                options._timeout = self._timeout
                return dist.ProcessGroupNCCL(store, end, 2, options)
        except RuntimeError as error:
            raise RankFailedError(self._collective_failure(error)) from None
        raise HandshakeError(f'torch.distributed runs on "{backend}"; penstock sends over gloo and nccl')

    def send(self, channel: Channel, tensor: torch.Tensor) -> Pending:
        """Starts to send `tensor`, contiguous, unchanged until done."""
        if tensor.is_cpu and (lane := self._lanes.sending.get(channel)) is not None:
            return lane.send(tensor)
        link = self._groups.channels[channel][tensor.device.type]
        return self._start(link.send, tensor, 1, channel.target)

    def recv(self, channel: Channel, tensor: torch.Tensor) -> Pending:
        """Starts to receive into `tensor`."""
        if tensor.is_cpu and (lane := self._lanes.receiving.get(channel)) is not None:
            return lane.recv(tensor)
        link = self._groups.channels[channel][tensor.device.type]
        return self._start(link.recv, tensor, 0, channel.source)

    def _start(self, post: object, tensor: torch.Tensor, peer: int, peer_rank: int) -> _Work:
        try:
            work = post([tensor], peer, 0)  # type: ignore[operator]
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise RankFailedError(self.watch.diagnose(reason, peer=peer_rank)) from None
        return _Work(work, tensor, watch=self.watch, peer=peer_rank)

    def gather(self, row: torch.Tensor) -> torch.Tensor:
        """Returns the rows of all ranks, stacked; CPU tensors."""
        self._check_alive()
        if self._lanes.everyone:
            return self._lanes.gather(row, self._rank)
        out = torch.empty((self.num_ranks, *row.shape), dtype=row.dtype)
        try:
            self._groups.control.allgather([list(out)], [row.contiguous()]).wait()
        except RuntimeError as error:
            raise RankFailedError(self._collective_failure(error)) from None
        return out

    def broadcast(self, tensor: torch.Tensor, source: int) -> None:
        """Overwrites `tensor` on every rank by that of rank `source`."""
        if self._lanes.everyone and tensor.is_cpu:
            self._lanes.broadcast(tensor, self._rank, source=source)
            return
        try:
            if self._collective is None or tensor.is_cpu:
                self._groups.control.broadcast(tensor, source).wait()
            else:
                dist.broadcast(tensor, self._global[source], group=self._collective)
        except RuntimeError as error:
            raise RankFailedError(self._collective_failure(error)) from None

    def _check_alive(self) -> None:
        """Refuses to wait for ranks that are known to have failed or left while this one was outside the pipeline."""
        if not self._end.alive:
            raise HandshakeError("this pipeline is closed; make another Pipeline, or call close() later")
        if self.watch.report is not None:
            raise RankFailedError(self.watch.report)

    def _collective_failure(self, error: RuntimeError) -> str:
        reason = f"a call that all ranks make together failed: {str(error).splitlines()[0]}"
        peer = (self._rank + 1) % self.num_ranks
        return self.watch.diagnose(reason, peer=peer)

    def clock_offsets(self) -> list[float]:
        """Returns how far each rank's perf_counter is ahead of rank 0's, from the quickest of 16 round trips."""
        mine = 0.0
        for other in range(1, self.num_ranks):
            if self._rank == 0:
                self._answer_pings(other)
            elif self._rank == other:
                mine = self._ping(0)
        return self.gather(torch.tensor([mine], dtype=torch.float64)).flatten().tolist()

    def _answer_pings(self, other: int) -> None:
        control, stamp = self._groups.control, torch.zeros(1, dtype=torch.float64)
        for _ in range(_PINGS):
            control.recv([stamp], other, 0).wait()
            stamp[0] = time.perf_counter()
            control.send([stamp], other, 0).wait()

    def _ping(self, other: int) -> float:
        """Returns this rank's clock minus that of `other`, taken to have answered half-way through."""
        control, stamp = self._groups.control, torch.zeros(1, dtype=torch.float64)
        trips = []
        for _ in range(_PINGS):
            begin = time.perf_counter()
            control.send([stamp], other, 0).wait()
            control.recv([stamp], other, 0).wait()
            end = time.perf_counter()
            trips.append((end - begin, (begin + end) / 2 - stamp.item()))
        return min(trips)[1]

    def close(self) -> None:
        """Stops the watch and leaves the channels, which end when all ranks have left them; waits for nobody."""
        self._end()


def _close(watch: Watch, lanes: HostLanes, groups: Groups) -> None:
    watch.close()
    lanes.close()
    leave(watch, groups)
