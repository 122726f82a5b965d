"""Which ranks share this host, and the connections over which they hand each other memory."""

from __future__ import annotations

import hashlib
import os
import platform
import secrets
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from penstock.ir.ops import Channel
from penstock.runtime.transport.shared_memory import semaphore
from penstock.runtime.transport.shared_memory.lanes import (
    LEAST_BYTES,
    ControlChannel,
    Patience,
    ReceiveLane,
    SendLane,
    receive_ring,
)
from penstock.runtime.transport.shared_memory.ring import make_ring

_BOOT = Path("/proc/sys/kernel/random/boot_id")
_BACKLOG = 1024


class Identity(NamedTuple):
    """What one rank tells the others about where it is.

    Attributes:
        machine: the same on one host, and on no two; empty where memory cannot be shared.
        address: where it takes connections, in Linux's abstract namespace.
        secret: what a connection begins with; it was told to the ranks of this pipeline only.
        accelerator: whether its tensors may be on another device than the CPU.
    """

    machine: str = ""
    address: str = ""
    secret: str = ""
    accelerator: bool = False


class Host:
    """One rank's place for connections from the other ranks of its host; the source of a channel is the one that takes.

    Args:
        enabled: False takes none.

    Attributes:
        identity: to be told to all ranks.
    """

    def __init__(self, *, enabled: bool) -> None:
        self.identity = Identity()
        self._listener: socket.socket | None = None
        machine = _machine() if enabled else ""
        if not machine:
            return
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        address = f"penstock-{secrets.token_hex(16)}"
        try:
            listener.bind(f"\0{address}")
            listener.listen(_BACKLOG)
        except OSError:  # a sandbox without this kind of connection
            listener.close()
            return
        self._listener = listener
        self.identity = Identity(machine, address, secrets.token_hex(16), torch.accelerator.is_available())

    def connect(self, source: Identity, channel: Channel | ControlChannel) -> socket.socket | None:
        """Returns a connection to the source of `channel`; None where it cannot be reached from here.

        It does not wait for the other end to take it: all ranks tell each other first which ones have come about.
        """
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            connection.setblocking(False)
            connection.connect(f"\0{source.address}")
            connection.send(_greeting(source, channel))
        except OSError:  # another network namespace, or too many at once
            connection.close()
            return None
        return connection

    def accept(
        self, channels: Sequence[Channel | ControlChannel], timeout_seconds: float
    ) -> dict[Channel | ControlChannel, socket.socket]:
        """Returns this rank's ends of `channels`, whose other ends have connected.

        Raises:
            OSError: they have not.
        """
        expected = {_greeting(self.identity, channel): channel for channel in channels}
        found: dict[Channel | ControlChannel, socket.socket] = {}
        while len(found) < len(channels) and self._listener is not None:
            self._listener.settimeout(timeout_seconds)
            connection, _ = self._listener.accept()
            connection.settimeout(timeout_seconds)
            channel = expected.pop(connection.recv(64), None)
            if channel is None:  # a stranger
                connection.close()
            else:
                found[channel] = connection
        return found

    def close(self) -> None:
        """Takes no more connections."""
        if self._listener is not None:
            self._listener.close()


def shared(ranks: list[Identity], channel: Channel | ControlChannel) -> bool:
    """Returns whether both ends of `channel` are on one host."""
    return bool(ranks[channel.source].machine) and ranks[channel.source].machine == ranks[channel.target].machine


def send_lane(channel: Channel | ControlChannel, connection: socket.socket, *, patience: Patience) -> SendLane:
    """Returns the end that writes, having made the first ring and handed it over."""
    ring, descriptor = make_ring(LEAST_BYTES)
    try:
        socket.send_fds(connection, [b"ring"], [descriptor])
    finally:
        os.close(descriptor)
    return SendLane(channel, ring, connection=connection, peer=channel.target, patience=patience)


def receive_lane(channel: Channel | ControlChannel, connection: socket.socket, *, patience: Patience) -> ReceiveLane:
    """Returns the end that reads, having waited for the first ring.

    Raises:
        OSError: it does not come.
    """
    connection.settimeout(patience.timeout_seconds)
    return ReceiveLane(channel, receive_ring(connection), connection=connection, peer=channel.source, patience=patience)


def _machine() -> str:
    """Returns a name that only processes of this host give, empty where they cannot share memory."""
    if sys.platform != "linux" or not semaphore.AVAILABLE or not _BOOT.exists():
        return ""
    return f"{_BOOT.read_text().strip()} {platform.node()}"


def _greeting(source: Identity, channel: Channel | ControlChannel) -> bytes:
    return hashlib.blake2b(f"{source.secret} {channel}".encode(), digest_size=32).digest()
