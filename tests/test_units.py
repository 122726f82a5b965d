"""Numbers are told in the unit in which a person would say them."""

import pytest

from penstock.units import size_text, time_unit


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (33, "33 s"), (1, "1 s"), (0.9999, "999.9 ms"), (0.04127, "41.27 ms"), (2e-5, "20 µs")],
)
def test_times(seconds: float, text: str) -> None:
    assert time_unit(seconds).text(seconds) == text


def test_a_time_below_every_unit_keeps_the_smallest() -> None:
    assert time_unit(1e-9).text(1e-9) == "0.001 µs"


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(0, "0 bytes"), (1023, "1023 bytes"), (1024, "1 KiB"), (3 << 20, "3 MiB"), (80 << 30, "80 GiB")],
)
def test_sizes(num_bytes: float, text: str) -> None:
    assert size_text(num_bytes) == text
