"""One rank's ops in the schedules that never flush: 1F1B with optimizer steps in between."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

from penstock.errors import ScheduleError
from penstock.ir.ops import Op, OpKind


def without_flush(
    stage: int, microbatches: Sequence[int], *, ahead: int, per_version: int = 1, num_rows: int = 1
) -> tuple[Op, ...]:
    """Returns `ahead` forwards, then F and B in turn, with an S behind every `per_version`-th B.

    Args:
        stage: the rank's stage.
        microbatches: those that the rank serves, in order.
        ahead: forwards of the warm-up, as far as there are microbatches.
        per_version: how many of the rank's microbatches a weight version is made of.
        num_rows: rows of the placement; microbatch i runs in row i mod this.
    """
    forwards = [[Op(OpKind.F, stage, i, i % num_rows)] for i in microbatches]
    backwards = [[Op(OpKind.B, stage, i, i % num_rows)] for i in microbatches]
    for step in backwards[per_version - 1 :: per_version]:
        step.append(step[0]._replace(kind=OpKind.S))
    ahead = min(ahead, len(forwards))
    warm_up = forwards[:ahead]
    steady = chain.from_iterable(zip(forwards[ahead:], backwards, strict=False))
    cool_down = backwards[len(forwards) - ahead :]
    return tuple(chain.from_iterable((*warm_up, *steady, *cool_down)))


def check_per_version(schedule: str, num_microbatches: int, per_version: int) -> None:
    """Refuses a number of microbatches that leaves a weight version short.

    Raises:
        ScheduleError: `num_microbatches` is not a multiple of `per_version`.
    """
    if num_microbatches % per_version:
        works = num_microbatches + -num_microbatches % per_version
        raise ScheduleError(
            f"{schedule}: num_microbatches={num_microbatches} leaves the last version short of the {per_version} "
            f"microbatches that each is made of; use a multiple, e.g. num_microbatches={works}"
        )
