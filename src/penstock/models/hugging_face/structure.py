"""Where a model keeps its layers, and which parts stand around them: what its modules tell without running."""

from __future__ import annotations

from torch import nn

from penstock.errors import ModelError


def path_to_layers(model: nn.Module) -> str:
    """Returns the name of the inner model: down from the outermost, by the one child that has a list of layers.

    Raises:
        ModelError: there is none, or more than one on the way.
    """
    path: list[str] = []
    inner = model
    while not any(is_list(child) for child in inner.children()):
        holding = [name for name, child in inner.named_children() if any(map(is_list, child.modules()))]
        if len(holding) != 1:
            what = f"lists of layers in {', '.join(holding)}" if holding else "no list of layers"
            raise ModelError(f"{type(model).__name__} has {what}; a model with one list of blocks can be cut")
        path.append(holding[0])
        inner = inner.get_submodule(holding[0])
    return ".".join(path)


def one_list(base: nn.Module) -> str:
    """Returns the name of the one list of layers that `base` has.

    Raises:
        ModelError: it has none, or several.
    """
    lists = [name for name, child in base.named_children() if is_list(child)]
    if len(lists) != 1:
        what = f"{len(lists)} lists of layers ({', '.join(lists)})" if lists else "no list of layers"
        raise ModelError(f"{type(base).__name__} has {what}; a model with one list of blocks can be cut")
    return lists[0]


def parts_in(base: nn.Module, layers: str) -> list[str]:
    """Returns the names of what `base` has beside its `layers`, with the items of other lists one by one."""
    found = []
    for name, child in base.named_children():
        if name == layers:
            continue
        if isinstance(child, nn.ModuleList):
            found += [f"{name}.{item}" for item, each in child.named_children() if has_state(each)]
        elif has_state(child):
            found.append(name)
    return found


def parts_around(model: nn.Module, *bases: str) -> list[str]:
    """Returns the names of the parts beside `bases` and beside what these are in, the innermost first."""
    on_the_way = {base[: len(base) - len(rest)].rstrip(".") for base in bases for rest in _tails(base)}
    found: list[str] = []
    for around in sorted(on_the_way - set(bases), key=lambda name: -len(name)):
        prefix = f"{around}." if around else ""
        children = model.get_submodule(around).named_children()
        found += [prefix + name for name, child in children if prefix + name not in on_the_way and has_state(child)]
    return found


def _tails(base: str) -> list[str]:
    """Returns what may be left out at the end of a dotted name, from nothing to all of it."""
    steps = base.split(".") if base else []
    return [".".join(steps[count:]) for count in range(len(steps) + 1)]


def is_list(module: nn.Module) -> bool:
    """Returns whether a module is a list of blocks with parameters."""
    return isinstance(module, nn.ModuleList) and len(module) > 0 and has_state(module)


def has_state(module: nn.Module) -> bool:
    """Returns whether a module has parameters."""
    return next(module.parameters(), None) is not None
