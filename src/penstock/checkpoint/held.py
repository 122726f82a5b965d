"""Everything of one rank that a checkpoint concerns, as the user gives it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch.optim import Optimizer

from penstock.checkpoint.groups import Managed
from penstock.errors import CheckpointError
from penstock.runtime import Pipeline
from penstock.runtime.asynchronous.optimizer_state import stepped_stages_of


class Stateful(Protocol):
    """An object that says where it is and can go on from there, such as a data loader or a `LossScaler`."""

    def state_dict(self) -> Any:
        """Returns plain values and tensors."""
        ...

    def load_state_dict(self, state: Any, /) -> Any:
        """Goes on from there."""
        ...


@dataclass(frozen=True, eq=False)
class Held:
    """Everything of one rank that a checkpoint concerns.

    Attributes:
        pipe: the pipeline.
        optimizers: of the loop.
        schedulers: learning rate schedulers of these optimizers.
        state: the user's own objects by name.
    """

    pipe: Pipeline
    optimizers: tuple[Optimizer, ...] = ()
    schedulers: tuple[Any, ...] = ()
    state: Mapping[str, Stateful] = field(default_factory=dict)


def held(pipe: Pipeline, *, optimizer: Any, scheduler: Any, state: Mapping[str, Stateful] | None) -> Held:
    """Returns what the user has given, `optimizer` and `scheduler` being None, one, or a sequence.

    Raises:
        CheckpointError: an argument of another kind, or a key that cannot be one.
    """
    own = Held(pipe, _several(optimizer), _several(scheduler), state or {})
    for each in own.optimizers:
        _check_has("param_groups", f"optimizer is {_kind(each)}", each, "torch.optim.AdamW(pipe.parameters())")
    for each in own.schedulers:
        example = "torch.optim.lr_scheduler.StepLR(optimizer, 10)"
        _check_has("state_dict", f"scheduler is {_kind(each)}", each, example)
    for key, stateful in own.state.items():
        if not key or "/" in key:
            raise CheckpointError(f'state has the key "{key}"; use a word without "/", e.g. "loader"')
        example = "an object with state_dict and load_state_dict; plain values go into extra="
        _check_has("state_dict", f'state["{key}"] is {_kind(stateful)}', stateful, example)
    return own


def managed(own: Held, stored: Callable[[str], str]) -> Iterator[Managed]:
    """Yields the optimizers of this rank, those inside the schedule and the loop's.

    Args:
        own: what there is.
        stored: name of a parameter -> what a checkpoint calls it.

    Raises:
        CheckpointError: an optimizer of other parameters, or schedulers that belong to none.
    """
    for stage in stepped_stages_of(own.pipe).values():
        if stage.optimizer is not None:
            named = zip(stage.versions.masters, stage.versions.names, strict=True)
            yield Managed(stage.optimizer, stage.scheduler, {master: stored(name) for master, name in named})
    names = {parameter: stored(name) for name, parameter in own.pipe.named_parameters()}
    schedulers = _by_optimizer(own)
    taken: set[int] = set()
    for at, optimizer in enumerate(own.optimizers):
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        foreign = sum(parameter not in names for parameter in parameters)
        if foreign:
            raise CheckpointError(
                f"{foreign} of the optimizer's {len(parameters)} parameters are not this pipeline's; make the "
                "optimizer of pipe.parameters()"
            )
        twice = next((names[parameter] for parameter in parameters if id(parameter) in taken), None)
        if twice is not None:
            raise CheckpointError(f'"{twice}" is in two optimizers; give each parameter to one of them')
        taken.update(id(parameter) for parameter in parameters)
        yield Managed(optimizer, schedulers.get(at), {parameter: names[parameter] for parameter in parameters})


def _by_optimizer(own: Held) -> dict[int, Any]:
    """Returns place of an optimizer -> its scheduler."""
    if not own.schedulers:
        return {}
    if len(own.optimizers) == len(own.schedulers) == 1:
        return {0: own.schedulers[0]}
    found: dict[int, Any] = {}
    for scheduler in own.schedulers:
        of = getattr(scheduler, "optimizer", None)
        at = next((at for at, optimizer in enumerate(own.optimizers) if optimizer is of), None)
        if at is None or at in found:
            raise CheckpointError(
                f"{len(own.schedulers)} schedulers do not belong one by one to {len(own.optimizers)} optimizers; give "
                "each optimizer at most one, e.g. a torch.optim.lr_scheduler.SequentialLR"
            )
        found[at] = scheduler
    return found


def _several(value: Any) -> tuple[Any, ...]:
    if value is None:
        return ()
    return tuple(value) if isinstance(value, Sequence) else (value,)


def _check_has(method: str, what: str, given: Any, example: str) -> None:
    if not hasattr(given, method):
        raise CheckpointError(f"{what}, which has no {method}; give e.g. {example}")


def _kind(value: Any) -> str:
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiouAEIO' else 'a'} {name}"
