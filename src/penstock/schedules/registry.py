"""Names of schedules -> their generators. A new schedule is one line here."""

from __future__ import annotations

from collections.abc import Callable

from penstock.errors import ScheduleError, nearest
from penstock.ir.schedule import Schedule
from penstock.schedules.gpipe import gpipe
from penstock.schedules.naive import naive
from penstock.schedules.one_f_one_b import one_f_one_b

Generator = Callable[[int, int], Schedule]

SCHEDULES: dict[str, Generator] = {
    "naive": naive,
    "gpipe": gpipe,
    "one_f_one_b": one_f_one_b,
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


def named_schedule(name: str, *, num_ranks: int, num_microbatches: int) -> Schedule:
    """Returns the schedule called `name` at these sizes.

    Raises:
        ScheduleError: no such schedule, or sizes it is not defined for.
    """
    return SCHEDULES[canonical_name(name)](num_ranks, num_microbatches)
