"""Eval mode for as long as a call lasts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn


@contextmanager
def eval_mode(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Puts modules and all in them into eval mode, and afterwards each into the mode it was in."""
    modes = [(module, module.training) for each in modules for module in each.modules()]
    try:
        for each in modules:
            each.eval()
        yield
    finally:
        for module, mode in modes:
            module.training = mode
