"""Activations that another rank keeps: what autograd saves of a microbatch leaves after its forward and comes back.

    owner    F ── saved tensors ──> OFFLOAD ══ one row of bytes ══╗             ╔══> RELOAD ── tensors ──> B
    keeper                                    HOST (receive posted) ╚═> kept ═══╝ RETURN

While the forward of such a microbatch runs, every tensor that autograd saves is replaced by a place among the
storages it lies on. Parameters and buffers, which stay, what entered the stage, which its receive buffer holds anyway,
and the batch itself are left as they are. OFFLOAD lays the storages side by side in one row of bytes and lets go of
them.

A rank that keeps its own activations keeps them in its host's memory; then nothing is sent.

How long a row is, the keeper is told before it in the first step of a signature, as with boundaries; afterwards both
ends know, and the keeper posts its receive where the program says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._pytree import tree_leaves

from penstock.errors import ModelError
from penstock.ir.ops import BACKWARD, Channel, Op, OpKind
from penstock.ir.program import Program
from penstock.runtime.batch.step_batch import StepBatch
from penstock.runtime.memory.host_memory import HostMemory, fill
from penstock.runtime.stage_work import StageWork
from penstock.runtime.transport.protocol import Pending, Transport

Key = tuple[int, int, int]
"""Stage, microbatch and replica."""

_ALIGNMENT = 64
"""Bytes: every storage begins at a multiple, so that any type of number may be read in place."""

_MAX_SIGNATURES = 256


class _Place(NamedTuple):
    """Where a saved tensor lies: which storage of its microbatch, and how."""

    storage: int
    dtype: torch.dtype
    shape: torch.Size
    stride: tuple[int, ...]
    offset: int | torch.SymInt


@dataclass
class _Saved:
    """What autograd has saved of one microbatch.

    Attributes:
        storages: its storages as rows of bytes; empty while they are away.
        order: address of a storage -> its number, while the forward runs.
        sizes: bytes of each storage.
        row: where they come back to, and what is to be waited for.
        host: where they are in the host's memory, if there.
    """

    storages: list[torch.Tensor] = field(default_factory=list)
    order: dict[int, int] = field(default_factory=dict)
    sizes: list[int] = field(default_factory=list)
    row: torch.Tensor | None = None
    pending: Pending | None = None
    host: torch.Tensor | None = None

    def padded(self) -> list[int]:
        """Returns what each storage takes in a row."""
        return [-(-size // _ALIGNMENT) * _ALIGNMENT for size in self.sizes]


@dataclass
class _Guest:
    """What this rank keeps for another: a row of bytes, posted or to be asked for."""

    channel: Channel
    row: torch.Tensor | None = None
    pending: Pending | None = None


class Offloading:
    """One rank's part in moving activations between ranks.

    Args:
        program: a verified program; its OFFLOAD, RELOAD, HOST and RETURN say what moves when.
        stages: this rank's stages, by number.
        transport: channels of `offload_channels` are open.
        device: where this rank computes.

    Attributes:
        most_held: the most microbatches' activations that were here at once, guests included, since `begin`.
    """

    def __init__(
        self, program: Program, stages: Mapping[int, StageWork], transport: Transport, *, device: torch.device
    ) -> None:
        self._schedule, self._transport, self._device = program.schedule, transport, device
        self._rank = transport.rank
        entries = program.ranks[self._rank]
        self._moves = frozenset(entry[1:4] for entry in entries if entry.kind == OpKind.OFFLOAD)
        self._stages = stages
        self._staying: set[int] | None = None
        self._batch: frozenset[int] = frozenset()
        self._lengths: dict[int, dict[Key, int]] = {}
        self._known: dict[Key, int] = {}
        self._learned = False
        self._signature = 0
        self._host_memory = HostMemory(device)
        self._saved: dict[Key, _Saved] = {}
        self._guests: dict[Key, _Guest] = {}
        self._away: list[tuple[Pending, torch.Tensor]] = []
        self._back: list[tuple[Pending, torch.Tensor]] = []
        self.most_held = self._held = 0
        for stage in {stage for stage, _, _ in self._moves}:
            stages[stage].module.register_forward_pre_hook(self._note_input)
        self.handlers: dict[OpKind, Callable[[Op], None]] = {
            OpKind.OFFLOAD: self._offload,
            OpKind.RELOAD: self._reload,
            OpKind.HOST: self._host,
            OpKind.RETURN: self._return,
        }

    def begin(self, batch: StepBatch, signature: int) -> None:
        """Starts a step on `batch`, whose inputs have the shapes of `signature`, the same on every rank."""
        leaves = tree_leaves((batch.inputs, batch.targets)) if self._moves else ()
        self._batch = frozenset(_address(leaf) for leaf in leaves if isinstance(leaf, torch.Tensor))
        if signature not in self._lengths and len(self._lengths) >= _MAX_SIGNATURES:
            self._lengths.clear()
        self._signature, self._learned = signature, signature in self._lengths
        self._known = self._lengths.get(signature, {})
        self.most_held = self._held = 0

    def finish(self) -> None:
        """Waits until everything sent has left; what was learned in this step is known from now on."""
        _settle(self._away)
        _settle(self._back)
        self._lengths[self._signature] = self._known

    def abandon(self) -> None:
        """Drops everything, after a step that did not finish."""
        for store in (self._saved, self._guests, self._away, self._back, self._lengths):
            store.clear()

    def bound(self, op: Op, call: Callable[[], None]) -> Callable[[], None]:
        """Returns `call`, the op bound to its handler, with what offloading its microbatch needs around it."""
        if op.kind == OpKind.F:
            return partial(self._forward, op[1:], call)
        return partial(self._backward, op[1:], call) if op.kind in BACKWARD else call

    def _count(self, change: int) -> None:
        self._held += change
        self.most_held = max(self.most_held, self._held)

    def _forward(self, key: Key, call: Callable[[], None]) -> None:
        """Runs a forward, which uses the memory of what has left: the plan is proven with an OFFLOAD that blocks.

        While lengths are learned receives are posted later than the program says, and nothing waits.
        """
        if self._learned:
            _settle(self._away)
        self._count(+1)
        if key not in self._moves:
            call()
            return
        saved = self._saved[key] = _Saved()
        module = self._stages[key[0]].module
        self._staying = {_address(tensor) for tensor in (*module.parameters(), *module.buffers())} | self._batch
        with saved_tensors_hooks(partial(self._pack, saved), partial(_unpack, saved)):
            call()
        self._staying = None
        saved.order.clear()

    def _backward(self, key: Key, call: Callable[[], None]) -> None:
        saved = self._saved.get(key)
        if saved is not None and saved.pending is not None and saved.row is not None:
            saved.pending.wait()
            saved.storages = list(saved.row.split(saved.padded()))
            saved.pending = saved.row = None
        call()
        self._saved.pop(key, None)
        self._count(-1)

    def _note_input(self, _: nn.Module, arguments: tuple[Any, ...]) -> None:
        if self._staying is not None:
            self._staying.update(_address(leaf) for leaf in tree_leaves(arguments) if isinstance(leaf, torch.Tensor))

    def _pack(self, saved: _Saved, tensor: torch.Tensor) -> torch.Tensor | _Place:
        if type(tensor) not in (torch.Tensor, nn.Parameter) or tensor.layout != torch.strided:
            return tensor
        address = _address(tensor)
        if not address or address in (self._staying or ()) or tensor.device != self._device:
            return tensor if tensor.is_leaf else tensor.detach()  # an output would keep itself alive
        number = saved.order.get(address)
        if number is None:
            number = saved.order[address] = len(saved.storages)
            storage = tensor.untyped_storage()
            saved.storages.append(torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(storage))
            saved.sizes.append(storage.nbytes())
        return _Place(number, tensor.dtype, tensor.shape, tensor.stride(), tensor.storage_offset())

    def _offload(self, op: Op) -> None:
        saved, key = self._saved[op[1:]], op[1:]
        channel, sizes = Channel(self._rank, self._schedule.keepers[self._rank], OpKind.OFFLOAD), saved.padded()
        length = sum(sizes)
        self._count(-1)
        if channel.target == self._rank:
            pending, saved.host = self._host_memory.take(saved.storages, sizes)
            self._away.append((pending, saved.host))
            saved.storages.clear()
            return
        if self._known.setdefault(key, length) != length:
            raise ModelError(
                f"stage {op.stage} saved {length} bytes of microbatch {op.microbatch} for its backward, before it were "
                f"{self._known[key]}, although the inputs kept their shapes; use a schedule that offloads nothing, "
                "e.g. one_f_one_b"
            )
        row = torch.empty(length, dtype=torch.uint8, device=self._device)
        fill(row, saved.storages, sizes)
        saved.storages.clear()
        if not self._learned:
            self._send(channel, torch.tensor([length], device=self._device), self._away)
        if length:
            self._send(channel, row, self._away)

    def _reload(self, op: Op) -> None:
        saved = self._saved[op[1:]]
        length = sum(saved.padded())
        if saved.host is not None:
            saved.pending, saved.row = self._host_memory.give(saved.host)
            saved.host = None
        elif length:
            saved.row = torch.empty(length, dtype=torch.uint8, device=self._device)
            channel = Channel(self._schedule.keepers[self._rank], self._rank, OpKind.RELOAD)
            saved.pending = self._transport.recv(channel, saved.row)
        self._count(+1)

    def _host(self, op: Op) -> None:
        if self._learned:
            _settle(self._back)
        guest = self._guests[op[1:]] = _Guest(Channel(self._owner(op), self._rank, OpKind.OFFLOAD))
        if self._learned:
            self._receive(guest, self._known[op[1:]])
        self._count(+1)

    def _return(self, op: Op) -> None:
        guest = self._guests.pop(op[1:])
        if not self._learned:
            length = torch.zeros(1, dtype=torch.int64, device=self._device)
            self._transport.recv(guest.channel, length).wait()
            self._known[op[1:]] = int(length.item())
            self._receive(guest, self._known[op[1:]])
        if guest.pending is not None and guest.row is not None:
            guest.pending.wait()
            self._send(Channel(self._rank, self._owner(op), OpKind.RELOAD), guest.row, self._back)
        self._count(-1)

    def _receive(self, guest: _Guest, length: int) -> None:
        if length:
            guest.row = torch.empty(length, dtype=torch.uint8, device=self._device)
            guest.pending = self._transport.recv(guest.channel, guest.row)

    def _owner(self, op: Op) -> int:
        return self._schedule.placement.rank_of(op.stage, op.replica)

    def _send(self, channel: Channel, tensor: torch.Tensor, leaving: list[tuple[Pending, torch.Tensor]]) -> None:
        leaving.append((self._transport.send(channel, tensor), tensor))


def offload_channels(program: Program) -> list[Channel]:
    """Returns the channels on which activations travel to their keepers and back."""
    keepers = program.schedule.keepers
    guests = {
        rank
        for rank, entries in enumerate(program.ranks)
        if any(entry.kind == OpKind.OFFLOAD for entry in entries) and keepers[rank] != rank
    }
    channels: Iterable[Channel] = (
        channel
        for rank in guests
        for channel in (
            Channel(rank, keepers[rank], OpKind.OFFLOAD),
            Channel(keepers[rank], rank, OpKind.RELOAD),
        )
    )
    return sorted(channels)


def _settle(leaving: list[tuple[Pending, torch.Tensor]]) -> None:
    """Waits until what was sent has left, and frees it."""
    for pending, _ in leaving:
        pending.wait()
    leaving.clear()


def _unpack(saved: _Saved, place: torch.Tensor | _Place) -> torch.Tensor:
    if isinstance(place, torch.Tensor):
        return place
    storage = saved.storages[place.storage]
    whole = storage[: len(storage) // place.dtype.itemsize * place.dtype.itemsize].view(place.dtype)
    offset = whole.storage_offset() + place.offset
    return whole.as_strided(place.shape, place.stride, offset)


def _address(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr() if tensor.layout == torch.strided else 0
