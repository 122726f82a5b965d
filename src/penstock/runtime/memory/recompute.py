"""Activation checkpointing: which modules keep only their inputs in F and run once more in their backward."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import torch
from torch import nn
from torch.distributed._composable import checkpoint
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from penstock.errors import ModelError
from penstock.models.keyed_draws import default_generator_lock
from penstock.runtime.randomness import RandomState, drawn_from, random_state

SavePolicy = Callable[..., CheckpointPolicy]
"""(context, operation, its arguments) -> whether its result is kept; that of `torch.utils.checkpoint`."""


@dataclass(frozen=True)
class Recompute:
    r"""What is recomputed in the backward.

    Attributes:
        modules: regular expressions that a module's whole name in the model must match, e.g.
            `r"model\.layers\.\d+\.mlp"`; None means every layer of the partition.
        policy: keeps the results of single operations (selective recomputation); None keeps none.
    """

    modules: tuple[str, ...] | None = None
    policy: SavePolicy | None = None


RecomputeChoice = str | Sequence[str] | Recompute | None
"""None or "none", "full", expressions of module names, or a Recompute."""


def check_recompute(
    choice: RecomputeChoice | Mapping[int, RecomputeChoice], layers: Mapping[str, nn.Module], *, num_stages: int
) -> dict[int, Recompute]:
    """Returns stage -> what it recomputes; stages that recompute nothing are left out.

    Raises:
        ModelError: an unknown word, an expression that no module of the model matches, or a stage that is not there.
    """
    choices = choice if isinstance(choice, Mapping) else dict.fromkeys(range(num_stages), choice)
    foreign = [stage for stage in choices if stage not in range(num_stages)]
    if foreign:
        raise ModelError(f"recompute names stage {foreign[0]}; use stages from 0 to {num_stages - 1}")
    found = {stage: _recompute(each) for stage, each in choices.items()}
    names = [f"{layer}.{name}".rstrip(".") for layer, module in layers.items() for name, _ in module.named_modules()]
    for each in found.values():
        for pattern in (each.modules or ()) if each else ():
            _check_pattern(pattern, names)
    return {stage: each for stage, each in found.items() if each is not None}


def apply_recompute(stage: nn.Module, recompute: Recompute | None, *, layers: Sequence[str]) -> None:
    """Checkpoints the modules of one stage that `recompute` names, the outermost where several match.

    What an earlier pipeline of the same modules, or of those that they are copies of, has chosen holds no longer.

    Args:
        stage: its modules carry their names in the model.
        recompute: as checked; None means that nothing is recomputed.
        layers: names of the stage's layers.
    """
    chosen: list[str] = []
    for name, module in stage.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in chosen)
        if recompute is not None and not inside and _is_chosen(name, recompute, layers):
            chosen.append(name)
            _checkpoint(module, recompute.policy)
        elif _of_ours(module):
            _state(module).enable_hook = False


class _Entering(threading.local):
    """The module whose forward begins in this thread."""

    module: nn.Module


_entering = _Entering()
_registering = threading.Lock()


def _state(module: nn.Module) -> Any:
    """Returns torch's note that `module` is checkpointed, with ours in it; None if it never was."""
    return checkpoint.state(module)


def _checkpoint(module: nn.Module, policy: SavePolicy | None) -> None:
    if _state(module) is None:
        with _registering:  # torch's count of hooks is not safe where threads register them at the same time
            # A copy of a module has its hooks: they must act on the module that they are called with.
            module.register_forward_pre_hook(_enter)
            # Its own way to repeat random numbers is not safe where threads share a generator.
            checkpoint(module, preserve_rng_state=False, context_fn=_contexts)
        _state(module).policy = policy
    elif _of_ours(module):
        _state(module).policy = policy
        _state(module).enable_hook = True


def _of_ours(module: nn.Module) -> bool:
    """Returns whether it was a pipeline that checkpointed `module`, and not the user."""
    return hasattr(_state(module), "policy")


def _enter(module: nn.Module, _: object) -> None:
    _entering.module = module


def _recompute(choice: RecomputeChoice) -> Recompute | None:
    if choice is None or choice == "none":
        return None
    if choice == "full":
        return Recompute()
    if isinstance(choice, Recompute):
        return choice
    if isinstance(choice, Sequence) and not isinstance(choice, str) and all(isinstance(name, str) for name in choice):
        return Recompute(tuple(choice))
    raise ModelError(
        f'recompute={choice!r}; use "none", "full", a list of regular expressions of module names, a Recompute, or a '
        "dict from stage to one of these"
    )


def _check_pattern(pattern: str, names: Sequence[str]) -> None:
    try:
        matches = any(re.fullmatch(pattern, name) for name in names)
    except re.error as error:
        raise ModelError(f"recompute={pattern!r} is no regular expression: {error}") from None
    if not matches:
        near = get_close_matches(pattern.replace("\\", ""), names, n=3, cutoff=0.3) or names[:3]
        raise ModelError(f"recompute={pattern!r} matches no module; there are e.g. {', '.join(near)}")


def _is_chosen(name: str, recompute: Recompute, layers: Sequence[str]) -> bool:
    if recompute.modules is None:
        return name in layers
    return any(re.fullmatch(pattern, name) for pattern in recompute.modules)


def _contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """Returns what surrounds the forward that begins, and its repetition."""
    module = _entering.module
    policy: SavePolicy | None = _state(module).policy
    kept, again = (nullcontext(), nullcontext()) if policy is None else create_selective_checkpoint_contexts(policy)
    noted: list[RandomState] = []
    return _noting(noted, kept), _repeated(module, noted, again)


@contextmanager
def _noting(noted: list[RandomState], inner: AbstractContextManager[Any]) -> Iterator[None]:
    with default_generator_lock:  # else another thread draws between the note and the draws that are to be repeated
        noted.append(random_state())
        with inner:
            yield


@contextmanager
def _repeated(module: nn.Module, noted: list[RandomState], inner: AbstractContextManager[Any]) -> Iterator[None]:
    """Draws the forward's random numbers, and puts buffers back: a batch norm's statistics see a microbatch once."""
    before = [(buffer, buffer.detach().clone()) for buffer in module.buffers()] if module.training else []
    try:
        with drawn_from(noted[0]), inner:
            yield
    finally:
        with torch.no_grad():
            for buffer, value in before:
                buffer.copy_(value)
