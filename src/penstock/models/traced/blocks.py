"""Which modules are blocks, that is, called as they are, and which are opened: their forward is followed into."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import chain

from torch import nn

from penstock.errors import ModelError, nearest

Blocks = Sequence[str | type[nn.Module]]
"""Names of modules, regular expressions of names, or classes."""


def opened(model: nn.Module, blocks: Blocks | None = None) -> frozenset[str]:
    """Returns the names of the modules whose own forward is followed; "" is the model itself.

    With `blocks` all modules around them are opened. Without, the items of lists are blocks, and so is any other
    module, unless it has a list of blocks in it or more than half of the parameters.

    Raises:
        ModelError: a block that is not there.
    """
    if blocks is not None:
        return frozenset({"", *_around(model, blocks)})
    half = sum(parameter.numel() for parameter in model.parameters()) / 2
    return frozenset({"", *_found(model, "", item=False, half=half)})


def is_plain_list(module: nn.Module) -> bool:
    """Returns whether a module is nothing but its items."""
    if isinstance(module, nn.ModuleList | nn.ModuleDict):
        return True
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward and is_bare(module)


def is_bare(module: nn.Module) -> bool:
    """Returns whether calling a module is calling its forward: no hooks, not compiled, no other forward put in."""
    state = vars(module)
    return not (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or state.get("_compiled_call_impl")
        or "forward" in state
    )


def _found(module: nn.Module, path: str, *, item: bool, half: float) -> Iterator[str]:
    """Yields the names of what is opened below `module`."""
    for name, child in module.named_children():
        inner = f"{path}.{name}".lstrip(".")
        if is_plain_list(child):
            yield inner
            yield from _found(child, inner, item=True, half=half)
            continue
        if _is_torchs(child) or not is_bare(child):
            continue
        heavy = sum(parameter.numel() for parameter in child.parameters()) > half
        if heavy or (not item and any(map(_is_list_of_blocks, child.modules()))):
            yield inner
            yield from _found(child, inner, item=False, half=half)


def _is_torchs(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.")


def _is_list_of_blocks(module: nn.Module) -> bool:
    return is_plain_list(module) and sum(not _is_torchs(child) for child in module.children()) > 1


def _around(model: nn.Module, blocks: Blocks) -> set[str]:
    """Returns the names of all modules that have a chosen block in them, and of what stands beside these."""
    chosen: set[str] = set()
    for block in blocks:
        found = {name for name, module in model.named_modules() if name and _is_chosen(name, module, block)}
        if not found:
            known = [name for name, _ in model.named_modules() if name]
            shown = getattr(block, "__name__", block)
            raise ModelError(
                f"blocks={shown!r} is no module of {type(model).__name__}.{nearest(str(shown), known)} There are e.g. "
                f"{', '.join(known[:5])}"
            )
        chosen |= found
    ancestors = chain.from_iterable(
        [".".join(parts[:count]) for count in range(1, len(parts))] for parts in (name.split(".") for name in chosen)
    )
    return set(ancestors) - chosen


def _is_chosen(name: str, module: nn.Module, block: str | type[nn.Module]) -> bool:
    if isinstance(block, str):
        return name == block or re.fullmatch(block, name) is not None
    return isinstance(module, block)
