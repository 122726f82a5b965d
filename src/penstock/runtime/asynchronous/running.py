"""Training on batch after batch without a flush: the part of `Pipeline` behind `run`."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from penstock.errors import BatchError, HandshakeError, ModelError, UserError
from penstock.runtime.agreement import Offer, agree, check_same
from penstock.runtime.asynchronous.flight import Flight, FlightPlan, plan_flight
from penstock.runtime.asynchronous.flight_state import FlightState, load_flight, save_flight
from penstock.runtime.asynchronous.stepping import StepTable
from penstock.runtime.asynchronous.stretch import stretch_timeline
from penstock.runtime.batch.feed import Call, Feed
from penstock.runtime.batch.microbatches import even_sizes
from penstock.runtime.batch.step_batch import StepBatch
from penstock.runtime.duties import Duties
from penstock.runtime.engine import Engine
from penstock.runtime.hugging_face import HuggingFaceFiles
from penstock.runtime.links import Links
from penstock.runtime.recorder import StepRecord
from penstock.runtime.shared_weights.replica_agreement import check_weights
from penstock.runtime.transport.relay import Awaited, Relay, relay_channels
from penstock.simulator.steady import steady_phase
from penstock.timeline import Timeline
from penstock.verifier import Proof

_RUN, _DRAIN = 0, 1


class Running(HuggingFaceFiles):
    """The part of `Pipeline` that goes on from batch to batch without emptying."""

    device: torch.device
    steps_done: int
    _alike: bool
    _duties: Duties
    _feed: Feed
    _links: Links
    _parameters: list[nn.Parameter]
    _traced: Engine
    _under_way: bool
    _engine: Callable[..., Engine]
    _need_loss: Callable[[], None]
    _flight: Flight | None = None
    _planned: FlightPlan | None = None
    _relays: tuple[Relay, Relay]
    _losses: deque[Awaited]

    def run(self, batches: Iterable[tuple[Any, Any]]) -> Iterator[torch.Tensor]:
        """Yields the loss of each batch, the same number on every rank, while the batch behind it is at work already.

        For schedules that step inside. The pipeline fills once and drains when `batches` has ended; the weights, and
        every optimizer step, are those of the schedule with all batches in a row. Each batch is m microbatches. A loop
        may be left before the end, and gone on with by another `run`: what is in flight stays, until `drain`. The
        tensors of a batch must stay as they are until its loss has been given.

        Args:
            batches: inputs and targets as for `step`, as many on every rank; where they are not needed, None.

        Raises:
            ScheduleError: the schedule has a flush, or replicated stages.
            BatchError: as for `step`. Once something is in flight, a rank that refuses a batch ends the pipeline.
            HandshakeError: one rank has more batches than another, or does something else.
            RankFailedError: another rank failed or fell silent.
        """
        self._need_loss()
        if self._steps is None:
            raise ModelError(
                f"{self.plan.schedule.name} has a flush at the end of each step, and run is for schedules that step "
                "inside, e.g. pipedream; call step"
            )
        self._plan_flight()  # refused here, not when the first batch is taken
        return self._run_all(batches)

    def drain(self) -> list[torch.Tensor]:
        """Returns the losses that `run` has not given yet, when all that is in flight has been applied.

        Every rank calls it. Nothing happens where nothing is in flight.
        """
        flight = self._flight
        if flight is None or not flight.batches:
            return []
        with self._calling("drain"):
            self._under_way = True
            self._told(_DRAIN, Offer())
            flight.drain()
            agree(self._transport, "drain", number=self._calls, offer=Offer())
            return [self._losses.popleft().wait().reshape(()) for _ in range(len(self._losses))]

    def in_flight_state_dict(self) -> dict[str, torch.Tensor]:
        """Returns what this rank has in flight between two batches of `run`, by name; empty where there is nothing.

        Older weight versions, gradients on their way to a step, and what entered this rank's stages. With `state_dict`
        and `optimizer_state_dict` it is all that a run needs to go on, bit for bit, in the same layout: forwards in
        flight run once more then. Their random numbers are the same where the pipeline has a seed. Every rank calls it.

        Raises:
            ModelError: the schedule keeps no versions (pipemare), or a stage writes into its input; drain first.
        """
        flight = self._flight
        if flight is None or not flight.batches:
            return {}
        losses = [awaited.wait() for awaited in self._losses]
        return save_flight(self._flight_state(flight), losses)

    def load_in_flight_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Goes on from what `in_flight_state_dict` gave, after the weights and optimizers have been loaded.

        Every rank calls it, each with its own.

        Raises:
            ModelError: another schedule, partition or rank, or something is in flight here.
        """
        self._need_drained("load_in_flight_state_dict")
        problem: Exception | None = None
        if any(reply == b"1" for reply in self.exchange(b"1" if state else b"0")):
            flight = self._made()
            try:
                self._losses = deque(Awaited(loss) for loss in load_flight(self._flight_state(flight), state))
            except Exception as error:
                problem = error
        check_same(self._transport, {}, problem)

    @property
    def in_flight(self) -> int:
        """How many batches `run` has taken since nothing was in flight; 0 where nothing is."""
        return self._flight.batches if self._flight is not None else 0

    def _need_drained(self, name: str, loss_scale: float = 1.0) -> None:
        if loss_scale != 1 and self._steps is not None:
            raise ModelError(
                f"loss_scale={loss_scale} and {self.plan.schedule.name}, which steps inside with the gradients as they "
                "come; leave it 1, and use a type that needs no scale, e.g. bfloat16"
            )
        if self.in_flight:
            raise ModelError(f"{name} with microbatches of run in flight; call drain first")

    def _run_all(self, batches: Iterable[tuple[Any, Any]]) -> Iterator[torch.Tensor]:
        for inputs, targets in batches:
            loss = self._go_on(inputs, targets)
            if loss is not None:
                yield loss
        yield from self.drain()

    def _go_on(self, inputs: Any, targets: Any) -> torch.Tensor | None:
        """Takes one batch; returns the loss of the one before it, if that was in flight."""
        with self._calling("run"):
            sizes = partial(even_sizes, num_microbatches=self.plan.schedule.num_microbatches)
            trained = [parameter.requires_grad for parameter in self._parameters]
            call = Call("run", self._calls, inputs, targets, sizes, trained)
            self._under_way = self.in_flight > 0
            agreement = self._passed_on if self.in_flight else agree
            batch, agreed = self._feed.prepare(call, training=True, step=self.steps_done, agreement=agreement)
            if self._replicas is not None and not self._alike:
                check_weights(self._transport, self._replicas, self.named_parameters())
                self._alike = True
            flight = self._made()
            self._under_way = True
            self._traced = flight.engine
            _, losses = self._relays
            if not losses.sends:
                self._losses.append(losses.post())
            self._tell_loss(flight.advance(batch, agreed.signature))
        self.steps_done += 1
        return self._losses.popleft().wait().reshape(()) if len(self._losses) > 1 else None

    def _tell_loss(self, batch: StepBatch) -> None:
        _, losses = self._relays
        if losses.sends:
            loss = batch.mean_loss()
            if self._replicas is not None:
                loss = self._replicas.sum_tensor(loss)
            losses.send(loss)
            self._losses.append(Awaited(loss.reshape(1)))

    def _made(self) -> Flight:
        """Returns this rank's flight, made with the first batch. Every rank calls it.

        Raises:
            ScheduleError: the schedule cannot go on without a flush.
        """
        if self._flight is None:
            placement, plan = self.plan.placement, self._plan_flight()
            first, last = placement.rank_of(0), placement.rank_of(placement.num_stages - 1)
            pairs = {*relay_channels(first, placement.num_ranks), *relay_channels(last, placement.num_ranks)}
            self._transport.open(sorted(pairs))
            self._relays = (
                Relay(self._transport, first, width=4, dtype=torch.int64, device=self.device),
                Relay(self._transport, last, width=1, dtype=torch.float64, device=self.device),
            )
            self._losses = deque()
            self._flight = Flight(
                plan,
                self.rank,
                stages=self._stages,
                links=self._links,
                make_engine=self._flying_engine,
            )
        return self._flight

    def _plan_flight(self) -> FlightPlan:
        if self._planned is None:
            self._planned = plan_flight(self.plan.schedule, reduce_gradients=self._replicas is not None)
        return self._planned

    def _stretch(self, recorded: Sequence[Sequence[StepRecord]], offsets: list[float]) -> list[Timeline]:
        flight = self._made()
        found = stretch_timeline(self.plan.schedule, flight.parts, recorded, offsets)
        try:
            return [] if found is None else [steady_phase(found)]
        except UserError:  # too few batches in a row: the ranks were never all at work
            return []

    def _flying_engine(self, proof: Proof, table: StepTable) -> Engine:
        stepping = self._steps.over(table) if self._steps is not None else None
        return self._engine(proof, self._duties._replace(stepping=stepping))

    def _passed_on(
        self, transport: object, call: str, *, number: int, offer: Offer, problem: Exception | None = None
    ) -> Offer:
        """Returns what the first stage's rank says of the batch, where it fits what this rank has; it is an `agree`."""
        if problem is not None:
            raise problem
        return self._told(_RUN, offer)

    def _told(self, what: int, offer: Offer) -> Offer:
        calls, _ = self._relays
        if calls.sends:
            calls.send(torch.tensor([what, self._calls, offer.inputs, offer.signature]))
            said = [what, self._calls, offer.inputs, offer.signature]
        else:
            said = calls.post().wait().tolist()
        if said[:2] != [what, self._calls]:
            names = {_RUN: "takes a further batch", _DRAIN: "has no further batch"}
            first = self.plan.placement.rank_of(0)
            raise HandshakeError(
                f"rank {self.rank} {names[what]} (its call {self._calls}) and rank {first} {names[said[0]]} (its call "
                f"{said[1]}); give run as many batches on every rank"
            )
        if offer.targets not in (-1, said[2]):
            raise BatchError(
                f"inputs on rank {self.plan.placement.rank_of(0)} hold {said[2]} samples and targets on rank "
                f"{self.rank} hold {offer.targets}; give as many of both"
            )
        return Offer(said[2], said[2], said[3])

    def _flight_state(self, flight: Flight) -> FlightState:
        if self._steps is None:
            raise ModelError(f"{self.plan.schedule.name} has nothing in flight between two steps")
        return FlightState(
            flight, self._steps.stages, self._stages, self._links, self.plan.proof.program.digest, self.rank
        )
