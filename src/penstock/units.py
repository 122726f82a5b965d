"""Units that fit: seconds and bytes in the unit in which a person would say them."""

from __future__ import annotations

from typing import NamedTuple


class Unit(NamedTuple):
    """A unit and how many of it are one second or one byte."""

    name: str
    per_base: float

    def text(self, value: float) -> str:
        """Returns `value`, in seconds or bytes, with four digits and the unit: `41.27 ms`."""
        return f"{self.number(value)} {self.name}"

    def number(self, value: float) -> str:
        """Returns `value`, in seconds or bytes, with four digits in this unit: `41.27`."""
        return f"{float(value) * self.per_base:.4g}"


_TIMES = (Unit("s", 1), Unit("ms", 1e3), Unit("µs", 1e6))
_SIZES = (Unit("GiB", 2.0**-30), Unit("MiB", 2.0**-20), Unit("KiB", 2.0**-10), Unit("bytes", 1))


def time_unit(seconds: float) -> Unit:
    """Returns the largest unit in which `seconds` is at least 1; seconds for 0."""
    return _fitting(_TIMES, seconds)


def size_unit(num_bytes: float) -> Unit:
    """Returns the largest unit in which `num_bytes` is at least 1; bytes for 0."""
    return _fitting(_SIZES, num_bytes) if num_bytes else _SIZES[-1]


def size_text(num_bytes: float) -> str:
    """Returns `num_bytes` in the largest unit in which it is at least 1: `1.5 GiB`."""
    return size_unit(num_bytes).text(num_bytes)


def _fitting(units: tuple[Unit, ...], value: float) -> Unit:
    if not value:
        return units[0]
    return next((unit for unit in units if value * unit.per_base >= 1), units[-1])
