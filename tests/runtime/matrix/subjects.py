"""What a loop of the matrix works on: a pipeline, or the unsplit model in its place, with the same few methods."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

import penstock as ps
from penstock.ir.schedule import Schedule
from penstock.ir.steps import SYNCHRONOUS, optimizer_steps
from penstock.runtime.batch.microbatches import BatchRules, ragged_sizes
from penstock.runtime.evaluating import eval_mode
from penstock.testing import reference_step

if TYPE_CHECKING:
    from tests.runtime.matrix.cases import Case

Found = dict[str, Tensor]


class Subject(Protocol):
    """A model that trains.

    Attributes:
        inside: optimizer steps within one step, of which each sees its share of the gradient; 1 for the loop's own.
        alike: whether its buffers are those of the unsplit model.
        pipe: what a loss scaler works on.
    """

    inside: int
    alike: bool
    pipe: Any

    def step(self, k: int, loss_scale: float = 1.0) -> Tensor: ...
    def evaluate(self, k: int) -> Tensor: ...
    def clip(self, most: float) -> Tensor: ...
    def named(self) -> dict[str, nn.Parameter]: ...
    def grads(self) -> Found: ...
    def buffers(self) -> Found: ...
    def has_buffers(self) -> bool: ...
    def on_grad(self, parameter: nn.Parameter, hook: Callable[[Tensor], Tensor | None]) -> None: ...
    def after_accumulation(self, parameter: nn.Parameter, hook: Callable[[nn.Parameter], None]) -> None: ...


class Adding(torch.optim.Optimizer):
    """Steps that leave the weights alone and add up the gradients: how a schedule that steps inside shows them."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        super().__init__(parameters, {})

    def step(self, closure: object = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    state = self.state[parameter]
                    state["sum"] = parameter.grad.clone() + state.get("sum", 0)


def steps_inside(schedule: Schedule) -> int:
    """Returns how many optimizer steps of equal size a schedule has for each stage; 1 where the loop steps, 0 if none.

    With an equal number of microbatches in each, their gradients add up to that many times the whole batch's.
    """
    if schedule.weight_rule in SYNCHRONOUS:
        return 1
    taken = optimizer_steps(schedule).taken.values()
    sizes = {len(step.microbatches) for steps in taken for step in steps}
    return schedule.num_microbatches // sizes.pop() if len(sizes) == 1 else 0


class Piped:
    """A pipeline on one rank; `replica` says which data are its own."""

    def __init__(self, pipe: ps.Pipeline, case: Case, *, replica: int = 0) -> None:
        self.pipe, self._case, self._replica = pipe, case, replica
        self.inside = steps_inside(pipe.schedule)
        # Where several directions share a stage, each copy has the statistics of its own microbatches.
        self.alike = pipe.plan.placement.num_replicas == 1
        self._canonical = {name: tie.holders[0][1] for tie in pipe.plan.ties for _, name in tie.holders}

    def step(self, k: int, loss_scale: float = 1.0) -> Tensor:
        data = self._case.data(self.pipe.num_microbatches, k, self._replica)
        return self.pipe.step(*data, **({} if loss_scale == 1 else {"loss_scale": loss_scale}))

    def evaluate(self, k: int) -> Tensor:
        return self.pipe.evaluate(*self._case.data(self.pipe.num_microbatches, k, self._replica, ragged=True))

    def clip(self, most: float) -> Tensor:
        return self.pipe.clip_grad_norm_(most)

    def named(self) -> dict[str, nn.Parameter]:
        """A tied parameter goes by the name of its first use, whatever stage this rank holds."""
        return {self._canonical.get(name, name): parameter for name, parameter in self.pipe.named_parameters()}

    def grads(self) -> Found:
        if self.pipe.schedule.weight_rule in SYNCHRONOUS:
            return {name: p.grad for name, p in self.named().items() if p.grad is not None}
        assert all(parameter.grad is None for parameter in self.named().values())
        states = self.pipe.optimizer_state_dict()["parameters"]
        return {name: state["sum"] / self.inside for name, state in states.items() if "sum" in state}

    def has_buffers(self) -> bool:
        return any(True for _ in self._case.model(1).buffers())

    def buffers(self) -> Found:
        own = {name for name, _ in self.pipe.named_parameters()}
        ties = {name for tie in self.pipe.plan.ties for _, name in tie.holders}
        return {name: value for name, value in self.pipe.state_dict().items() if name not in own | ties}

    def on_grad(self, parameter: nn.Parameter, hook: Callable[[Tensor], Tensor | None]) -> None:
        parameter.register_hook(hook)

    def after_accumulation(self, parameter: nn.Parameter, hook: Callable[[nn.Parameter], None]) -> None:
        parameter.register_post_accumulate_grad_hook(hook)


class Unsplit:
    """The whole model in one process, once for every data-parallel replica; the first one's weights are stepped.

    Hooks fire on the gradient of a step, once: what a pipeline promises of them.
    """

    inside = 1
    alike = True

    def __init__(self, case: Case, *, num_layers: int, num_microbatches: int, replicas: int = 1) -> None:
        self._case, self._m = case, num_microbatches
        self._models = [case.model(num_layers) for _ in range(replicas)]
        self._steps = 0
        self._hooks: dict[nn.Parameter, list[Callable[[Tensor], Tensor | None]]] = {}
        self._afterwards: dict[nn.Parameter, list[Callable[[nn.Parameter], None]]] = {}
        self.pipe = self

    def step(self, k: int, loss_scale: float = 1.0) -> Tensor:
        earlier = {name: parameter.grad for name, parameter in self.named().items()}
        batches = [self._case.data(self._m, k, replica) for replica in range(len(self._models))]
        loss, sums = torch.zeros((), dtype=torch.float64), dict[str, Tensor]()
        shares = self._shares(batches)
        for replica, (model, batch, share) in enumerate(zip(self._following(), batches, shares, strict=True)):
            model.zero_grad()
            loss += share / loss_scale * self._reference(model, batch, loss_scale, replica)
            for name, parameter in model.named_parameters():
                if parameter.grad is not None:
                    grad = share * parameter.grad
                    sums[name] = grad if name not in sums else sums[name] + grad
        self._steps += 1
        for name, parameter in self.named().items():
            self._fire(parameter, sums.get(name), earlier[name])
        return loss

    def evaluate(self, k: int) -> Tensor:
        batches = [self._case.data(self._m, k, replica, ragged=True) for replica in range(len(self._models))]
        total = torch.zeros((), dtype=torch.float64)
        for model, batch, share in zip(self._following(), batches, self._shares(batches), strict=True):
            pieces = self._pieces(batch)
            weights = [self._weight(target, size) for _, target, size in pieces]
            with torch.no_grad(), eval_mode([model]):
                losses = [self._case.loss_fn(model(inputs), target).double() for inputs, target, _ in pieces]
            for loss, weight in zip(losses, weights, strict=True):
                total += share * loss * weight / sum(weights) if weight else 0
        return total

    def clip(self, most: float) -> Tensor:
        return nn.utils.clip_grad_norm_(self.named().values(), most)

    def named(self) -> dict[str, nn.Parameter]:
        return dict(self._models[0].named_parameters())

    def parameters(self) -> Iterator[nn.Parameter]:
        return self._models[0].parameters()

    def exchange(self, payload: bytes) -> list[bytes]:
        return [payload]

    def grads(self) -> Found:
        return {name: p.grad for name, p in self.named().items() if p.grad is not None}

    def has_buffers(self) -> bool:
        return bool(self.buffers())

    def buffers(self) -> Found:
        return dict(self._models[0].named_buffers())

    def on_grad(self, parameter: nn.Parameter, hook: Callable[[Tensor], Tensor | None]) -> None:
        self._hooks.setdefault(parameter, []).append(hook)

    def after_accumulation(self, parameter: nn.Parameter, hook: Callable[[nn.Parameter], None]) -> None:
        self._afterwards.setdefault(parameter, []).append(hook)

    def _reference(self, model: nn.Sequential, batch: tuple[Any, Any], loss_scale: float, replica: int) -> Tensor:
        def loss_fn(output: Any, target: Any) -> Tensor:
            return self._case.loss_fn(output, target) * loss_scale

        return reference_step(
            model,
            loss_fn,
            *batch,
            num_microbatches=self._m,
            step=self._steps,
            first_microbatch=replica * self._m,
            **self._case.reference,
        )

    def _fire(self, parameter: nn.Parameter, grad: Tensor | None, earlier: Tensor | None) -> None:
        if grad is None:
            parameter.grad = earlier
            return
        for hook in self._hooks.get(parameter, ()):
            changed = hook(grad)
            grad = grad if changed is None else changed
        parameter.grad = grad if earlier is None else earlier + grad
        for after in self._afterwards.get(parameter, ()):
            after(parameter)

    def _following(self) -> list[nn.Sequential]:
        first, *others = self._models
        with torch.no_grad():
            for other in others:
                for mine, theirs in zip(other.parameters(), first.parameters(), strict=True):
                    mine.copy_(theirs)
                    mine.requires_grad_(theirs.requires_grad)
        earlier = [parameter.grad for parameter in first.parameters()]
        assert len(earlier) == len(list(first.parameters()))
        return self._models

    def _pieces(self, batch: tuple[Any, Any]) -> list[tuple[Any, Any, int]]:
        rules = BatchRules(self._case.reference.get("batch_rules"))
        columns = []
        sizes: list[int] = []
        for name, value in zip(("inputs", "targets"), batch, strict=True):
            sizes = rules.sizes(
                value, name=name, divide=lambda size: ragged_sizes(size, self._m), num_microbatches=self._m
            )
            columns.append(rules.split(value, sizes, name=name))
        return list(zip(*columns, sizes, strict=True))

    def _weight(self, target: Any, size: int) -> float:
        weight_fn = self._case.reference.get("weight_fn")
        return float(weight_fn(target)) if weight_fn else float(size)

    def _shares(self, batches: list[tuple[Any, Any]]) -> list[float]:
        totals = [sum(self._weight(target, size) for _, target, size in self._pieces(batch)) for batch in batches]
        return [total / sum(totals) for total in totals]
