"""One file a family of schedules: sizes -> Schedule; and the registry of their names."""

from penstock.schedules.forward_only import forward_only
from penstock.schedules.gpipe import gpipe
from penstock.schedules.naive import naive
from penstock.schedules.one_f_one_b import one_f_one_b
from penstock.schedules.registry import ALIASES, SCHEDULES, Family, Sizes, named_schedule

__all__ = [
    "ALIASES",
    "SCHEDULES",
    "Family",
    "Sizes",
    "forward_only",
    "gpipe",
    "naive",
    "named_schedule",
    "one_f_one_b",
]
