"""The engine: walks a verified program by a table of handlers, bound once, and decides nothing on the way."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch

from penstock.errors import RankFailedError, ScheduleError
from penstock.ir.dependencies import Value, ValueKind, carried, message
from penstock.ir.halves import whole_backwards
from penstock.ir.ops import COMPUTE, RECEIVES, Channel, Op, OpKind, Transfer
from penstock.ir.program import Instruction
from penstock.runtime.batch.step_batch import StepBatch
from penstock.runtime.boundary import flatten, unflatten
from penstock.runtime.duties import Duties
from penstock.runtime.hooks import HeldHooks
from penstock.runtime.links import Links
from penstock.runtime.randomness import keyed_layers
from penstock.runtime.ranges import is_profiling, with_ranges
from penstock.runtime.recorder import Recorder
from penstock.runtime.shared_weights.owners import reductions_of
from penstock.runtime.stage_work import Boundary, StageWork, backward_in_one_thread, boundary_of
from penstock.runtime.transport.cursor import describe
from penstock.runtime.transport.protocol import Transport
from penstock.verifier import Proof, receive_slots


def split_microbatches(entries: Sequence[Instruction]) -> frozenset[tuple[int, int, int]]:
    """Returns (stage, microbatch, replica) of the backwards that a rank's program splits, `whole_backwards` apart."""
    wholes = set(whole_backwards(entries))
    return frozenset(
        entry[1:4] for position, entry in enumerate(entries) if entry.kind == OpKind.I and position not in wholes
    )


class Part(NamedTuple):
    """A piece of this rank's program that runs as one call.

    Attributes:
        begin: position of its first instruction.
        end: position behind its last; None for the end of the program.
        opens: nothing is in flight before it.
        closes: nothing is in flight after it.
    """

    begin: int = 0
    end: int | None = None
    opens: bool = True
    closes: bool = True


WHOLE = Part()
"""A program that runs from its begin to its end."""


class _Way(NamedTuple):
    """Where an op stands and what comes and goes.

    Attributes:
        position: in its rank's program.
        work: its stage.
        taken: what it takes from another stage; None for the batch and the loss.
        channel: on which that comes; None where this rank makes it.
        given: what it makes for another stage.
        stays: this rank takes that.
        split: its microbatch's backward is I and W there.
    """

    position: int
    work: StageWork
    taken: Value | None
    channel: Channel | None
    given: Value | None
    stays: bool
    split: bool


