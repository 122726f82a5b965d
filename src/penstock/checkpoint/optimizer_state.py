"""A torch optimizer's state as named tensors and back, under the model's parameter names.

    optimizer/exp_avg/block_3.mlp.up.weight       a tensor of the state
    optimizer_number/count/block_3.mlp.up.weight  a plain number of the state, as a 0-dimensional tensor

Named per parameter, the state follows its parameter to whichever rank holds it next.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from penstock.errors import CheckpointError
from penstock.runtime.spread import is_spread, part_like

_TENSOR, _NUMBER = "optimizer", "optimizer_number"


def optimizer_tensors(optimizer: Optimizer, names: Mapping[Parameter, str]) -> dict[str, Tensor]:
    """Returns the state of every parameter in `names`; state that is None is left out.

    Raises:
        CheckpointError: A state is neither a tensor nor a number.
    """
    tensors: dict[str, Tensor] = {}
    for parameter, name in names.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                tensors[f"{_TENSOR}/{key}/{name}"] = value.detach()
            elif isinstance(value, bool | int | float):
                tensors[f"{_NUMBER}/{key}/{name}"] = torch.tensor(value, dtype=_number_type(value))
            elif value is not None:
                raise CheckpointError(
                    f'optimizer state "{key}" of "{name}" is a {type(value).__name__}; only tensors '
                    "and numbers can be saved, use an optimizer that keeps these"
                )
    return tensors


def restore_optimizer(optimizer: Optimizer, names: Mapping[Parameter, str], *, tensors: Mapping[str, Tensor]) -> None:
    """Replaces the optimizer's state by a copy of the one in `tensors`, bit for bit; other entries are ignored.

    Raises:
        CheckpointError: A state's shape is not its parameter's.
    """
    states: dict[str, dict[str, Any]] = {name: {} for name in names.values()}
    for full_name, tensor in tensors.items():
        kind, _, rest = full_name.partition("/")
        key, _, name = rest.partition("/")
        if kind in (_TENSOR, _NUMBER) and name in states:
            states[name][key] = tensor if kind == _TENSOR else tensor.item()
    groups = {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}
    optimizer.state.clear()
    for parameter, name in names.items():
        if states[name]:
            optimizer.state[parameter] = {
                key: _placed(value, parameter, groups.get(id(parameter), {}), name=f"{key}/{name}")
                for key, value in states[name].items()
            }


def _placed(value: Any, parameter: Parameter, group: Mapping[str, Any], *, name: str) -> Any:
    """Returns `value` where torch expects it: beside its parameter, but a counter on the CPU unless fused."""
    if not isinstance(value, Tensor):
        return value
    if value.dim() == 0:
        on_device = group.get("fused") or group.get("capturable")
        return value.to(parameter.device, copy=True) if on_device else value.clone()
    if value.numel() == parameter.numel() and value.shape != parameter.shape:
        raise CheckpointError(
            f'optimizer state "{name}" has shape {list(value.shape)}, its parameter {list(parameter.shape)}; '
            "resume with the model that was saved"
        )
    if is_spread(parameter):
        return _spread(value, parameter, name=name)
    return value.to(parameter.device, copy=True)


def _spread(value: Tensor, parameter: Parameter, *, name: str) -> Tensor:
    if value.shape != parameter.shape:
        raise CheckpointError(
            f'optimizer state "{name}" has shape {list(value.shape)} and its parameter, a DTensor, '
            f"{list(parameter.shape)}: how to spread it is not known; use an optimizer whose states have the "
            "parameters' shapes, e.g. AdamW, or load without optimizer="
        )
    return part_like(value, parameter)


def _number_type(value: float) -> torch.dtype:
    if isinstance(value, bool):
        return torch.bool
    return torch.int64 if isinstance(value, int) else torch.float64
