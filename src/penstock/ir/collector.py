"""The cyclic garbage collector stands still while millions of tuples are made."""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable
from typing import ParamSpec, TypeVar

_P = ParamSpec("_P")
_R = TypeVar("_R")


def collector_paused(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Returns `function`, during which no cyclic garbage is looked for.

    Lowering, verifying and simulating make a few small tuples an op, no cycles, and keep nearly all of them. Each time
    their number has grown by a quarter, the collector would visit all of them again in vain: a third of the time. What
    nobody refers to is freed at once all the same. Where calls overlap in several threads, the collector resumes when
    the call that found it running ends.
    """

    @functools.wraps(function)
    def paused(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        if not gc.isenabled():
            return function(*args, **kwargs)
        gc.disable()
        try:
            return function(*args, **kwargs)
        finally:
            gc.enable()

    return paused
