"""Stages walked as a rank runs them: F through all, microbatches in flight, backwards from the last, ops in turns.

So an op finds what it finds in training: an op of another kind has just run, so that its code is no longer in the
core's caches, other stages and microbatches have passed since its weights were read, and memory is new where it would
be.

    F0 | F1 B0 | F2 B1 | B2          F0 | F1 I0 | F2 I1 W0 | I2 W1 | W2

Each letter stands for all stages, in model order for F, from the last for the others. Letters side by side take turns,
a stage each: F1 of the first stage, B0 of the last, F1 of the second, and so on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

from torch import Tensor

from penstock.profiler.workbench import Clock, Workbench
from penstock.runtime.stage_work import Boundary, backward_in_one_thread

Round = Mapping[str, float]
"""Name of an op -> its seconds: the mean over a round's microbatches, since a step is a sum of ops."""

_WHOLE = ((("F", 0),), (("F", 1), ("B", 0)), (("F", 2), ("B", 1)), (("B", 2),))
_SPLIT = (
    (("F", 0),),
    (("F", 1), ("I", 0)),
    (("F", 2), ("I", 1), ("W", 0)),
    (("I", 2), ("W", 1)),
    (("W", 2),),
)
"""A microbatch whose gradients are the first, and two that add to them."""


class _Names(NamedTuple):
    """What an op is called in a round, for the first microbatch and for later ones."""

    first: str
    later: str


_CALLED = {
    False: {"F": _Names("forward", "forward"), "B": _Names("first_backward", "backward")},
    True: {
        "F": _Names("split_forward", "split_forward"),
        "I": _Names("input_grad", "input_grad"),
        "W": _Names("first_weight_grad", "weight_grad"),
    },
}


def walk(benches: Sequence[Workbench], clock: Clock, *, split: bool, prefix: str = "") -> list[Round]:
    """Returns for each stage the seconds of its ops, over those of a round's microbatches that took turns with others.

    Args:
        benches: the stages, in model order; some may be left out between two.
        clock: in seconds.
        split: whether a backward is I and W.
        prefix: of the names.
    """
    for bench in benches:
        bench.clear()
    with backward_in_one_thread(split):
        noted = _Walk(benches, clock, split=split).go()
    for bench in benches:
        bench.work.finish()
        bench.clear()
    return [{f"{prefix}{name}": fmean(seconds) for name, seconds in each.items()} for each in noted]


class _Walk:
    def __init__(self, benches: Sequence[Workbench], clock: Clock, *, split: bool) -> None:
        self._benches, self._clock, self._split = benches, clock, split
        self._noted: list[dict[str, list[float]]] = [{} for _ in benches]
        self._starts: dict[int, list[list[Tensor]]] = {}

    def go(self) -> list[dict[str, list[float]]]:
        does = {"F": self._forward, "B": self._backward, "I": self._backward, "W": self._weight_grads}
        names = _CALLED[self._split]
        for letters in _SPLIT if self._split else _WHOLE:
            called = [(names[op].later if i else names[op].first) if len(letters) > 1 else None for op, i in letters]
            through = [does[op](i, name) for (op, i), name in zip(letters, called, strict=True)]
            for _ in self._benches:
                for each in through:
                    next(each)
        return self._noted

    def _forward(self, microbatch: int, name: str | None) -> Iterator[None]:
        given: Boundary | None = None
        self._starts[microbatch] = []
        for index, bench in enumerate(self._benches):
            if given is not None:
                given = _entering(bench, given)
            begin = self._clock()
            kept = bench.forward(microbatch, split=self._split, given=given)
            self._note(index, name, begin)
            self._starts[microbatch].append(bench.starts(kept))
            given = None if bench.output is None else Boundary(bench.output, _detached(kept))
            del kept  # its graph is the stage's alone
            yield

    def _backward(self, microbatch: int, name: str | None) -> Iterator[None]:
        came: list[Tensor] = []
        for index in reversed(range(len(self._benches))):
            work, starts = self._benches[index].work, self._starts[microbatch][index]
            if [each.shape for each in came] == [each.shape for each in starts]:
                starts = came
            begin = self._clock()
            came = work.input_grads(microbatch, starts) if self._split else work.backward(microbatch, starts)
            self._note(index, name, begin)
            yield

    def _weight_grads(self, microbatch: int, name: str | None) -> Iterator[None]:
        for index in reversed(range(len(self._benches))):
            begin = self._clock()
            self._benches[index].work.weight_grads(microbatch)
            self._note(index, name, begin)
            yield

    def _note(self, index: int, name: str | None, begin: float) -> None:
        """Notes an op under its name; one that has none took no turns with others, and does not count."""
        seconds = self._clock() - begin
        if name is not None:
            self._noted[index].setdefault(name, []).append(seconds)


def _entering(bench: Workbench, given: Boundary) -> Boundary | None:
    """Returns what the stage before has given, or None where layers between the two are left out."""
    if given.spec != bench.given.spec:
        return None
    if bench.work.writes_input is False:
        return given
    return Boundary(given.spec, tuple(each.clone() for each in given.tensors))


def _detached(tensors: Iterable[Tensor]) -> tuple[Tensor, ...]:
    return tuple(tensor.detach() for tensor in tensors)
