"""Names of schedules -> their generators. A new schedule is one line here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from penstock.errors import ScheduleError, nearest
from penstock.ir.schedule import Schedule
from penstock.schedules.gpipe import gpipe
from penstock.schedules.naive import naive
from penstock.schedules.one_f_one_b import one_f_one_b


@dataclass(frozen=True)
class Sizes:
    """What a schedule is asked for: p ranks, m microbatches, v chunks a rank."""

    num_ranks: int
    num_microbatches: int
    num_chunks: int


class Family(NamedTuple):
    """A named schedule as the registry knows it.

    Attributes:
        generate: sizes -> Schedule.
        num_chunks: chunks a rank where the caller does not say.
        any_chunks: whether other numbers of chunks are defined.
    """

    generate: Callable[[Sizes], Schedule]
    num_chunks: int = 1
    any_chunks: bool = False


SCHEDULES: dict[str, Family] = {
    "naive": Family(lambda n: naive(n.num_ranks, n.num_microbatches)),
    "gpipe": Family(lambda n: gpipe(n.num_ranks, n.num_microbatches)),
    "one_f_one_b": Family(lambda n: one_f_one_b(n.num_ranks, n.num_microbatches)),
}
"""Every schedule by its one name."""

ALIASES = {
    "GPipe": "gpipe",
    "1F1B": "one_f_one_b",
    "1f1b": "one_f_one_b",
    "pipedream_flush": "one_f_one_b",
    "dapple": "one_f_one_b",
}
"""Names that users of other tools know -> ours."""


def canonical_name(name: str) -> str:
    """Returns the name under which `name` is registered; `-` and `_` are the same.

    Raises:
        ScheduleError: no such schedule; the message gives the nearest name and all of them.
    """
    plain = ALIASES.get(name, name.replace("-", "_"))
    if plain not in SCHEDULES:
        known = sorted(SCHEDULES)
        raise ScheduleError(
            f'unknown schedule "{name}".{nearest(plain, [*known, *ALIASES])} Known: {", ".join(known)}'
        )
    return plain


def named_schedule(
    name: str, *, num_ranks: int, num_microbatches: int, num_chunks: int | None = None
) -> Schedule:
    """Returns the schedule called `name` at these sizes.

    Args:
        name: one of SCHEDULES or ALIASES.
        num_ranks: p.
        num_microbatches: m.
        num_chunks: v, stages a rank; None takes the schedule's own default.

    Raises:
        ScheduleError: no such schedule, or sizes it is not defined for.
    """
    plain = canonical_name(name)
    family = SCHEDULES[plain]
    if num_chunks not in (None, family.num_chunks) and not family.any_chunks:
        raise ScheduleError(
            f"{plain}: num_chunks={num_chunks}; it is defined for {family.num_chunks} a rank, leave num_chunks out"
        )
    chunks = family.num_chunks if num_chunks is None else num_chunks
    return family.generate(Sizes(num_ranks, num_microbatches, chunks))
