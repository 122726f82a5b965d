"""Random numbers for fresh parameters, keyed by (seed, parameter name, how often it was drawn before).

A module's own initialisation code runs unchanged. Each random operation in it is met here on its way to the kernel:

    normal_(weight, std=0.02)  ─┬─ weight is ours      drawn from a generator keyed by weight's name
                                ├─ weight is protected  left as it is: it was read from a file
                                └─ weight is elsewhere  on the meta device: nothing happens

So what a parameter starts with does not depend on which others are drawn before it, on this rank or on any.
"""

from __future__ import annotations

import hashlib
import threading
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from penstock.errors import ModelError

default_generator_lock = threading.RLock()
"""Threads of one process (loopback ranks) share torch's default generator; who seeds it has it alone."""


def storage_of(tensor: Tensor) -> int:
    """Returns what a tensor and all its views have in common, as long as one of them lives."""
    return int(tensor.untyped_storage()._cdata)


class KeyedDraws(TorchDispatchMode):
    """While active, random operations draw by key, and writes into protected tensors do nothing.

    Args:
        seed: None where nothing should be left to draw.
        names: storage -> name of the parameter or buffer that lies there.
        protected: storages that are not to be written.

    Attributes:
        module: name of the module whose initialisation runs; keys what is drawn into no parameter.
        written: storages that have been written.

    Raises:
        ModelError: a random operation writes into a parameter, and there is no seed.
    """

    def __init__(self, seed: int | None, names: Mapping[int, str], *, protected: Collection[int] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.module = ""
        self.written: set[int] = set()
        self._seed, self._names, self._protected = seed, names, protected
        self._draws: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Returns what `func` does, with its numbers drawn by key."""
        kwargs = kwargs or {}
        targets = [storage_of(tensor) for tensor in _written_by(func, args, kwargs)]
        if targets and targets[0] in self._protected:
            return args[0]
        self.written.update(targets)
        if torch.Tag.nondeterministic_seeded not in func.tags or kwargs.get("generator") is not None:
            return func(*args, **kwargs)
        if targets and args[0].is_meta:
            return func(*args, **kwargs)
        name = self._names.get(targets[0], "") if targets else ""
        with default_generator_lock:
            generator = torch.default_generator
            before = generator.get_state()
            generator.manual_seed(self._key(name or f"{self.module}/other", named=bool(name)))
            try:
                return func(*args, **kwargs)
            finally:
                generator.set_state(before)

    def _key(self, name: str, *, named: bool) -> int:
        if self._seed is None and named:
            raise ModelError(
                f"{name} has no numbers and is to be drawn; pass seed= to Pipeline, e.g. seed=0, for fresh parameters, "
                "or read them with Pipeline.from_pretrained"
            )
        self._draws[name] += 1
        return initial_seed(self._seed or 0, name, draw=self._draws[name])


def initial_seed(seed: int, name: str, *, draw: int) -> int:
    """Returns the 63-bit seed of the `draw`-th draw into the parameter `name`, the same in every process."""
    key = f"{seed}/initial/{name}/{draw}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little") >> 1


def _written_by(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """Returns the tensors among the arguments that an operation writes into."""
    schema = func._schema
    if not schema.is_mutable:
        return []
    found: list[Any] = []
    for place, argument in enumerate(schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[place] if place < len(args) else kwargs.get(argument.name)
            found += value if isinstance(value, list | tuple) else [value]
    return [value for value in found if isinstance(value, Tensor)]
