"""One stage on the workbench: it runs by the runtime's own StageWork, whatever stands before and behind it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from penstock.models import Stage
from penstock.runtime.boundary import BoundarySpec
from penstock.runtime.stage_work import Boundary, LossFunction, StageWork, boundary_of

Clock = Callable[[], float]


def clock_of(device: torch.device) -> Clock:
    """Returns a clock in seconds that has waited for what runs on `device`."""
    if device.type == "cpu":
        return time.perf_counter

    def now() -> float:
        torch.accelerator.synchronize(device)
        return time.perf_counter()

    return now


@contextmanager
def borrowed(stage: nn.Module, device: torch.device | None = None) -> Iterator[None]:
    """Lets a stage run without a trace: other parameters on the same memory, copies of its buffers, then all put back.

    So the model's gradients, hooks and statistics stay as they are, and no weight is copied.

    Args:
        stage: any module.
        device: the meta device, to run without computing; None: where it is.
    """
    twins: dict[int, Any] = {}
    tables = [(module, dict(module._parameters), dict(module._buffers)) for module in stage.modules()]
    try:
        with torch.random.fork_rng():
            for module, parameters, buffers in tables:
                for name, parameter in parameters.items():
                    module._parameters[name] = None if parameter is None else _twin(parameter, twins, device)
                for name, buffer in buffers.items():
                    module._buffers[name] = None if buffer is None else buffer.to(device or buffer.device, copy=True)
            yield
    finally:
        for module, parameters, buffers in tables:
            module._parameters.update(parameters)
            module._buffers.update(buffers)


def _twin(parameter: nn.Parameter, twins: dict[int, Any], device: torch.device | None) -> nn.Parameter:
    if id(parameter) not in twins:
        twins[id(parameter)] = nn.Parameter(
            parameter.detach().to(device or parameter.device), requires_grad=parameter.requires_grad
        )
    twin: nn.Parameter = twins[id(parameter)]
    return twin


class _Again(nn.Module):
    """A stage that keeps its input alone and runs once more in its backward."""

    def __init__(self, stage: nn.Module) -> None:
        super().__init__()
        self.stage = stage

    def forward(self, value: Any) -> Any:
        return checkpoint(self.stage, value, use_reentrant=False, preserve_rng_state=False)


class Workbench:
    """One stage with a microbatch to work on.

    Args:
        stage: borrowed.
        given: what enters; its tensors are leaves.
        inputs: the microbatch, where this is the first stage; else None.
        loss: (function, targets) where this is the last stage and the model is trained.
        recompute: run the forward once more in the backward.
    """

    def __init__(
        self,
        stage: Stage,
        given: Boundary,
        *,
        inputs: Any = None,
        loss: tuple[LossFunction, Any] | None = None,
        recompute: bool = False,
    ) -> None:
        module: Any = _Again(stage) if recompute else stage
        self.stage = stage
        self.given, self._inputs, self._loss = given, inputs, loss
        self.work = StageWork(module, loss_fn=loss[0] if loss else None)
        self._known: BoundarySpec | None = None
        self._starts: tuple[Tensor, ...] = ()

    @property
    def has_loss(self) -> bool:
        """Whether what F gives is a loss."""
        return self._loss is not None

    @property
    def output(self) -> BoundarySpec | None:
        """What F gave last; None for a loss."""
        return self._known

    @property
    def batch(self) -> list[Tensor]:
        """The caller's own tensors: the microbatch and its targets, where they are used here."""
        trees = [self._inputs, self._loss[1] if self._loss else None]
        return [leaf for leaf in tree_leaves(trees) if isinstance(leaf, Tensor)]

    def forward(self, microbatch: int = 0, *, split: bool, given: Boundary | None = None) -> tuple[Tensor, ...]:
        """Runs F; returns what the backward starts from.

        Args:
            microbatch: its number among those in flight.
            split: whether its backward is I and W.
            given: what enters; None: what did in the example.
        """
        work = self.work
        leaves: tuple[Tensor, ...] = ()
        if self._inputs is not None:
            output = work.forward(self._inputs, split=split)
        else:
            leaves, output = work.forward_from(given or self.given, training=True, split=split)
        if self._loss:
            kept: tuple[Tensor, ...] = (work.loss(output, self._loss[1]),)
        else:
            boundary = boundary_of(output, known=self._known)
            self._known, kept = boundary.spec, boundary.tensors
        work.keep(microbatch, leaves, kept)
        return kept

    def starts(self, kept: Sequence[Tensor]) -> list[Tensor]:
        """Returns gradients to start a backward from, the same ones each time."""
        if not self._starts:
            self._starts = tuple(torch.full_like(each, 1e-3) for each in kept if each.requires_grad)
        return list(self._starts)

    def clear(self) -> None:
        """Drops gradients and what is in flight."""
        for parameter in self.stage.parameters():
            parameter.grad = None
        self.work.forget()
