"""What a rank has in flight between two batches, as tensors by name: out, and in again.

    about                            plain values: what there is, as JSON in a row of bytes
    version/STAGE/NUMBER/NAME        older weights that a backward in flight needs
    gradient/NAME                    what has been added up for the next step
    entered/STAGE/MICROBATCH/AT      what entered a stage, whose forward runs once more when a run goes on
    arrived/KIND/STAGE/MICROBATCH/AT   messages that are here already
    loss/AT                          losses that `run` has not given yet

The activations themselves are not kept: they come out of the forwards bit for bit, because the weights, what enters and
the random numbers are the same. Buffers that a forward writes are put back afterwards.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from penstock.errors import ModelError
from penstock.ir.dependencies import Value, ValueKind
from penstock.ir.ops import Op, OpKind
from penstock.runtime.asynchronous.flight import Flight
from penstock.runtime.asynchronous.stepping import SteppedStage
from penstock.runtime.batch.step_batch import StepBatch
from penstock.runtime.boundary import BoundarySpec, flatten, unflatten
from penstock.runtime.links import Links
from penstock.runtime.stage_work import Boundary, StageWork

_VERSION = 1

Tensors = dict[str, torch.Tensor]


class FlightState(NamedTuple):
    """What is saved and loaded.

    Attributes:
        flight: of this rank.
        stepped: its stages with their optimizers, by number.
        works: the same stages.
        links: its messages.
        program: digest of what the pipeline runs.
        rank: this rank.
    """

    flight: Flight
    stepped: Mapping[int, SteppedStage]
    works: Mapping[int, StageWork]
    links: Links
    program: str
    rank: int


def save_flight(state: FlightState, losses: Sequence[torch.Tensor]) -> Tensors:
    """Returns everything that `state` has in flight; tensors are copies, but for older weights, which do not change.

    Raises:
        ModelError: forwards in flight could not run again to the same bits.
    """
    flight, links = state.flight, state.links
    _check_repeatable(state)
    tensors: Tensors = {f"loss/{at}": loss.clone() for at, loss in enumerate(losses)}
    for number, stage in state.stepped.items():
        for version, memory in stage.versions.kept.items():
            tensors |= {f"version/{number}/{version}/{name}": value.detach() for name, value in memory.items()}
    for work in state.works.values():
        for name, parameter in work.module.named_parameters():
            if parameter.grad is not None:
                tensors[f"gradient/{name}"] = parameter.grad.clone()
    entered = []
    for (number, i), value in (flight.engine.entered or {}).items():
        spec, held = (value.spec, list(value.tensors)) if isinstance(value, Boundary) else flatten(value)
        entered.append([number, i, spec.encode().decode()])
        tensors |= {f"entered/{number}/{i}/{at}": each.detach().clone() for at, each in enumerate(held)}
    arrived = []
    for value, buffers in links.arrived().items():
        arrived.append([*map(int, value), len(buffers)])
        key = f"arrived/{int(value.kind)}/{value.stage}/{value.microbatch}"
        tensors |= {f"{key}/{at}": each.clone() for at, each in enumerate(buffers)}
    about = {
        "version": _VERSION,
        "program": state.program,
        "rank": state.rank,
        "batches": flight.batches,
        "signature": flight.signature,
        "step": flight.previous.step,
        "first": flight.previous.first,
        "starts": flight.previous.starts,
        "newest": {number: stage.versions.newest for number, stage in state.stepped.items()},
        "specs": [[*key, spec.encode().decode()] for key, spec in links.specs.items()],
        "entered": entered,
        "arrived": arrived,
    }
    tensors["about"] = torch.frombuffer(bytearray(json.dumps(about).encode()), dtype=torch.uint8)
    return tensors


def load_flight(state: FlightState, tensors: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
    """Returns the losses of a saved state that are still to be given, once all of it is in flight again.

    Raises:
        ModelError: it is of another program or rank.
    """
    about = _about(state, tensors)
    flight, links = state.flight, state.links
    previous = StepBatch(True, step=about["step"], first=about["first"], starts=about["starts"])
    flight.engine.open(previous, 0)
    kept = _by_version(tensors)
    for number, stage in state.stepped.items():
        stage.versions.resume(about["newest"][str(number)], kept.get(number, {}))
    specs = {(stage, i, replica): BoundarySpec.decode(spec.encode()) for stage, i, replica, spec in about["specs"]}
    links.resume(dict(_arrived(about, tensors, links.device)), specs)
    flight.batches, flight.signature, flight.previous = about["batches"], about["signature"], previous
    for number, i, text in about["entered"]:
        spec = BoundarySpec.decode(text.encode())
        held = [tensors[f"entered/{number}/{i}/{at}"].to(links.device) for at in range(len(spec.tensors))]
        value: Any = Boundary(spec, tuple(held)) if number else unflatten(spec, held)
        _repeat(state, Op(OpKind.F, number, i), value, previous)
    for work in state.works.values():
        for name, parameter in work.module.named_parameters():
            if f"gradient/{name}" in tensors:
                parameter.grad = tensors[f"gradient/{name}"].to(parameter, copy=True)
    return [tensors[f"loss/{at}"] for at in range(sum(name.startswith("loss/") for name in tensors))]


def _check_repeatable(state: FlightState) -> None:
    flight = state.flight
    reason = ""
    if flight.table.latest:
        reason = "its schedule keeps no weights of forwards in flight"
    writing = next((number for number, work in state.works.items() if work.writes_input), None)
    if writing is not None:
        reason = f"stage {writing} writes into what enters it"
    if flight.batch_written:
        reason = "a layer, or the loop, has written into its batch"
    if flight.engine.waits_here or flight.last_stage in {number for number, _ in flight.engine.entered or {}}:
        reason = "a stage of this rank has done the forward of a microbatch whose gradient is on its way"
    if reason:
        raise ModelError(
            f"what is in flight on rank {state.rank} cannot be saved: {reason}; call drain first, and then save "
            "state_dict and optimizer_state_dict"
        )


def _about(state: FlightState, tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    if "about" not in tensors:
        raise ModelError(f"rank {state.rank} has no state of what was in flight, and others have; give each its own")
    about: dict[str, Any] = json.loads(tensors["about"].cpu().numpy().tobytes())
    for key, here in (("version", _VERSION), ("program", state.program), ("rank", state.rank)):
        if about[key] != here:
            raise ModelError(
                f"what was in flight was saved with {key} {about[key]} and this is {key} {here}; go on under the same "
                "schedule and partition, or drain before saving"
            )
    return about


def _by_version(tensors: Mapping[str, torch.Tensor]) -> dict[int, dict[int, Tensors]]:
    """Returns stage -> version -> name -> tensor."""
    found: dict[int, dict[int, Tensors]] = {}
    for key, value in tensors.items():
        if key.startswith("version/"):
            _, stage, version, name = key.split("/", 3)
            found.setdefault(int(stage), {}).setdefault(int(version), {})[name] = value
    return found


def _arrived(
    about: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], device: torch.device
) -> list[tuple[Value, list[torch.Tensor]]]:
    return [
        (
            Value(ValueKind(kind), stage, i, replica),
            [tensors[f"arrived/{kind}/{stage}/{i}/{at}"].to(device, copy=True) for at in range(count)],
        )
        for kind, stage, i, replica, count in about["arrived"]
    ]


def _repeat(state: FlightState, op: Op, entered: Any, batch: StepBatch) -> None:
    """Runs a forward in flight once more, under the weights that it had; buffers stay as they are."""
    work, versions = state.works[op.stage], state.stepped[op.stage].versions
    buffers = [buffer.clone() for buffer in work.module.buffers()]
    versions.show(state.flight.table.uses[op.stage, op.microbatch].forward)
    state.flight.engine.repeat_forward(op, entered, batch)
    versions.show(versions.newest)
    for buffer, before in zip(work.module.buffers(), buffers, strict=True):
        buffer.data.copy_(before)
