"""What the optimizers inside an asynchronous schedule hold, by the model's own parameter names."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch.optim import Optimizer

from penstock.errors import ModelError
from penstock.runtime.asynchronous.stepping import SteppedStage

if TYPE_CHECKING:
    from penstock.runtime.pipeline import Pipeline

_MOVEMENT = "discrepancy"


def stepped_stages_of(pipe: Pipeline) -> Mapping[int, SteppedStage]:
    """Returns this rank's stages with the optimizers inside the schedule, none where the loop steps."""
    return pipe._steps.stages if pipe._steps is not None else {}


def optimizer_state(stages: Mapping[int, SteppedStage]) -> dict[str, Any]:
    """Returns a copy of the state of all optimizers on a rank.

        {"parameters": {name: {"exp_avg": tensor, …}}, "stages": {stage: {"groups": […], "scheduler": {…}}}}

    A group is an optimizer's settings (learning rate, betas, …); the movement of PipeMare's correction stands among a
    parameter's state.
    """
    parameters: dict[str, dict[str, Any]] = {}
    for stage in stages.values():
        held = stage.optimizer.state if stage.optimizer else {}
        for at, (name, master) in enumerate(zip(stage.versions.names, stage.versions.masters, strict=True)):
            parameters[name] = copy.deepcopy(dict(held.get(master, {})))
            if stage.discrepancy:
                parameters[name][_MOVEMENT] = stage.discrepancy.movement[at].clone()
    settings = {
        number: {
            "groups": [_settings(group) for group in stage.optimizer.param_groups] if stage.optimizer else [],
            "scheduler": copy.deepcopy(stage.scheduler.state_dict()) if stage.scheduler else {},
        }
        for number, stage in stages.items()
    }
    return {"parameters": parameters, "stages": settings}


def load_optimizer_state(stages: Mapping[int, SteppedStage], state: Mapping[str, Any]) -> None:
    """Replaces the state of all optimizers on a rank by a copy of what `optimizer_state` returned.

    Raises:
        ModelError: a parameter or stage of this rank is missing, or another optimizer was saved.
    """
    for number, stage in stages.items():
        missing = [name for name in stage.versions.names if name not in state.get("parameters", {})]
        if missing:
            raise ModelError(f"the optimizer state has no {', '.join(missing[:5])}, which stage {number} needs")
        if stage.optimizer:
            _load(stage, stage.optimizer, number, state)


def _load(stage: SteppedStage, optimizer: Optimizer, number: int, state: Mapping[str, Any]) -> None:
    saved = state.get("stages", {}).get(number)
    if saved is None or len(saved["groups"]) != len(optimizer.param_groups):
        raise ModelError(
            f"the optimizer state has no settings that fit stage {number}; load it into a pipeline of the same stages "
            "and optimizer"
        )
    optimizer.state.clear()
    for at, (name, master) in enumerate(zip(stage.versions.names, stage.versions.masters, strict=True)):
        own = copy.deepcopy(dict(state["parameters"][name]))
        movement = own.pop(_MOVEMENT, None)
        if stage.discrepancy and movement is not None:
            stage.discrepancy.movement[at].copy_(movement)
        if own:
            optimizer.state[master] = own
    for group, settings in zip(optimizer.param_groups, saved["groups"], strict=True):
        group.update(copy.deepcopy(settings))
    if stage.scheduler and saved["scheduler"]:
        stage.scheduler.load_state_dict(copy.deepcopy(saved["scheduler"]))


def _settings(group: Mapping[str, Any]) -> dict[str, Any]:
    return {key: copy.deepcopy(value) for key, value in group.items() if key != "params"}
