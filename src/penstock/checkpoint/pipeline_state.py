"""What one rank of a pipeline puts into a checkpoint, and what it takes out of one.

    model/NAME               parameters and buffers that this rank owns, tied ones once
    optimizer/STATE/NAME     their optimizer states
    movement/discrepancy/NAME  PipeMare's average movement of the weights
    random/GENERATOR/RANK    where random generators stand
    state/KEY/RANK           what the user's own objects give: a data loader, a loss scaler

Between two steps of a pipeline nothing is under way: an asynchronous schedule ends its call with every microbatch
applied and one version of the weights. So nothing else is needed to go on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor
from torch.optim import Optimizer

from penstock.checkpoint.groups import Managed, check_groups, record_of, restore_groups
from penstock.checkpoint.manifest import Layout, Manifest
from penstock.checkpoint.names import aliases_of, stored_name
from penstock.checkpoint.optimizer_state import optimizer_tensors, restore_optimizer
from penstock.checkpoint.random_state import bytes_tensor, plain_value, random_tensors, restore_random
from penstock.checkpoint.ranks import Ranks
from penstock.checkpoint.read import MODEL, check_fits, mapped_tensors, names_for, verify_tensors
from penstock.checkpoint.shard import Shard
from penstock.errors import CheckpointError, nearest
from penstock.runtime import Pipeline
from penstock.runtime.optimizer_state import stepped_stages_of

_MOVEMENT = "movement/discrepancy/"


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
    """Returns what the user has given, `optimizer` and `scheduler` being None, one, or a sequence."""
    for key in state or {}:
        if not key or "/" in key:
            raise CheckpointError(f'state has the key "{key}"; use a word without "/", e.g. "loader"')
    return Held(pipe, _several(optimizer), _several(scheduler), state or {})


def shard_of(own: Held, ranks: Ranks) -> Shard:
    """Returns what this rank saves: live tensors, to be copied or written before the next step.

    Only the first data-parallel replica saves the model and its optimizer.

    Raises:
        CheckpointError: something that cannot be saved without a pickle; names it.
    """
    pipe = own.pipe
    aliases = aliases_of(pipe)
    tensors, records = {}, []
    managed = list(_managed(own, aliases))
    if ranks.rank < ranks.layout.num_ranks:
        owned = {name: value for name, value in pipe.state_dict().items() if name not in aliases}
        tensors = {f"{MODEL}{name}": _tensor(value, name) for name, value in owned.items()}
        for each in managed:
            mine = {parameter: name for parameter, name in each.names.items() if name in owned}
            tensors |= optimizer_tensors(each.optimizer, mine)
            records.append(record_of(each, owned=frozenset(owned)))
        tensors |= {name: value for name, value in _movements(pipe, aliases) if name.removeprefix(_MOVEMENT) in owned}
    tensors |= {f"random/{key}/{ranks.rank}": value for key, value in random_tensors(pipe.device).items()}
    for key, stateful in own.state.items():
        tensors[f"state/{key}/{ranks.rank}"] = bytes_tensor(stateful.state_dict(), where=f'state "{key}"')
    known = {name: stored for name, stored in aliases.items() if name != stored}
    return Shard(tensors, plan=pipe.plan.proof.program.digest, aliases=known, optimizers=tuple(records))


class Restoration:
    """A checkpoint that has been checked against this rank, every byte that it needs.

    Raises:
        CheckpointError: a tensor is missing, damaged or of another shape; settings or a state are missing.
    """

    def __init__(self, path: Path, manifest: Manifest, own: Held, ranks: Ranks) -> None:
        self._path, self._manifest, self._own = path, manifest, own
        pipe = own.pipe
        aliases = aliases_of(pipe)
        known = {name.removeprefix(MODEL): None for name in manifest.tensors() if name.startswith(MODEL)}
        owned, copies = pipe.state_dict(), [name for name, _ in pipe.named_parameters()]
        self._stored = {name: stored_name(name, aliases, known, saved=manifest.aliases) for name in [*owned, *copies]}
        expected = {f"{MODEL}{self._stored[name]}": _tensor(value, name) for name, value in owned.items()}
        check_fits(path, manifest, expected=expected)
        self._managed = [
            each._replace(names={p: self._stored[n] for p, n in each.names.items()}) for each in _managed(own, {})
        ]
        self._with_settings = manifest.version > 1
        for each in self._managed if self._with_settings else ():
            check_groups(each, manifest.optimizers)
        self._random = self._random_names(ranks)
        self._states = {key: _state_name(manifest, key, ranks) for key in own.state}
        self._names = [*expected, *self._optimizer_names(), *self._random.values(), *self._states.values()]
        verify_tensors(path, manifest, self._names)

    def apply(self) -> None:
        """Puts everything in place. Every rank calls it, when all have checked."""
        own, pipe = self._own, self._own.pipe
        tensors = mapped_tensors(self._path, self._manifest, self._names)
        pipe.load_state_dict({name: tensors[f"{MODEL}{self._stored[name]}"] for name in pipe.state_dict()})
        for each in self._managed:
            restore_optimizer(each.optimizer, each.names, tensors=tensors)
            if self._with_settings:
                restore_groups(each, self._manifest.optimizers)
        for name, movement in _movements(pipe, self._stored):
            if name in tensors:
                movement.copy_(tensors[name])
        if self._random:
            restore_random({key: tensors[name] for key, name in self._random.items()}, pipe.device)
        for key, name in self._states.items():
            own.state[key].load_state_dict(plain_value(tensors[name]))
        steps_done = self._manifest.steps_done
        pipe.steps_done = self._manifest.step if steps_done is None else steps_done

    def _optimizer_names(self) -> list[str]:
        stored = [name for each in self._managed for name in each.names.values()]
        return [name for name in names_for(self._manifest, stored) if not name.startswith((MODEL, "random/", "state/"))]

    def _random_names(self, ranks: Ranks) -> dict[str, str]:
        """Returns generator -> tensor; nothing in another layout, where a generator's place means nothing."""
        if self._manifest.layout != ranks.layout:
            return {}
        found = (name.split("/") for name in self._manifest.tensors() if name.startswith("random/"))
        return {key: f"random/{key}/{rank}" for _, key, rank in found if int(rank) == ranks.rank}


