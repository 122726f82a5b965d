"""A copy of a model in which parts can be replaced: it shares everything that is not replaced."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn


def shell_of(model: nn.Module, parts: Iterable[str]) -> nn.Module:
    """Returns a copy of `model`, and of what its `parts` are in, that shares all parts with it.

    Args:
        model: left as it is, also where the copy's parts are replaced.
        parts: names of modules.
    """
    shell = _copied(model)
    done = {""}
    for part in parts:
        inner, path = shell, ""
        for name in part.split(".")[:-1]:
            path = f"{path}.{name}".lstrip(".")
            if path not in done:
                inner._modules[name] = _copied(inner.get_submodule(name))
                done.add(path)
            inner = inner.get_submodule(name)
    return shell


def replace_part(shell: nn.Module, name: str, stand_in: nn.Module) -> None:
    """Puts `stand_in` into a shell under the name of a part."""
    path, _, leaf = name.rpartition(".")
    shell.get_submodule(path)._modules[leaf] = stand_in


def _copied(module: nn.Module) -> nn.Module:
    twin: nn.Module = object.__new__(type(module))
    twin.__dict__.update(vars(module))
    for table in ("_modules", "_parameters", "_buffers"):
        twin.__dict__[table] = dict(getattr(module, table))
    return twin
