"""Checks and shorthands that every generator shares."""

from __future__ import annotations

from penstock.errors import ScheduleError
from penstock.ir.ops import Op, OpKind

MOST = 256 * 4096
"""Microbatches over all ranks, p·m, beyond which a schedule is refused: minutes to prove, and gigabytes."""


def check_sizes(schedule: str, **sizes: int) -> None:
    """Refuses sizes that no schedule is defined for.

    Raises:
        ScheduleError: a size that is not an integer of at least 1, or more ops than anyone can wait for.
    """
    for name, value in sizes.items():
        if isinstance(value, bool) or not isinstance(value, int):
            raise ScheduleError(f"{schedule}: {name}={value!r} is not a whole number; use e.g. {name}=4")
        if value < 1:
            raise ScheduleError(f"{schedule}: {name}={value}; use at least 1, e.g. {name}=4")
    ranks, microbatches = sizes.get("num_ranks", 1), sizes.get("num_microbatches", 1)
    if ranks * microbatches > MOST:
        fewer = f"num_microbatches={MOST // ranks}" if ranks <= MOST else "num_ranks=64"
        raise ScheduleError(
            f"{schedule}: num_ranks={ranks} with num_microbatches={microbatches}; a schedule is written down op by op, "
            f"and more than {MOST:,} microbatches over all ranks take too long, use at most e.g. {fewer}"
        )


def forwards(stage: int, microbatches: range) -> list[Op]:
    """Returns the forwards of `stage` on `microbatches`, in their order."""
    return [Op(OpKind.F, stage, microbatch) for microbatch in microbatches]


def backwards(stage: int, microbatches: range) -> list[Op]:
    """Returns the full backwards of `stage` on `microbatches`, in their order."""
    return [Op(OpKind.B, stage, microbatch) for microbatch in microbatches]
