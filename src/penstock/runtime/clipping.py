"""The gradient norm of the whole model, the same number on every rank and in every layout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from penstock.errors import BatchError, check_type
from penstock.runtime.transport.protocol import Transport


def total_norm(
    transport: Transport, grads: Mapping[str, torch.Tensor], names: Sequence[str], *, norm_type: float
) -> torch.Tensor:
    """Returns the norm of all gradients of the model, fp64. Every rank calls it.

    Each parameter's norm is taken in its own precision and they are combined in fp64 in the order of `names`,
    whichever rank holds them: the result does not depend on the layout.

    Args:
        transport: the ranks that hold the model.
        grads: this rank's gradients by parameter name.
        names: all parameters of the model in model order.
        norm_type: 2.0, or any other p, or inf.
    """
    held = [name for name in names if name in grads]
    row = torch.zeros(len(names), dtype=torch.float64)
    if held:
        norms = torch._foreach_norm([grads[name] for name in held], norm_type)
        places = {name: index for index, name in enumerate(names)}
        row[[places[name] for name in held]] = torch.stack([norm.double() for norm in norms]).cpu()
    rows = transport.gather(row)
    norm: torch.Tensor = torch.linalg.vector_norm(rows.sum(dim=0), norm_type)
    return norm


def clip(grads: Sequence[torch.Tensor], norm: torch.Tensor, *, max_norm: float) -> None:
    """Scales `grads` in place by max_norm / norm where norm is above max_norm.

    Raises:
        BatchError: max_norm is not a positive number.
    """
    check_type("max_norm", max_norm, int, float, example="1.0")
    if not max_norm > 0:
        raise BatchError(f"max_norm={max_norm}; use a number above 0, e.g. 1.0")
    factor = max_norm / (norm.item() + 1e-6)
    if grads and factor < 1:
        torch._foreach_mul_(list(grads), factor)
