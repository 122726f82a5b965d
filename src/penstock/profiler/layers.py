"""Each kind of layer measured once: its ops in rounds that take turns, so that a busy moment is busy for all of them.

Every layer runs as a stage of its own. What an op takes however many layers its stage has (the runtime's handling,
autograd's start, what a model's forward prepares) is found by a stage of two: overhead = t(one) + t(other) - t(both).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import fields
from statistics import median, quantiles
from typing import Any, NamedTuple

import torch

from penstock.models import CutModel
from penstock.profiler.kinds import Placed, single
from penstock.profiler.storage import Kept, kept_by
from penstock.profiler.values import NOTHING, Boundary, LayerProfile, OpTimings, Timing
from penstock.profiler.workbench import Clock, Workbench, borrowed, clock_of, full_round, split_round
from penstock.runtime.boundary import BoundarySpec
from penstock.runtime.stage_work import LossFunction

Round = Mapping[str, float]

_WARM_UP, _FEWEST, _MOST = 2, 5, 200
"""Rounds that do not count, and how many count at least and at most."""


class Subject(NamedTuple):
    """What is measured.

    Attributes:
        model: as a front-end cuts it.
        placed: its layers with what enters them.
        inputs: the microbatch.
        loss: (function, targets); None: the last layer's output is the end.
        device: where it runs.
        recompute: whether ops that run the forward once more are measured too.
    """

    model: CutModel
    placed: Sequence[Placed]
    inputs: Any
    loss: tuple[LossFunction, Any] | None
    device: torch.device
    recompute: bool


class Measured(NamedTuple):
    """What was found of a stage: (its rounds, its bytes, its bytes with recomputation)."""

    rounds: list[Round]
    kept: Kept
    kept_again: Kept | None


def measured_layers(subject: Subject, *, seconds: float) -> tuple[tuple[LayerProfile, ...], OpTimings]:
    """Returns the profile of every layer, and the overhead of ops.

    Args:
        subject: the model and its microbatch.
        seconds: how long to measure, beyond a least number of rounds.
    """
    firsts = {placed.kind: index for index, placed in reversed(list(enumerate(subject.placed)))}
    pair = _pair(subject)
    with ExitStack() as stack:
        stages: dict[tuple[int, ...], _Benches] = {
            (index,): _benches(subject, index, 1, stack) for index in firsts.values()
        }
        if pair is not None:
            stages |= {(pair, pair + 1): _benches(subject, pair, 2, stack)}
        found = _measure(stages, subject, seconds)
    overhead = _overhead(found, subject.placed, firsts, pair)
    seen: set[int] = set()
    layers = []
    for (name, layer), placed in zip(subject.model.layers.items(), subject.placed, strict=True):
        new = [parameter for parameter in layer.parameters() if id(parameter) not in seen]
        seen |= {id(parameter) for parameter in new}
        measured = found[(firsts[placed.kind],)]
        layers.append(_layer(name, placed, measured, new))
    return tuple(layers), overhead


def _pair(subject: Subject) -> int | None:
    """Returns the first of two neighbours by which the overhead is found: alike and small, for the least noise."""
    placed = subject.placed
    if len(placed) < 2:
        return None
    sizes = [sum(p.numel() for p in layer.parameters()) for layer in subject.model.layers.values()]
    return min(
        range(len(placed) - 1),
        key=lambda index: (placed[index].kind != placed[index + 1].kind, sizes[index] + sizes[index + 1]),
    )


class _Benches(NamedTuple):
    plain: Workbench
    again: Workbench | None


def _benches(subject: Subject, first: int, count: int, stack: ExitStack) -> _Benches:
    stage = single(subject.model, first, count)
    stack.enter_context(borrowed(stage))
    given = subject.placed[first].given
    inputs = subject.inputs if first == 0 else None
    loss = subject.loss if first + count == len(subject.placed) else None
    plain = Workbench(stage, given, inputs=inputs, loss=loss)
    again = Workbench(stage, given, inputs=inputs, loss=loss, recompute=True) if subject.recompute else None
    return _Benches(plain, again)


def _measure(
    stages: Mapping[tuple[int, ...], _Benches], subject: Subject, seconds: float
) -> dict[tuple[int, ...], Measured]:
    clock = clock_of(subject.device)
    rounds: dict[tuple[int, ...], list[Round]] = {key: [] for key in stages}
    end = time.perf_counter() + seconds
    for count in range(_WARM_UP + _MOST):
        if count >= _WARM_UP + _FEWEST and time.perf_counter() > end:
            break
        for key, benches in stages.items():
            taken = _round(benches, clock)
            if count >= _WARM_UP:
                rounds[key].append(taken)
    return {
        key: Measured(
            rounds[key],
            kept_by(benches.plain, subject.device),
            kept_by(benches.again, subject.device) if benches.again else None,
        )
        for key, benches in stages.items()
    }


def _round(benches: _Benches, clock: Clock) -> Round:
    taken = full_round(benches.plain, clock) | split_round(benches.plain, clock)
    if benches.again is not None:
        taken |= full_round(benches.again, clock, prefix="recompute_")
        taken |= split_round(benches.again, clock, prefix="recompute_")
    return taken


def _overhead(
    found: Mapping[tuple[int, ...], Measured], placed: Sequence[Placed], firsts: Mapping[int, int], pair: int | None
) -> OpTimings:
    if pair is None:
        return OpTimings()
    one, other = (found[(firsts[placed[index].kind],)].rounds for index in (pair, pair + 1))
    both = found[(pair, pair + 1)].rounds

    def timing(name: str) -> Timing:
        rounds = zip(one, other, both, strict=True)
        return _timing([first[name] + second[name] - whole[name] for first, second, whole in rounds])

    return _timings(timing, one)


def _layer(name: str, placed: Placed, measured: Measured, parameters: Sequence[Any]) -> LayerProfile:
    rounds, kept, again = measured
    adds = [
        median([each[whole] - each[first] for each in rounds])
        for whole, first in (("backward", "first_backward"), ("weight_grad", "first_weight_grad"))
    ]
    return LayerProfile(
        name,
        placed.kind,
        _timings(lambda op: _timing([each[op] for each in rounds]), rounds),
        accumulate_seconds=max(0.0, sum(adds) / len(adds)),
        parameter_bytes=sum(p.nbytes for p in parameters),
        gradient_bytes=sum(p.nbytes for p in parameters if p.requires_grad),
        activation_bytes=kept.activation_bytes,
        keeps_input=kept.keeps_input,
        keeps_output=kept.keeps_output,
        input_bytes=sum(tensor.nbytes for tensor in placed.given.tensors),
        deferred_bytes=kept.deferred_bytes,
        defers_input=kept.defers_input,
        defers_output_grad=kept.defers_output_grad,
        output=boundary_sizes(placed.output),
        forward_peak_bytes=kept.forward_peak_bytes,
        backward_peak_bytes=kept.backward_peak_bytes,
        recompute_peak_bytes=again.backward_peak_bytes if again else 0,
    )


def boundary_sizes(spec: BoundarySpec) -> Boundary:
    """Returns the bytes of what passes on and of what comes back."""
    sizes = [each.dtype.itemsize * torch.Size(each.shape).numel() for each in spec.tensors]
    back = [size for size, each in zip(sizes, spec.tensors, strict=True) if each.needs_grad]
    return Boundary(sum(sizes), len(sizes), sum(back), len(back))


def _timings(timing: Callable[[str], Timing], rounds: Sequence[Round]) -> OpTimings:
    """Returns the timing of each op that was measured."""
    names = [field.name for field in fields(OpTimings)]
    return OpTimings(**{name: timing(name) if name in rounds[0] else NOTHING for name in names})


def _timing(seconds: Sequence[float]) -> Timing:
    low, middle, high = (max(0.0, each) for each in quantiles(seconds, n=4, method="inclusive"))
    return Timing(middle, low, high, len(seconds))
