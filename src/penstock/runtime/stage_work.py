"""Forward and backward of one stage: what it keeps of each microbatch in flight, and no longer than needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import GradientEdge, _engine_run_backward, get_gradient_edge

from penstock.errors import BatchError
from penstock.models import Stage
from penstock.runtime.boundary import BoundarySpec, flatten, unflatten
from penstock.runtime.split_backward import DeferredForward, Tape, accumulate
from penstock.runtime.split_backward.tape import Entry

LossFunction = Callable[[Any, Any], torch.Tensor]


class Boundary(NamedTuple):
    """A value between two stages: its spec and its tensors."""

    spec: BoundarySpec
    tensors: tuple[torch.Tensor, ...]


class _InFlight(NamedTuple):
    """What a forward leaves for its backward: where gradients come out and where they go in.

    Only the edges of the autograd graph are kept, not the output: its memory is free once it is sent.
    """

    inputs: tuple[torch.Tensor, ...]
    edges: tuple[GradientEdge, ...]


class StageWork:
    """One stage on its rank, with the microbatches it has in flight.

    Args:
        module: the stage's layers.
        loss_fn: set on the last stage only: (output, target) -> scalar loss of the microbatch.

    Attributes:
        writes_input: whether a forward writes into what enters the stage; None until a training forward has shown it.
    """

    def __init__(self, module: Stage, *, loss_fn: LossFunction | None) -> None:
        self.module = module
        self.loss_fn = loss_fn
        self._in_flight: dict[int, _InFlight] = {}
        self.writes_input: bool | None = None
        self._tape = Tape()
        self._deferring = DeferredForward(module, self._tape)
        self._deferred: dict[int, list[Entry]] = {}

    def finish(self) -> None:
        """Drops what is kept for one step only."""
        self._tape.casts.clear()

    def weights_changed(self) -> None:
        """Drops what was made of the weights, which are others from now on: autocast's copies know no version."""
        self._tape.casts.clear()
        torch.clear_autocast_cache()

    def renumber(self, by: int) -> None:
        """Adds `by` to the number of every microbatch in flight."""
        self._in_flight = {i + by: kept for i, kept in self._in_flight.items()}
        self._deferred = {i + by: kept for i, kept in self._deferred.items()}

    def forget(self) -> None:
        """Drops all microbatches in flight, after a step that did not finish."""
        self._in_flight.clear()
        self._deferred.clear()
        self._tape.entries = None
        self.finish()

    def forward(self, value: Any, *, split: bool) -> Any:
        """Returns the stage's output on `value`, whose backward is split into I and W or is not."""
        if not split:
            return self.module(value)
        with self._deferring:
            return self.module(value)

    def forward_from(self, boundary: Boundary, *, training: bool, split: bool) -> tuple[tuple[torch.Tensor, ...], Any]:
        """Returns the leaf tensors that enter the stage, and its output."""
        spec = boundary.spec
        leaves = tuple([tensor.detach() for tensor in boundary.tensors])
        if training:
            for leaf, (_, _, needs_grad) in zip(leaves, spec.tensors, strict=True):
                if needs_grad:
                    leaf.requires_grad_()
        if not training or self.writes_input is False:
            return leaves, self.forward(unflatten(spec, leaves), split=split)
        shields = tuple(_shielded(leaf) if leaf.requires_grad else leaf for leaf in leaves)
        versions = [shield._version for shield in shields]
        output = self.forward(unflatten(spec, shields), split=split)
        if self.writes_input is None:
            self.writes_input = any(shield._version != old for shield, old in zip(shields, versions, strict=True))
        return leaves, output

    def keep(self, microbatch: int, leaves: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor]) -> None:
        """Keeps what the backward of `microbatch` needs."""
        edges = tuple([_edge(output) for output in outputs if output.requires_grad])
        self._in_flight[microbatch] = _InFlight(tuple([leaf for leaf in leaves if leaf.requires_grad]), edges)

    def backward(self, microbatch: int, grads: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Runs the full backward; returns the gradients of the inputs that need one, in order.

        Args:
            microbatch: one whose forward has run.
            grads: one for each output that needs a gradient; for the loss its weight.
        """
        kept = self._in_flight.pop(microbatch)
        if kept.edges:
            _run_backward(kept.edges, tuple(grads))
        return [_take_grad(leaf) for leaf in kept.inputs]

    def input_grads(self, microbatch: int, grads: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Runs the input half of a backward; returns what `backward` does, and leaves the rest for `weight_grads`.

        Args:
            microbatch: one whose forward ran under `deferring(True)`.
            grads: as for `backward`. Autograd runs in the caller's thread, as `backward_in_one_thread` makes it,
                where the mode of the forward is in force.
        """
        entries: list[Entry] = []
        self._tape.entries = entries
        try:
            with self._deferring:  # activation checkpointing runs a forward once more
                found = self.backward(microbatch, grads)
        finally:
            self._tape.entries = None
        self._deferred[microbatch] = entries
        return found

    def deferred(self, microbatch: int) -> list[Entry]:
        """Returns what `input_grads` has left of `microbatch`."""
        return self._deferred[microbatch]

    def weight_grads(self, microbatch: int) -> None:
        """Runs the other half: adds to `.grad` what `input_grads` has left."""
        accumulate(self._deferred.pop(microbatch))

    def loss(self, output: Any, target: Any) -> torch.Tensor:
        """Returns the loss of one microbatch.

        Raises:
            BatchError: the loss function does not return a scalar tensor.
        """
        if self.loss_fn is None:
            raise BatchError("this pipeline has no loss function; pass loss_fn= to Pipeline")
        loss = self.loss_fn(output, target)
        if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
            what = f"shape {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else type(loss).__name__
            raise BatchError(f"loss_fn returned {what}; return one number a microbatch, e.g. the mean over its samples")
        return loss


class _Shield(torch.autograd.Function):
    """Its input's memory under another name, which is no leaf: a layer may write into it, as `ReLU(inplace=True)` does.

    It counts writes together with its input, so that autograd sees one into what another backward needs.
    """

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.detach()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return grad


def _shielded(leaf: torch.Tensor) -> torch.Tensor:
    shield: torch.Tensor = _Shield.apply(leaf)  # type: ignore[no-untyped-call]
    return shield


def boundary_of(output: Any, *, known: BoundarySpec | None = None) -> Boundary:
    """Returns a stage's output as a boundary; its tensors still belong to the autograd graph.

    Args:
        output: a tree of tensors and plain values.
        known: what its spec was before, and probably is again.
    """
    if known is not None and known.is_of(output):
        return Boundary(known, (output,))
    spec, tensors = flatten(output)
    return Boundary(spec, tuple(tensors))


def backward_in_one_thread(needed: bool) -> AbstractContextManager[object]:
    """Returns the context of a step in which autograd runs backwards in the calling thread, if `needed`."""
    return torch.autograd.set_multithreading_enabled(False) if needed else nullcontext()


def _edge(output: torch.Tensor) -> GradientEdge:
    """Returns where gradients of `output` enter its graph; at once for a node that needs no keeping alive."""
    node = output.grad_fn
    kept_by_python = isinstance(node, BackwardCFunction)
    return get_gradient_edge(output) if node is None or kept_by_python else GradientEdge(node, output.output_nr)


def _run_backward(edges: tuple[GradientEdge, ...], grads: tuple[torch.Tensor, ...]) -> None:
    """Does what torch.autograd.backward does behind its checks of the gradients, which take as long as a small stage.

    What they check holds: every root has its gradient, and both ends of a boundary know its shapes.
    """
    _engine_run_backward(edges, grads, False, False, (), allow_unreachable=True, accumulate_grad=True)


def _take_grad(leaf: torch.Tensor) -> torch.Tensor:
    grad, leaf.grad = leaf.grad, None
    return torch.zeros_like(leaf) if grad is None else grad
