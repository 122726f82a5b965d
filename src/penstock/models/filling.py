"""Models on the meta device: which tensors a rank makes, and where their numbers come from.

the model on meta     embed ─ layer 0 ─ layer 1 ─ layer 2 ─ head       shapes and types, no memory
this rank's stages                      layer 1 ─ layer 2              1  memory for these alone
                                                                       2  read from files, where there are files
                                                                       3  the rest by the model's own initialisation
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from penstock.errors import ModelError
from penstock.models.keyed_draws import KeyedDraws, storage_of

Reader = Callable[[Mapping[str, Tensor]], set[str]]
"""Fills tensors by their names in the model, and returns the names of those that it has filled."""


@dataclass(frozen=True)
class Held:
    """A tensor of this rank's stages that had no numbers, and has memory now.

    Attributes:
        tensor: the parameter or buffer.
        names: every name that it has in the model: more than one where it is tied.
    """

    tensor: Tensor
    names: tuple[str, ...]


def on_meta(module: nn.Module) -> bool:
    """Returns whether any parameter or buffer of `module` has no numbers."""
    return any(tensor.is_meta for tensor in (*module.parameters(), *module.buffers()))


def fill(
    roots: Mapping[str, nn.Module], stages: Sequence[nn.Module], *, seed: int | None, read: Reader | None = None
) -> None:
    """Gives the tensors of `stages` memory on the CPU, and numbers.

    Numbers depend on the seed and the parameter's name alone: every layout starts with the same bits. Tensors of no
    stage stay on the meta device.

    Args:
        roots: prefix -> module; together the whole model, which shares its modules with `stages`. It is changed.
        stages: those of this rank.
        seed: key of what is drawn; None where everything is read.
        read: takes numbers from files; what it leaves is initialised.

    Raises:
        ModelError: a parameter that is to be drawn and no seed, or one that the model does not initialise.
    """
    held = _allocated(roots, stages)
    known = read({name: each.tensor for each in held for name in each.names}) if read is not None else set()
    left = {storage_of(each.tensor): each.names[0] for each in held if not known.intersection(each.names)}
    others = {storage_of(tensor) for _, tensor in _named(roots) if not tensor.is_meta} - left.keys()
    draws = KeyedDraws(seed, left, protected=others)
    visits = [visit for visit in _visits(roots) if any(storage_of(each) in left for each in _tensors(visit[1]))]
    with torch.no_grad(), draws:
        for draws.module, module, initialise in visits:
            initialise(module)
        for draws.module, module, _ in visits:
            if any(storage_of(each) in left.keys() - draws.written for each in _tensors(module, recurse=False)):
                _constructed(module)
    forgotten = [name for storage, name in left.items() if storage not in draws.written]
    if forgotten:
        raise ModelError(
            f"no code of the model's own (_init_weights or reset_parameters) initialises {', '.join(forgotten[:3])}; "
            "build the model with its numbers, without the meta device"
        )


def _allocated(roots: Mapping[str, nn.Module], stages: Sequence[nn.Module]) -> list[Held]:
    """Returns the tensors of `stages` that were on the meta device, with memory now, wherever they are used."""
    wanted = {id(tensor) for stage in stages for tensor in _tensors(stage) if tensor.is_meta}
    names: dict[int, list[str]] = {}
    for name, tensor in _named(roots):
        names.setdefault(id(tensor), []).append(name)
    made: dict[int, Tensor] = {}
    held: list[Held] = []
    modules = {id(each): each for top in (*roots.values(), *stages) for each in top.modules()}
    for module in modules.values():
        for table in (module._parameters, module._buffers):
            for leaf, old in table.items():
                if old is None or id(old) not in wanted:
                    continue
                if id(old) not in made:
                    made[id(old)] = _with_memory(old)
                    held.append(Held(made[id(old)], tuple(names.get(id(old), [leaf]))))
                table[leaf] = made[id(old)]  # type: ignore[assignment]
    return held


def _with_memory(tensor: Tensor) -> Tensor:
    """Returns a tensor like one on the meta device; its pages are not touched before they are written."""
    made: Tensor = torch.empty_like(tensor, device="cpu")
    if isinstance(tensor, nn.Parameter):
        made = nn.Parameter(made, requires_grad=tensor.requires_grad)
    vars(made).update({name: value for name, value in vars(tensor).items() if name not in _MARKS})
    return made


_MARKS = ("_is_hf_initialized",)
"""What transformers notes at a parameter once it has numbers; one on the meta device has been told so in vain."""


def _visits(roots: Mapping[str, nn.Module]) -> Iterator[tuple[str, nn.Module, Callable[[Any], Any]]]:
    """Yields name, module and what initialises it: parts before the whole, each by the innermost model around it."""
    for prefix, root in roots.items():
        yield from _inside(prefix, root, _reset)


def _inside(
    name: str, module: nn.Module, initialise: Callable[[Any], Any]
) -> Iterator[tuple[str, nn.Module, Callable[[Any], Any]]]:
    own = getattr(module, "_init_weights", None) if hasattr(module, "initialize_weights") else None
    initialise = own or initialise
    for child, each in module.named_children():
        yield from _inside(f"{name}.{child}" if name else child, each, initialise)
    yield name, module, initialise


def _reset(module: Any) -> None:
    if hasattr(module, "reset_parameters"):
        module.reset_parameters()


CONSTRUCTORS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "Conv1D": lambda module: {"nf": module.nf, "nx": module.nx},
    "XIELUActivation": lambda module: {"dtype": module.beta.dtype},
}
"""Classes whose numbers a model leaves to their constructor -> what that was called with."""


def _constructed(module: Any) -> None:
    """Gives a module the numbers that its constructor makes, where there is a way to have them again."""
    kind = type(module)
    if hasattr(module, "reset_parameters"):
        module.reset_parameters()
    elif kind.__name__ in CONSTRUCTORS:
        twin = kind(**CONSTRUCTORS[kind.__name__](module))
        for own, made in zip(_tensors(module, recurse=False), _tensors(twin, recurse=False), strict=True):
            own.copy_(made)


def _named(roots: Mapping[str, nn.Module]) -> Iterator[tuple[str, Tensor]]:
    for prefix, root in roots.items():
        yield from root.named_parameters(prefix, remove_duplicate=False)
        yield from root.named_buffers(prefix, remove_duplicate=False)


def _tensors(module: nn.Module, *, recurse: bool = True) -> Iterator[Tensor]:
    yield from module.parameters(recurse)
    yield from module.buffers(recurse)


def private(roots: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Returns a copy that one rank may fill: threads of one process may be given the very same model."""
    return copy.deepcopy(dict(roots))