class Engine:
    """One rank's program, bound to its stages and links.

    Args:
        proof: the verified program.
        stages: the stages of this rank, by number.
        links: messages of this rank.
        transport: for this rank's number and place.
        seed: key of random numbers; None leaves torch's generator alone.
        first_microbatch: what keys them for microbatch 0: the microbatches of the data-parallel replicas before this.
        duties: what it does beside computing and sending.

    Attributes:
        program: what it runs.
        recorder: its last runs.
        entered: (stage, microbatch) in flight -> what entered the stage; None where nobody asks for it.
    """

    def __init__(
        self,
        proof: Proof,
        stages: Mapping[int, StageWork],
        *,
        links: Links,
        transport: Transport,
        seed: int | None,
        first_microbatch: int = 0,
        duties: Duties = Duties(),  # noqa: B008  # a constant
    ) -> None:
        self.program = proof.program
        self.recorder = Recorder(links.device)
        self._now = self.recorder.now
        self._stages, self._links, self._transport = stages, links, transport
        self._seed, self._first_microbatch = seed, first_microbatch
        self._reduction, self._stepping, self._offloading, self._ties = duties
        self._rank = transport.rank
        self._reduces = reductions_of(self.program, self._rank)
        self._last = self.program.schedule.num_stages - 1
        self._local: dict[Value, Any] = {}
        self.entered: dict[tuple[int, int], Any] | None = None
        self._batch = StepBatch(training=False)
        self._split = split_microbatches(self.program.ranks[self._rank])
        self._hooks = HeldHooks()
        self._calls = self._bind()
        self._noted = self.recorder.current.ops
        self._starts: dict[float, torch.Tensor] = {}

    def run(self, batch: StepBatch, *, signature: int, part: Part = WHOLE) -> None:
        """Runs the program once on `batch`, or a part of it; its losses or outputs are in it afterwards.

        Raises:
            RankFailedError: another rank failed.
            Exception: what a stage or the loss raised, with a note that names rank, op, stage and microbatch.
        """
        cursor = self._transport.cursor
        cursor.entries, cursor.index = self.program.ranks[self._rank], part.begin
        self._batch = batch
        self._links.begin(signature)
        if part.opens:
            self.open(batch, signature)
        self.recorder.begin()
        self._noted = self.recorder.current.ops
        self._starts.clear()
        try:
            with torch.set_grad_enabled(batch.training), backward_in_one_thread(bool(self._split)):
                calls = with_ranges(cursor.entries, self._calls) if is_profiling() else self._calls
                for index, call in enumerate(calls if part is WHOLE else calls[part.begin : part.end], part.begin):
                    cursor.index = index
                    call()
                if part.closes:
                    self._close(batch)
                else:
                    self._pause()
        except BaseException as error:
            self._abandon()
            raise self._explained(error)  # noqa: B904  # the same exception, with a note
        finally:
            self._batch = StepBatch(training=False)  # the caller's data is the caller's again
        self.recorder.finish()

    def open(self, batch: StepBatch, signature: int) -> None:
        """Gets ready for a program with nothing in flight."""
        if batch.training:
            self._hooks.take(parameter for work in self._stages.values() for parameter in work.module.parameters())
        if self._ties and batch.training:
            self._ties.begin()
        if self._reduction:
            self._reduction.begin()
        if self._stepping:
            self._stepping.begin()
        if self._offloading:
            self._offloading.begin(batch, signature)

    def _close(self, batch: StepBatch) -> None:
        self._links.end()
        for stage in self._stages.values():
            stage.finish()
        if self._reduction:
            self._reduction.finish()
        if self._ties and batch.training:
            self._ties.finish()
        if self._offloading:
            self._offloading.finish()
        if self._stepping:
            self._stepping.rest()
        self._hooks.fire()

    def _pause(self) -> None:
        """Leaves what is in flight as it is; the modules show the newest weights meanwhile."""
        self._links.pause()
        for stage in self._stages.values():
            stage.finish()
        if self._stepping:
            self._stepping.rest()

    def take_over(self, other: Engine) -> None:
        """Goes on with what another engine of the same stages has in flight."""
        self._local, self.entered, self._hooks = other._local, other.entered, other._hooks

    def renumber(self, by: int, versions: Mapping[int, int]) -> None:
        """Adds `by` to the numbers of microbatches in flight, and to a stage's versions what `versions` says."""
        local = {value._replace(microbatch=value.microbatch + by): kept for value, kept in self._local.items()}
        self._local.clear()
        self._local.update(local)
        if self.entered is not None:
            entered = {(stage, i + by): kept for (stage, i), kept in self.entered.items()}
            self.entered.clear()
            self.entered.update(entered)
        if self._stepping:
            self._stepping.renumber(versions)

    @property
    def waits_here(self) -> bool:
        """Whether one stage of this rank has made something that another has not taken yet."""
        return bool(self._local)

    def repeat_forward(self, op: Op, entered: Any, batch: StepBatch) -> None:
        """Runs the forward `op` of a stage before the last once more, for its backward alone.

        Args:
            op: a forward of this rank.
            entered: what `entered` had for it.
            batch: the number of its step, and its first microbatch.
        """
        work, split = self._stages[op.stage], op[1:] in self._split
        self._key(work, op, batch)
        with torch.enable_grad():
            if op.stage == 0:
                leaves: tuple[torch.Tensor, ...] = ()
                output = work.forward(entered, split=split)
            else:
                leaves, output = work.forward_from(entered, training=True, split=split)
        if self.entered is not None:
            self.entered[op.stage, op.microbatch] = entered
        work.keep(op.microbatch, leaves, boundary_of(output).tensors)

    def _abandon(self) -> None:
        self._local.clear()
        self._links.abandon()
        if self._stepping:
            self._stepping.rest()
        if self._offloading:
            self._offloading.abandon()
        if self._reduction:
            self._reduction.abandon()
        if self._ties:
            self._ties.abandon()
        self._hooks.put_back()
        for stage in self._stages.values():
            stage.forget()

    def _explained(self, error: BaseException) -> BaseException:
        cursor = self._transport.cursor
        entry = cursor.entry
        where = f"{cursor.call} {cursor.step}, {describe(entry) if entry else 'its end'}"
        if isinstance(error, RankFailedError):
            error.add_note(f"penstock: noticed on rank {self._rank}, {where}")
        elif isinstance(error, Exception):
            error.add_note(f"penstock: raised on rank {self._rank}, {where}")
            self._transport.fail(f"failed in {where}: {type(error).__name__}: {error}")
        return error

    def _bind(self) -> list[Callable[[], None]]:
        """Returns the program as bound calls.

        Raises:
            ScheduleError: a kind of op that has no handler.
        """
        handlers: dict[OpKind, Callable[..., None]] = {
            OpKind.F: self._forward,
            OpKind.B: self._backward,
            OpKind.I: self._backward,
            OpKind.W: self._weight_grads,
            OpKind.S: self._step,
            OpKind.REDUCE_GRAD: self._reduce_grad,
            OpKind.SEND_F: self._send,
            OpKind.SEND_B: self._send,
            OpKind.RECV_F: self._receive,
            OpKind.RECV_B: self._receive,
        }
        handlers |= dict.fromkeys(self._offloading.handlers if self._offloading else (), self._move)
        slots = receive_slots(self.program)
        calls: list[Callable[[], None]] = []
        for position, entry in enumerate(self.program.ranks[self._rank]):
            handler = handlers.get(entry.kind)
            if handler is None:
                raise ScheduleError(f"{self.program.schedule.name}: the runtime does not execute {describe(entry)} yet")
            call: Callable[[], None] = partial(handler, entry, *self._bound(position, entry, slots))
            if isinstance(entry, Op):
                call = self._offloading.bound(entry, call) if self._offloading else call
                call = self._stepping.bound(entry, call) if self._stepping else call
            calls.append(call)
        return calls

    def _bound(self, position: int, entry: Instruction, slots: Mapping[Channel, Any]) -> tuple[object, ...]:
        """Returns what a handler needs beside its entry, so that nothing of it is found out while a step runs."""
        if isinstance(entry, Transfer):
            value = carried(entry)
            return (value, slots[entry.channel].slot[position]) if entry.kind in RECEIVES else (value, position)
        if entry.kind == OpKind.REDUCE_GRAD:
            return (position, position in self._reduces)
        if entry.kind not in COMPUTE or entry.kind == OpKind.S:
            return (position,)
        forward = entry.kind == OpKind.F
        kind, ahead = (ValueKind.OUTPUT, 1) if forward else (ValueKind.INPUT_GRAD, -1)
        before, after = entry.stage - ahead, entry.stage + ahead
        taken = Value(kind, before, *entry[2:]) if 0 <= before <= self._last else None
        given = Value(kind, *entry[1:]) if 0 <= after <= self._last else None
        return (
            _Way(
                position,
                self._stages[entry.stage],
                taken,
                self._channel(taken) if taken else None,
                given,
                given is not None and self._holds(after, entry.replica),
                entry[1:] in self._split,
            ),
        )

    def _channel(self, value: Value) -> Channel | None:
        """Returns the channel on which `value` comes to this rank, None where it is made here."""
        maker = self.program.schedule.placement.rank_of(value.stage, value.replica)
        return None if maker == self._rank else message(value, maker=maker, taker=self._rank)[1].channel

    def _holds(self, stage: int, replica: int) -> bool:
        return self.program.schedule.placement.rank_of(stage, replica) == self._rank

    def _forward(self, op: Op, way: _Way) -> None:
        batch, work = self._batch, way.work
        asked = self._now()
        boundary = None if way.taken is None else self._input(way.taken, way.channel)
        begin = self._now()
        self._key(work, op, batch)
        if self.entered is not None:
            self.entered[op.stage, op.microbatch] = batch.inputs[op.microbatch] if boundary is None else boundary
        leaves: tuple[torch.Tensor, ...] = ()
        if boundary is None:
            output = work.forward(batch.inputs[op.microbatch], split=way.split)
        else:
            leaves, output = work.forward_from(boundary, training=batch.training, split=way.split)
        self._deliver(op, way, leaves, output)
        self._noted.append((way.position, asked, begin, self._now()))
        self._links.reap()

    def _key(self, work: StageWork, op: Op, batch: StepBatch) -> None:
        """Makes the layers draw what belongs to the microbatch of `op`, wherever and whenever it runs."""
        if self._seed is not None:
            number = self._first_microbatch + op.microbatch - batch.first
            work.module.surrounding = keyed_layers(self._seed, step=batch.step, microbatch=number)

    def _input(self, value: Value, channel: Channel | None) -> Boundary:
        if channel is None:
            boundary: Boundary = self._local.pop(value)
            return boundary
        tensors = self._links.take(value, channel)
        return Boundary(self._links.spec(value), tuple(tensors))

    def _deliver(self, op: Op, way: _Way, leaves: tuple[torch.Tensor, ...], output: Any) -> None:
        """Hands the output on: to the loss, to the caller, to the next stage here or on its way there."""
        batch, links, value = self._batch, self._links, way.given
        if value is None:
            if not batch.targets:
                spec, tensors = flatten(output)
                batch.outputs[op.microbatch] = unflatten(spec, [links.apart(tensor) for tensor in tensors])
                return
            loss = way.work.loss(output, batch.targets[op.microbatch])
            batch.note_loss(op.microbatch, loss.detach())
            kept: tuple[torch.Tensor, ...] = (loss,)
        else:
            boundary = boundary_of(output, known=links.known_spec(value))
            kept = boundary.tensors
            if not way.stays:
                links.offer(value, boundary)
            elif batch.training:
                self._local[value] = boundary
            else:
                # Without a backward to come, the ring buffer of this stage's input is free from now on.
                self._local[value] = Boundary(boundary.spec, tuple(map(links.apart, kept)))
        if batch.training:
            way.work.keep(op.microbatch, leaves, kept)

    def _backward(self, op: Op, way: _Way) -> None:
        work = way.work
        asked = self._now()
        grads = self._output_grads(op, way)
        begin = self._now()
        inputs = work.input_grads(op.microbatch, grads) if way.split else work.backward(op.microbatch, grads)
        if self.entered is not None:
            self.entered.pop((op.stage, op.microbatch), None)
        if way.given is not None:
            if way.stays:
                self._local[way.given] = inputs
            else:
                self._links.offer_grads(way.given, inputs)
        self._noted.append((way.position, asked, begin, self._now()))
        self._links.reap()

    def _weight_grads(self, op: Op, way: _Way) -> None:
        begin = self._now()
        if way.split:
            way.work.weight_grads(op.microbatch)
        self._noted.append((way.position, begin, begin, self._now()))

    def _output_grads(self, op: Op, way: _Way) -> list[torch.Tensor]:
        if way.taken is None:
            return [self._start(self._batch.losses[op.microbatch], self._batch.starts[op.microbatch])]
        if way.channel is None:
            grads: list[torch.Tensor] = self._local.pop(way.taken)
            return grads
        return self._links.take(way.taken, way.channel)

    def _start(self, loss: torch.Tensor, start: float) -> torch.Tensor:
        """Returns the gradient of `loss` that its backward starts from; microbatches of equal weight share one."""
        found = self._starts.get(start)
        if found is None or found.dtype != loss.dtype or found.shape != loss.shape or found.device != loss.device:
            found = self._starts[start] = torch.full_like(loss, start)
        return found

    def _reduce_grad(self, op: Op, position: int, reduces: bool) -> None:
        """Hands the stage's gradients on; not yet if a later one on this rank is of the same stage in another row."""
        begin = self._now()
        if self._reduction and reduces:
            self._reduction.post(op.stage)
        self._noted.append((position, begin, begin, self._now()))

    def _step(self, op: Op, position: int) -> None:
        asked = self._now()
        if self._reduction:
            self._reduction.complete(op.stage)
        begin = self._now()
        if self._stepping:
            parameters = list(self._stages[op.stage].module.parameters())
            self._hooks.fire_for(parameters)
            self._stepping.step(op, self._batch.divisors)
            self._hooks.take(parameters)
        self._noted.append((position, asked, begin, self._now()))

    def _move(self, op: Op, *_: object) -> None:
        if self._offloading:
            self._offloading.handlers[op.kind](op)

    def _send(self, entry: Transfer, value: Value, position: int) -> None:
        self.recorder.current.sends.append((position, self._now()))
        self._links.send(entry, value)

    def _receive(self, entry: Transfer, value: Value, slot: int) -> None:
        self._links.post(entry, value, slot)
