"""Checks and shorthands that every generator shares."""

from __future__ import annotations

from penstock.errors import ScheduleError
from penstock.ir.ops import Op, OpKind


def check_sizes(schedule: str, **sizes: int) -> None:
    """Refuses sizes that no schedule is defined for.

    Raises:
        ScheduleError: a size that is not an integer of at least 1.
    """
    for name, value in sizes.items():
        if isinstance(value, bool) or not isinstance(value, int):
            raise ScheduleError(f"{schedule}: {name}={value!r} is not a whole number; use e.g. {name}=4")
        if value < 1:
            raise ScheduleError(f"{schedule}: {name}={value}; use at least 1, e.g. {name}=4")


def forwards(stage: int, microbatches: range) -> list[Op]:
    """Returns the forwards of `stage` on `microbatches`, in their order."""
    return [Op(OpKind.F, stage, microbatch) for microbatch in microbatches]


def backwards(stage: int, microbatches: range) -> list[Op]:
    """Returns the full backwards of `stage` on `microbatches`, in their order."""
    return [Op(OpKind.B, stage, microbatch) for microbatch in microbatches]
