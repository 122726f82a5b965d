"""How each kind of op looks, in every view.

The colours keep their order of lightness (F, I, B, W, S from light to dark), so that a picture reads in grey,
and are told apart under the common forms of colour blindness: blue, orange, vermilion, teal, violet.
"""

from __future__ import annotations

from typing import NamedTuple

from penstock.ir.ops import OpKind
from penstock.timeline import Timeline


class Look(NamedTuple):
    """How a kind of op is drawn.

    Attributes:
        word: its name in a legend.
        fill: colour of its bar.
        ink: colour of the text in the bar.
        terminal: its colour in a terminal, of the basic 16.
    """

    word: str
    fill: str
    ink: str
    terminal: str


LOOKS: dict[OpKind, Look] = {
    OpKind.F: Look("forward", "#b5d5f1", "#1b1b1b", "bright_blue"),
    OpKind.B: Look("backward", "#cf6a3c", "#ffffff", "red"),
    OpKind.I: Look("input gradient", "#e0983f", "#1b1b1b", "yellow"),
    OpKind.W: Look("weight gradient", "#2c6e62", "#ffffff", "green"),
    OpKind.S: Look("optimizer step", "#43305f", "#ffffff", "magenta"),
    OpKind.REDUCE_GRAD: Look("gradient reduction", "#6b6b6b", "#ffffff", "cyan"),
    OpKind.UNSHARD: Look("parameter gather", "#8e7cc3", "#ffffff", "bright_magenta"),
}

OTHER = Look("other", "#9a9a9a", "#1b1b1b", "cyan")
"""Kinds without a look of their own."""


def look(kind: OpKind) -> Look:
    """Returns how `kind` is drawn."""
    return LOOKS.get(kind, OTHER)


class Shade(NamedTuple):
    """How time without compute is drawn: pale, and hatched where it has a cause.

    Attributes:
        word: its name in a legend.
        fill: colour between the hatching.
        edge: colour of the hatching.
        tone: colour where there is no room for hatching.
        hatch: matplotlib's pattern.
    """

    word: str
    fill: str
    edge: str
    tone: str
    hatch: str


IDLE = Shade("idle", "#f3f3f3", "#f3f3f3", "#f3f3f3", "")
WAITING = Shade("waiting for a peer", "#f3f3f3", "#c4c4c4", "#e6e6e6", "/////")
TRANSFER = Shade("transfer", "#fbe3ec", "#dc8fae", "#eeb6cc", "\\\\" * 6)

_PALEST = 0.5
"""How much white the last of a rank's chunks gets."""


def tinted(kind: OpKind, chunk: int, chunks: int) -> tuple[str, str]:
    """Returns the colours of bar and text of an op on a rank's `chunk`-th of `chunks` stages, the later the paler."""
    fill, ink = look(kind).fill, look(kind).ink
    if not chunk:
        return fill, ink
    white = _PALEST * chunk / (chunks - 1)
    channels = [round(value + (255 - value) * white) for value in bytes.fromhex(fill.removeprefix("#"))]
    light = sum(weight * value for weight, value in zip((0.299, 0.587, 0.114), channels, strict=True)) > 140
    return "#" + bytes(channels).hex(), "#1b1b1b" if light else "#ffffff"


def chunks_of(timeline: Timeline) -> dict[tuple[int, int], tuple[int, int]]:
    """Returns (rank, stage) -> (which of its rank's stages it is, how many the rank has)."""
    stages: dict[int, set[int]] = {}
    for span in timeline.spans:
        stages.setdefault(span.rank, set()).add(span.op.stage)
    return {
        (rank, stage): (chunk, len(held)) for rank, held in stages.items() for chunk, stage in enumerate(sorted(held))
    }
