"""Each kind of layer measured: its ops in rounds that take turns, so that a busy moment is busy for all of them.

Every layer runs as a stage of its own, in walks through all of them (`walk`). What an op takes however many layers
its stage has (the runtime's handling, autograd's start, code that is in no cache yet, what a model's forward prepares)
is found by walks through pairs of neighbours, each pair a stage: the second layer saves it. How much, depends on both:
behind an embedding a block still has its masks to make, and behind a block a head its own code to fetch.
"""

from __future__ import annotations

import time
from collections import ChainMap
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import fields, replace
from itertools import pairwise
from statistics import fmean, median, quantiles
from typing import Any, NamedTuple

import torch

from penstock.models import CutModel
from penstock.profiler.kinds import Placed, single
from penstock.profiler.storage import Kept, kept_by
from penstock.profiler.values import NOTHING, Boundary, LayerProfile, OpTimings, Timing
from penstock.profiler.walk import Round, walk
from penstock.profiler.workbench import Clock, Workbench, borrowed, clock_of
from penstock.runtime.boundary import BoundarySpec
from penstock.runtime.stage_work import LossFunction

_WARM_UP, _FEWEST, _MOST = 2, 5, 200
"""Rounds that do not count, and how many count at least and at most."""

_BEYOND_CACHES = 64 << 20
"""Bytes of weights after which a walk finds nothing in a cache that it left there: more layers would change nothing."""


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
    """What was found of a kind of layer: (its rounds, its bytes, its bytes with recomputation)."""

    rounds: list[Round]
    kept: Kept
    kept_again: Kept | None


def measured_layers(subject: Subject, *, seconds: float) -> tuple[LayerProfile, ...]:
    """Returns the profile of every layer.

    Args:
        subject: the model and its microbatch.
        seconds: how long to measure, beyond a least number of rounds.
    """
    with ExitStack() as stack:
        walked = {index: _benches(subject, index, 1, stack) for index in _walked(subject)}
        pairs = [{first: _benches(subject, first, 2, stack) for first in firsts} for firsts in _pairs(list(walked))]
        rounds, together = _measure(walked, pairs, subject, seconds)
        firsts = {subject.placed[index].kind: index for index in reversed(walked)}
        bytes_of = {kind: _bytes(walked[index], subject.device) for kind, index in firsts.items()}
    found = {kind: Measured(_merged(rounds, subject.placed, kind), *held) for kind, held in bytes_of.items()}
    sorts = _saved(rounds, together, subject.placed)
    saved = [OpTimings(), *(sorts[sort] for sort in pairwise(placed.kind for placed in subject.placed))]
    seen: set[int] = set()
    layers = []
    for (name, layer), placed, less in zip(subject.model.layers.items(), subject.placed, saved, strict=True):
        new = [parameter for parameter in layer.parameters() if id(parameter) not in seen]
        seen |= {id(parameter) for parameter in new}
        layers.append(replace(_layer(name, placed, found[placed.kind], new), saved=less))
    return tuple(layers)


def _walked(subject: Subject) -> list[int]:
    """Returns the layers of a walk: both of each sort of neighbours, and others until their weights exceed caches."""
    sorts = _sorts(subject.placed, range(len(subject.placed) - 1))
    chosen = {0} | {index for (first, *_) in sorts.values() for index in (first, first + 1)}
    layers = list(subject.model.layers.values())
    held = sum(_weights(layers[index]) for index in chosen)
    for index, layer in enumerate(layers):
        if index not in chosen and held < _BEYOND_CACHES:
            chosen.add(index)
            held += _weights(layer)
    return sorted(chosen)


def _weights(layer: Any) -> int:
    """Returns the bytes of a layer's parameters."""
    return sum(parameter.nbytes for parameter in layer.parameters())


_Sort = tuple[int, int]
"""The kinds of two layers that follow one another."""


def _sorts(placed: Sequence[Placed], firsts: Iterable[int]) -> dict[_Sort, list[int]]:
    """Returns sort of neighbours -> the first layer of each such pair among `firsts`."""
    found: dict[_Sort, list[int]] = {}
    for first in firsts:
        found.setdefault((placed[first].kind, placed[first + 1].kind), []).append(first)
    return found


