"""The lanes of one rank to others on its host, opened by all ranks together."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations

import torch

from penstock.errors import RankFailedError
from penstock.ir.ops import Channel
from penstock.runtime.transport.protocol import Transport, gather_json
from penstock.runtime.transport.shared_memory.host import Host, Identity, receive_lane, send_lane, shared
from penstock.runtime.transport.shared_memory.lanes import ControlChannel, Patience, ReceiveLane, SendLane


class HostLanes:
    """Channels of one rank that pass through shared memory; all others are not in it.

    Args:
        patience: how this rank waits.
        enabled: False keeps this rank out: its channels go another way.

    Attributes:
        sending: the lanes that begin here.
        receiving: the lanes that end here.
        everyone: whether all ranks are on this host, so that what all of them say to each other passes here too.
    """

    def __init__(self, patience: Patience, *, enabled: bool) -> None:
        self.sending: dict[Channel | ControlChannel, SendLane] = {}
        self.receiving: dict[Channel | ControlChannel, ReceiveLane] = {}
        self.everyone = False
        self._patience = patience
        self._host = Host(enabled=enabled)
        self._ranks: list[Identity] = []

    def open(self, channels: Sequence[Channel], transport: Transport) -> None:
        """Opens what can be opened of `channels`, the same on every rank. Every rank calls it.

        1. All ranks tell where they are.              3. All ranks tell which connections have come about.
        2. Targets connect to sources on their host.   4. Sources take these, and hand over the rings.

        Raises:
            RankFailedError: a rank went in the middle of it.
        """
        pairs: list[ControlChannel] = []
        if not self._ranks:
            self._ranks = [Identity(*row) for row in gather_json(transport, self._host.identity)]
            pairs = [ControlChannel(*pair) for pair in permutations(range(transport.num_ranks), 2)]
        wanted: list[Channel | ControlChannel] = [*channels, *pairs]
        local = [channel for channel in wanted if shared(self._ranks, channel)]
        if local:
            connected = self._connect(local, transport)
            self.everyone = self.everyone or (bool(pairs) and connected.issuperset(pairs))

    def _connect(
        self, local: Sequence[Channel | ControlChannel], transport: Transport
    ) -> frozenset[Channel | ControlChannel]:
        """Returns which of `local` have come about, the same on every rank."""
        ends = [channel for channel in local if channel.target == transport.rank]
        connections = {channel: self._host.connect(self._ranks[channel.source], channel) for channel in ends}
        rows = gather_json(transport, [index for index, channel in enumerate(local) if connections.get(channel)])
        connected = [local[index] for row in sorted(rows) for index in row]
        peer = transport.rank
        try:
            begin_here = [channel for channel in connected if channel.source == transport.rank]
            for channel, connection in self._host.accept(begin_here, self._patience.timeout_seconds).items():
                self.sending[channel] = send_lane(channel, connection, patience=self._patience)
            for channel, end in connections.items():
                peer = channel.source
                if end is not None:
                    self.receiving[channel] = receive_lane(channel, end, patience=self._patience)
        except OSError as error:
            reason = f"a channel through shared memory did not come about: {error}"
            raise RankFailedError(self._patience.watch.diagnose(reason, peer=peer)) from None
        return frozenset(connected)

    def gather(self, row: torch.Tensor, rank: int) -> torch.Tensor:
        """Returns the rows of all ranks, stacked; `everyone` holds and every rank calls it."""
        row = row.contiguous()
        out = row.new_empty((len(self._ranks), *row.shape))
        out[rank] = row
        others = [other for other in range(len(self._ranks)) if other != rank]
        sent = [self.sending[ControlChannel(rank, other)].send(row) for other in others]
        for other in others:
            self.receiving[ControlChannel(other, rank)].recv(out[other]).wait()
        for message in sent:
            message.wait()
        return out

    def broadcast(self, tensor: torch.Tensor, rank: int, *, source: int) -> None:
        """Overwrites `tensor` by that of rank `source`; `everyone` holds and every rank calls it."""
        if rank != source:
            self.receiving[ControlChannel(source, rank)].recv(tensor).wait()
            return
        others = [other for other in range(len(self._ranks)) if other != rank]
        for message in [self.sending[ControlChannel(rank, other)].send(tensor) for other in others]:
            message.wait()

    def carries_all(self, channel: Channel) -> bool:
        """Returns whether no tensor of `channel` needs another way, as none does without an accelerator."""
        opened = channel in self.sending or channel in self.receiving
        return opened and not (self._ranks[channel.source].accelerator or self._ranks[channel.target].accelerator)

    def close(self) -> None:
        """Closes this rank's ends."""
        self._host.close()
        for lane in (*self.sending.values(), *self.receiving.values()):
            lane.close()
