"""Parameters and buffers of stages by their names in the original model, out and in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from penstock.errors import ModelError, check_type
from penstock.runtime.stage_work import StageWork


def module_state(stages: Iterable[StageWork]) -> dict[str, Any]:
    """Returns the parameters and buffers of these stages."""
    return {name: value for work in stages for name, value in work.module.state_dict().items()}


def load_module_state(stages: Iterable[StageWork], state: Mapping[str, Any], *, rank: int) -> None:
    """Takes the parameters and buffers of these stages of `rank` out of `state`, which may hold more.

    Raises:
        UserError: `state` is no mapping.
        ModelError: one is missing or has another shape.
    """
    check_type("the state to load", state, Mapping, example="what state_dict returned")
    for work in stages:
        own = work.module.state_dict().keys()
        missing = sorted(name for name in own if name not in state)
        if missing:
            raise ModelError(f"the state has no {', '.join(missing[:5])}, which rank {rank} needs")
        try:
            work.module.load_state_dict({name: state[name] for name in own})
        except RuntimeError as error:
            raise ModelError(f"the state does not fit this model: {error}") from None