def _pairs(walked: Sequence[int]) -> list[list[int]]:
    """Returns the first layers of all pairs of neighbours, in walks in which no layer is in two pairs."""
    firsts = [first for first, second in pairwise(walked) if first + 1 == second]
    return [row for row in ([first for first in firsts if first % 2 == odd] for odd in (0, 1)) if row]


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
    walked: Mapping[int, _Benches], pairs: Sequence[Mapping[int, _Benches]], subject: Subject, seconds: float
) -> tuple[list[dict[int, Round]], list[dict[int, Round]]]:
    """Returns the rounds of the walked layers by index, and of pairs by the index of their first layer."""
    clock = clock_of(subject.device)
    rounds, together = [], []
    end = time.perf_counter() + seconds
    for count in range(_WARM_UP + _MOST):
        if count >= _WARM_UP + _FEWEST and time.perf_counter() > end:
            break
        taken = dict(zip(walked, _round(list(walked.values()), clock), strict=True))
        at_once: dict[int, Round] = {}
        for row in pairs:
            at_once |= zip(row, _round(list(row.values()), clock), strict=True)
        if count >= _WARM_UP:
            rounds.append(taken)
            together.append(at_once)
    return rounds, together


def _round(stages: Sequence[_Benches], clock: Clock) -> list[Round]:
    plain = [benches.plain for benches in stages]
    again = [benches.again for benches in stages if benches.again is not None]
    walks = [walk(plain, clock, split=split) for split in (False, True)]
    if again:
        walks += [walk(again, clock, split=split, prefix="recompute_") for split in (False, True)]
    return [dict(ChainMap(*map(dict, rounds))) for rounds in zip(*walks, strict=True)]


def _merged(rounds: Sequence[Mapping[int, Round]], placed: Sequence[Placed], kind: int) -> list[Round]:
    """Returns the rounds of a kind: of each op the mean over the layers of that kind that were walked."""
    merged: list[Round] = []
    for each in rounds:
        alike = [taken for index, taken in each.items() if placed[index].kind == kind]
        merged.append({name: fmean(taken[name] for taken in alike) for name in alike[0]})
    return merged


def _bytes(benches: _Benches, device: torch.device) -> tuple[Kept, Kept | None]:
    return kept_by(benches.plain, device), kept_by(benches.again, device) if benches.again else None


def _saved(
    rounds: Sequence[Mapping[int, Round]], together: Sequence[Mapping[int, Round]], placed: Sequence[Placed]
) -> dict[_Sort, OpTimings]:
    """Returns sort of neighbours -> what ops of such a pair take less than those of its two layers."""

    def less(name: str, firsts: Sequence[int]) -> Timing:
        return _timing(
            [
                fmean(apart[first][name] + apart[first + 1][name] - pair[first][name] for first in firsts)
                for apart, pair in zip(rounds, together, strict=True)
            ]
        )

    names = list(next(iter(rounds[0].values())))
    return {
        sort: _timings(lambda name, firsts=firsts: less(name, firsts), names)  # type: ignore[misc]
        for sort, firsts in _sorts(placed, together[0]).items()
    }


def _layer(name: str, placed: Placed, measured: Measured, parameters: Sequence[Any]) -> LayerProfile:
    rounds, kept, again = measured
    adds = [
        median([each[whole] - each[first] for each in rounds])
        for whole, first in (("backward", "first_backward"), ("weight_grad", "first_weight_grad"))
    ]
    return LayerProfile(
        name,
        placed.kind,
        _timings(lambda op: _timing([each[op] for each in rounds]), rounds[0]),
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


def _timings(timing: Callable[[str], Timing], measured: Container[str]) -> OpTimings:
    """Returns the timing of each op that was measured."""
    names = [field.name for field in fields(OpTimings)]
    return OpTimings(**{name: timing(name) if name in measured else NOTHING for name in names})


def _timing(seconds: Sequence[float]) -> Timing:
    low, middle, high = (max(0.0, each) for each in quantiles(seconds, n=4, method="inclusive"))
    return Timing(middle, low, high, len(seconds))
