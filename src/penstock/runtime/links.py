"""Messages of one rank: rings of receive buffers, sends under way, and the boundary shapes both ends know.

Shapes are learned while they are used, never by a hidden forward. The first time a step runs with inputs of
certain shapes (its *signature*), every boundary is preceded by a header that says what follows, and receives are
posted when they are needed. From then on both ends know all shapes of that signature: no headers, receives
posted as early as the program says, into the program's rings.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from penstock.errors import ModelError
from penstock.ir.dependencies import Value, ValueKind, carried
from penstock.ir.ops import Channel, OpKind, Transfer
from penstock.runtime.boundary import BoundarySpec, TensorSpec
from penstock.runtime.stage_work import Boundary
from penstock.runtime.transport.protocol import Pending, Transport

SpecKey = tuple[int, int, int]
"""(stage whose output it is, microbatch, replica)."""

_MAX_SIGNATURES = 256
_MOST_SENDING = 2
"""Messages of one channel under way at once: one that travels and one behind it."""


def _gone(parts: list[tuple[Pending, torch.Tensor]]) -> bool:
    return all([pending.done() for pending, _ in parts])  # noqa: C419  # nearly always one: a generator takes longer


@dataclass(frozen=True)
class _Sending:
    """A message that may not have left yet; its tensors stay unchanged until then."""

    value: Value
    parts: list[tuple[Pending, torch.Tensor]]

    def done(self) -> bool:
        return _gone(self.parts)

    def wait(self) -> None:
        for pending, _ in self.parts:
            pending.wait()


@dataclass
class _Signature:
    """What is known about the boundaries of one signature."""

    learned: bool = False
    specs: dict[SpecKey, BoundarySpec] = field(default_factory=dict)
    received: dict[Value, list[TensorSpec]] = field(default_factory=dict)


class Links:
    """Sends and receives of one rank over its transport.

    Args:
        transport: how tensors travel.
        device: where received tensors live.

    Attributes:
        specs: between two parts of a program, the boundaries of what is in flight; else empty.
    """

    def __init__(self, transport: Transport, *, device: torch.device) -> None:
        self._transport, self.device = transport, device
        self._signatures: dict[int, _Signature] = {}
        self._known = _Signature()
        self._rings: dict[tuple[Channel, int, int], torch.Tensor] = {}
        self._memory: frozenset[int] = frozenset()
        self._posted: dict[Value, tuple[list[Pending], list[torch.Tensor]]] = {}
        self._unread: dict[Channel, deque[tuple[Transfer, int]]] = defaultdict(deque)
        self._read: dict[Value, list[torch.Tensor]] = {}
        self._outgoing: dict[Value, tuple[torch.Tensor, ...]] = {}
        self._sending: dict[Channel, deque[_Sending]] = defaultdict(deque)
        self.specs: dict[SpecKey, BoundarySpec] = {}

    def begin(self, signature: int) -> None:
        """Starts a step whose inputs have the shapes of `signature`, the same on every rank."""
        if signature not in self._signatures:
            if len(self._signatures) >= _MAX_SIGNATURES:
                self._signatures.clear()
            self._signatures[signature] = _Signature()
        self._known = self._signatures[signature]
        for key, spec in self.specs.items():
            self._known.specs.setdefault(key, spec)

    def end(self) -> None:
        """Waits until everything sent has left; what was learned in this step is known from now on."""
        for sending in self._sending.values():
            while sending:
                sending.popleft().wait()
        self._known.learned = True
        self.specs = {}

    def pause(self) -> None:
        """Leaves what is under way as it is; what has been sent here already gets its receive posted."""
        self._known.learned = True
        for waiting in self._unread.values():
            while waiting:
                transfer, slot = waiting.popleft()
                self.post(transfer, carried(transfer), slot)
        self.specs = dict(self._known.specs)

    def arrived(self) -> dict[Value, list[torch.Tensor]]:
        """Returns what has been sent here and is not taken yet, waiting for it; between two parts of a program."""
        for pending, _ in self._posted.values():
            for work in pending:
                work.wait()
        return {value: buffers for value, (_, buffers) in self._posted.items()} | self._read

    def resume(self, arrived: Mapping[Value, list[torch.Tensor]], specs: Mapping[SpecKey, BoundarySpec]) -> None:
        """Goes on from a saved state: with what `arrived` gave, and the boundaries of what is in flight."""
        self._posted = {value: ([], tensors) for value, tensors in arrived.items()}
        self.specs = dict(specs)

    def renumber(self, by: int, slots: Mapping[Channel, Sequence[int]]) -> None:
        """Adds `by` to the number of every microbatch under way.

        Args:
            by: how much.
            slots: channel -> for each slot of its ring the one that takes over its memory.
        """

        def moved(value: Value) -> Value:
            return value._replace(microbatch=value.microbatch + by)

        self._posted = {moved(value): kept for value, kept in self._posted.items()}
        self._read = {moved(value): kept for value, kept in self._read.items()}
        for channel, sending in self._sending.items():
            self._sending[channel] = deque(_Sending(moved(each.value), each.parts) for each in sending)
        self.specs = {(stage, i + by, replica): spec for (stage, i, replica), spec in self.specs.items() if i + by >= 0}
        self._rings = {
            (channel, slots[channel][slot] if channel in slots else slot, index): buffer
            for (channel, slot, index), buffer in self._rings.items()
        }

    def abandon(self) -> None:
        """Drops everything under way, after a step that did not finish."""
        for store in (self._posted, self._unread, self._read, self._outgoing, self._sending, self._signatures):
            store.clear()
        self.specs = {}

    def offer(self, value: Value, boundary: Boundary) -> None:
        """Takes a stage's output that a later SEND_F carries away; no part of a ring buffer, which is free from now on.

        Receives may be posted between an op and its send.

        Raises:
            ModelError: the boundary differs from what the other end was told, with unchanged inputs.
        """
        known = self._known.specs.setdefault(value[1:], boundary.spec)
        if known is not boundary.spec and known != boundary.spec:
            raise ModelError(
                f"the output of stage {value.stage} on microbatch {value.microbatch} changed from {known} to "
                f"{boundary.spec} although the inputs kept their shapes; make it depend on the inputs' shapes only"
            )
        self._outgoing[value] = tuple([self.apart(tensor.detach()) for tensor in boundary.tensors])

    def offer_grads(self, value: Value, grads: list[torch.Tensor]) -> None:
        """Takes the input gradients that a later SEND_B carries away."""
        self._outgoing[value] = tuple(map(self.apart, grads))

    def known_spec(self, value: Value) -> BoundarySpec | None:
        """Returns the spec that a stage's output had before, with inputs of these shapes; None if there was none."""
        return self._known.specs.get(value[1:])

    def send(self, transfer: Transfer, value: Value) -> None:
        """Starts to send `value`, which was offered.

        With known shapes at most two messages of a channel are under way: to wait here for an older one cannot
        deadlock, because the program is proven with sends that block where they stand. While shapes are learned,
        receives are posted later than the program says, and nothing waits.
        """
        channel = transfer.channel
        tensors = [tensor.contiguous() for tensor in self._outgoing.pop(value)]
        sending = self._sending[channel]
        if self._known.learned:
            while len(sending) >= _MOST_SENDING:
                sending.popleft().wait()
        elif value.kind == ValueKind.OUTPUT:
            tensors = [*self._header(self.spec(value)), *tensors]
        parts = [(self._transport.send(channel, tensor), tensor) for tensor in tensors]
        if not _gone(parts):
            sending.append(_Sending(value, parts))

    def reap(self) -> None:
        """Frees what has left; never blocks."""
        for sending in self._sending.values():
            while sending and sending[0].done():
                sending.popleft().wait()

    def post(self, transfer: Transfer, value: Value, slot: int) -> None:
        """Posts the receives of `value`, one boundary or gradient, into the ring buffers of `slot`."""
        if not self._known.learned:
            self._unread[transfer.channel].append((transfer, slot))
            return
        channel = transfer.channel
        specs = self._known.received.get(value)
        if specs is None:
            specs = self._known.received[value] = self._specs(transfer)
        buffers = [self._buffer(channel, slot, index, spec) for index, spec in enumerate(specs)]
        pending = [self._transport.recv(channel, buffer) for buffer in buffers]
        self._posted[value] = (pending, buffers)

    def take(self, value: Value, channel: Channel) -> list[torch.Tensor]:
        """Returns the tensors of a message, waiting for them if need be."""
        posted = self._posted.pop(value, None)
        if posted is not None:
            pending, buffers = posted
            for work in pending:
                work.wait()
        else:
            while value not in self._read:
                transfer, _ = self._unread[channel].popleft()
                self._read[carried(transfer)] = self._read_message(transfer)
            buffers = self._read.pop(value)
        if value.kind == ValueKind.INPUT_GRAD and buffers and any(self._sending.values()):
            self._left(Value(ValueKind.OUTPUT, value.stage - 1, value.microbatch, value.replica), channel)
        return buffers

    def _left(self, output: Value, channel: Channel) -> None:
        """Frees `output` and what was sent before it: its gradient came back on `channel`, so they have left.

        Gloo tells of no send that it has ended before somebody waits for it; this wait is over at once.
        """
        sending = self._sending[Channel(channel.target, channel.source, OpKind.F)]
        if any(message.value == output for message in sending):
            while (message := sending.popleft()).value != output:
                message.wait()
            message.wait()

    def apart(self, tensor: torch.Tensor) -> torch.Tensor:
        """Returns `tensor`, copied if it lies in a ring buffer, which a later receive may overwrite.

        So it is with an input that a stage passes on as it is, and with a gradient that only changes its shape.
        """
        return tensor.clone() if tensor.untyped_storage().data_ptr() in self._memory else tensor

    def spec(self, value: Value) -> BoundarySpec:
        """Returns the spec of a stage's output that this rank sent or received."""
        return self._known.specs[value[1:]]

    def _specs(self, transfer: Transfer) -> list[TensorSpec]:
        """Returns the tensors of a message: a whole boundary, or a gradient for each tensor that needs one."""
        value = carried(transfer)
        if value.kind == ValueKind.OUTPUT:
            return list(self.spec(value).tensors)
        boundary = self._known.specs[(transfer.stage, value.microbatch, value.replica)]
        return [spec for spec in boundary.tensors if spec.needs_grad]

    def _buffer(self, channel: Channel, slot: int, index: int, spec: TensorSpec) -> torch.Tensor:
        buffer = self._rings.get((channel, slot, index))
        if buffer is None or buffer.shape != spec.shape or buffer.dtype != spec.dtype:
            buffer = self._rings[(channel, slot, index)] = spec.empty(self.device)
            self._memory = frozenset(ring.untyped_storage().data_ptr() for ring in self._rings.values())
        return buffer

    def _read_message(self, transfer: Transfer) -> list[torch.Tensor]:
        value = carried(transfer)
        if value.kind == ValueKind.OUTPUT:
            self._known.specs[value[1:]] = self._receive_header(transfer.channel)
        tensors = [spec.empty(self.device) for spec in self._specs(transfer)]
        for tensor in tensors:
            self._transport.recv(transfer.channel, tensor).wait()
        return tensors

    def _header(self, spec: BoundarySpec) -> list[torch.Tensor]:
        data = torch.frombuffer(bytearray(spec.encode()), dtype=torch.uint8).to(self.device)
        return [torch.tensor([data.numel()], device=self.device), data]

    def _receive_header(self, channel: Channel) -> BoundarySpec:
        length = torch.zeros(1, dtype=torch.int64, device=self.device)
        self._transport.recv(channel, length).wait()
        data = torch.empty(int(length.item()), dtype=torch.uint8, device=self.device)
        self._transport.recv(channel, data).wait()
        return BoundarySpec.decode(data.cpu().numpy().tobytes())