def _managed(own: Held, aliases: Mapping[str, str]) -> Iterator[Managed]:
    """Yields the optimizers of this rank, the loop's and those inside the schedule."""
    for stage in stepped_stages_of(own.pipe).values():
        if stage.optimizer is not None:
            named = zip(stage.versions.masters, stage.versions.names, strict=True)
            yield Managed(stage.optimizer, stage.scheduler, {master: aliases.get(name, name) for master, name in named})
    names = {parameter: aliases.get(name, name) for name, parameter in own.pipe.named_parameters()}
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


def _movements(pipe: Pipeline, names: Mapping[str, str]) -> Iterator[tuple[str, Tensor]]:
    for stage in stepped_stages_of(pipe).values():
        if stage.discrepancy is not None:
            for name, movement in zip(stage.versions.names, stage.discrepancy.movement, strict=True):
                yield f"{_MOVEMENT}{names.get(name, name)}", movement


def _state_name(manifest: Manifest, key: str, ranks: Ranks) -> str:
    """Returns the tensor with the state `key` for this rank: its own in the same layout, else the one that all had.

    Raises:
        CheckpointError: there is none, or ranks had different ones and the layout is another.
    """
    found = {name: entry for name, entry in manifest.tensors().items() if name.startswith(f"state/{key}/")}
    if not found:
        keys = sorted({name.split("/")[1] for name in manifest.tensors() if name.startswith("state/")})
        raise CheckpointError(
            f'the checkpoint has no state "{key}".{nearest(key, keys)} It has {", ".join(keys) or "none"}'
        )
    own = f"state/{key}/{ranks.rank}"
    if manifest.layout == ranks.layout and own in found:
        return own
    if len({entry.sha256 for entry in found.values()}) > 1:
        saved = manifest.layout or Layout(0)
        raise CheckpointError(
            f'the state "{key}" differed between the ranks that saved it; load it with {saved.num_ranks} ranks and '
            f"{saved.num_replicas} replicas, or leave it out of state="
        )
    return next(iter(found))


def _several(value: Any) -> tuple[Any, ...]:
    if value is None:
        return ()
    return tuple(value) if isinstance(value, Sequence) else (value,)


def _tensor(value: Any, name: str) -> Tensor:
    if not isinstance(value, Tensor):
        raise CheckpointError(
            f'"{name}" is a {type(value).__name__} and not a tensor; let the module\'s get_extra_state return a tensor'
        )
    return value
