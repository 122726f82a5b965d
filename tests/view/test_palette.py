"""Kinds of op are told apart in grey too, and every number can be read on its bar."""

from itertools import pairwise

import pytest
from matplotlib.colors import to_rgb

from penstock.ir.ops import COMPUTE, OpKind
from penstock.view.palette import IDLE, LOOKS, OTHER, look


def luminance(colour: str) -> float:
    """Returns the relative luminance of WCAG 2."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def test_every_compute_kind_has_a_look_of_its_own() -> None:
    assert set(LOOKS) >= COMPUTE
    assert len({each.fill for each in LOOKS.values()}) == len(LOOKS)
    assert len({LOOKS[kind].terminal for kind in COMPUTE}) == len(COMPUTE)


def test_an_unknown_kind_is_drawn_as_other() -> None:
    assert look(OpKind.RECOMPUTE) is OTHER


def test_compute_kinds_differ_in_grey() -> None:
    fills = [IDLE.fill, *(LOOKS[kind].fill for kind in (OpKind.F, OpKind.I, OpKind.B, OpKind.W, OpKind.S))]
    assert all(luminance(lighter) > luminance(darker) for lighter, darker in pairwise(fills))
    assert all(contrast(lighter, darker) > 1.35 for lighter, darker in pairwise(fills))


@pytest.mark.parametrize("kind", sorted(LOOKS))
def test_numbers_contrast_with_their_bars(kind: OpKind) -> None:
    assert contrast(LOOKS[kind].fill, LOOKS[kind].ink) > 3
