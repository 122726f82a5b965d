"""What one rank of a pipeline puts into a checkpoint, and what it takes out of one.

    model/NAME               parameters and buffers that this rank owns, tied ones once
    optimizer/STATE/NAME     their optimizer states
    movement/discrepancy/NAME  PipeMare's average movement of the weights
    random/GENERATOR/RANK    where random generators stand
    state/KEY/RANK           what the user's own objects give: a data loader, a loss scaler
    in_flight/RANK/…         between two batches of `run`: older weights, what entered the stages, see in_flight.py

Between two steps of a pipeline nothing is under way: an asynchronous schedule ends its call with every microbatch
applied and one version of the weights. Only `run` leaves something in flight.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from penstock.checkpoint.groups import check_groups, record_of, restore_groups
from penstock.checkpoint.held import Held, managed
from penstock.checkpoint.in_flight import IN_FLIGHT, in_flight_names, in_flight_tensors, load_in_flight
from penstock.checkpoint.manifest import Layout, Manifest
from penstock.checkpoint.names import aliases_of, original, saved_here, stored_name
from penstock.checkpoint.optimizer_state import optimizer_tensors, restore_optimizer
from penstock.checkpoint.random_state import bytes_tensor, plain_value, random_tensors, restore_random
from penstock.checkpoint.ranks import Ranks
from penstock.checkpoint.read import MODEL, check_fits, mapped_tensors, names_for, verify_tensors
from penstock.checkpoint.shard import Shard
from penstock.errors import CheckpointError, nearest
from penstock.runtime import Pipeline
from penstock.runtime.asynchronous.optimizer_state import stepped_stages_of
from penstock.runtime.spread import part_like, whole

_MOVEMENT = "movement/discrepancy/"
_OF_A_RANK = ("random/", "state/", IN_FLIGHT)
_OTHERS = (MODEL, *_OF_A_RANK)


def shard_of(own: Held, ranks: Ranks, *, elsewhere: frozenset[str]) -> Shard:
    """Returns what this rank saves: live tensors, to be made `whole_shard` and copied or written before the next step.

    Only the first data-parallel replica saves the model and its optimizer.

    Args:
        own: what there is.
        ranks: this one among all.
        elsewhere: buffers that another rank saves.

    Raises:
        CheckpointError: something that cannot be saved without a pickle; names it.
    """
    pipe = own.pipe
    aliases = aliases_of(pipe)
    tensors, records = {}, []
    optimizers = list(managed(own, lambda name: original(aliases.get(name, name))))
    if ranks.collects:
        here = saved_here(pipe, aliases, elsewhere=elsewhere)
        owned = frozenset(map(original, here))
        tensors = {f"{MODEL}{original(name)}": _tensor(value, name) for name, value in here.items()}
        for each in optimizers:
            mine = {parameter: name for parameter, name in each.names.items() if name in owned}
            tensors |= optimizer_tensors(each.optimizer, mine)
            records.append(record_of(each, owned=owned))
        tensors |= {name: value for name, value in _movements(pipe, aliases) if name.removeprefix(_MOVEMENT) in owned}
    tensors |= {f"random/{key}/{ranks.rank}": value for key, value in random_tensors(pipe.device).items()}
    for key, stateful in own.state.items():
        tensors[f"state/{key}/{ranks.rank}"] = bytes_tensor(stateful.state_dict(), where=f'state "{key}"')
    tensors |= in_flight_tensors(pipe, ranks)
    known = {original(name): original(stored) for name, stored in aliases.items()}
    known = {name: stored for name, stored in known.items() if name != stored}
    return Shard(tensors, plan=pipe.plan.proof.program.digest, aliases=known, optimizers=tuple(records))


def whole_shard(shard: Shard, ranks: Ranks) -> Shard:
    """Returns a shard whose tensors are whole, of which one of the ranks that have parts of them saves all.

    Every rank calls it, when all have collected.
    """
    if not ranks.is_spread:
        return shard
    tensors = {name: whole(value) for name, value in shard.tensors.items()}
    if ranks.saves:
        return replace(shard, tensors=tensors)
    own = {name: value for name, value in tensors.items() if name.startswith(_OF_A_RANK)}
    return replace(shard, tensors=own, optimizers=())


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
        self._managed = list(managed(own, self._stored.__getitem__))
        self._with_settings = manifest.version > 1
        for each in self._managed if self._with_settings else ():
            check_groups(each, manifest.optimizers)
        self._random = self._random_names(ranks)
        self._states = {key: _state_name(manifest, key, ranks) for key in own.state}
        self._in_flight = in_flight_names(path, manifest, pipe, ranks)
        self._names = [*expected, *self._optimizer_names(), *self._random.values(), *self._states.values()]
        self._names += self._in_flight
        verify_tensors(path, manifest, self._names)

    @property
    def taken(self) -> list[str]:
        """Names of the parameters and buffers that this rank takes, as the checkpoint has them."""
        return sorted(set(self._stored.values()))

    def apply(self) -> None:
        """Puts everything in place. Every rank calls it, when all have checked."""
        own, pipe = self._own, self._own.pipe
        tensors = mapped_tensors(self._path, self._manifest, self._names)
        own_state = pipe.state_dict()
        stored = {name: tensors[f"{MODEL}{self._stored[name]}"] for name in own_state}
        pipe.load_state_dict({name: part_like(stored[name], like) for name, like in own_state.items()})
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
        if self._in_flight:
            load_in_flight(pipe, self._in_flight, tensors)

    def _optimizer_names(self) -> list[str]:
        stored = [name for each in self._managed for name in each.names.values()]
        return [name for name in names_for(self._manifest, stored) if not name.startswith(_OTHERS)]

    def _random_names(self, ranks: Ranks) -> dict[str, str]:
        """Returns generator -> tensor; nothing in another layout, where a generator's place means nothing."""
        if self._manifest.layout != ranks.layout:
            return {}
        found = (name.split("/") for name in self._manifest.tensors() if name.startswith("random/"))
        return {key: f"random/{key}/{rank}" for _, key, rank in found if int(rank) == ranks.rank}


def _movements(pipe: Pipeline, names: Mapping[str, str]) -> Iterator[tuple[str, Tensor]]:
    for stage in stepped_stages_of(pipe).values():
        if stage.discrepancy is not None:
            for name, movement in zip(stage.versions.names, stage.discrepancy.movement, strict=True):
                yield f"{_MOVEMENT}{original(names.get(name, name))}", movement


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


def _tensor(value: Any, name: str) -> Tensor:
    if not isinstance(value, Tensor):
        raise CheckpointError(
            f'"{name}" is a {type(value).__name__} and not a tensor; let the module\'s get_extra_state return a tensor'
        )
    return value
