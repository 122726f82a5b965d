"""Loops over numbers, compiled where numba is installed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

_P = ParamSpec("_P")
_R = TypeVar("_R")

njit: Any
try:
    from numba import njit
except ImportError:
    njit = None

COMPILED = njit is not None
"""Whether numba (the extra `speed`) is there; without it the same loops run some hundred times slower."""


def jit(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Returns `function` compiled at its first call, kept on disk for the next process; as it is without numba.

    Importing this module imports numba. Modules with such loops are imported where they are called, not above.
    """
    if njit is None:
        return function
    return cast("Callable[_P, _R]", njit(cache=True)(function))
