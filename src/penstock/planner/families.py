"""What is known of a schedule without making it: its bubble and what it keeps, by the closed forms of its docstring.

They sort candidates. What is reported comes from the order of ops itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Sizes(NamedTuple):
    """p ranks, m microbatches, v stages a rank; and a rank's seconds of F, I and W on one microbatch."""

    ranks: int
    microbatches: int
    chunks: int
    forward: float
    input_grad: float
    weight_grad: float

    @property
    def whole(self) -> float:
        """Seconds of F, I and W."""
        return self.forward + self.input_grad + self.weight_grad


class Estimate(NamedTuple):
    """How a schedule is estimated.

    Attributes:
        bubble: seconds that a rank stands still.
        live: microbatches whose activations the worst rank keeps of its share of the model.
        chunks: stages a rank that are tried.
        splits: whether it has I and W apart.
        effort: how much longer an op takes to make than one of 1F1B.
        growth: by how much this grows with each rank.
    """

    bubble: Callable[[Sizes], float]
    live: Callable[[Sizes], float]
    chunks: tuple[int, ...] = (1,)
    splits: bool = False
    effort: float = 1.0
    growth: float = 0.0


ESTIMATES: dict[str, Estimate] = {
    "one_f_one_b": Estimate(lambda n: (n.ranks - 1) * n.whole, lambda n: min(n.ranks, n.microbatches)),
    "gpipe": Estimate(lambda n: (n.ranks - 1) * n.whole, lambda n: n.microbatches),
    "interleaved_1f1b": Estimate(
        lambda n: (n.ranks - 1) * n.whole / n.chunks,
        lambda n: min(n.ranks + (n.ranks - 1) / n.chunks, n.microbatches),
        chunks=(2, 3, 4, 6, 8),
        effort=2.0,
    ),
    "breadth_first": Estimate(
        lambda n: (n.ranks - 1) * n.whole / n.chunks, lambda n: n.microbatches, chunks=(2, 4), effort=2.0
    ),
    "zb_h1": Estimate(
        lambda n: (n.ranks - 1) * max(n.forward + n.input_grad - n.weight_grad, 0),
        lambda n: min(n.ranks, n.microbatches),
        splits=True,
        effort=2.0,
    ),
    "zb_h2": Estimate(
        lambda n: (n.ranks - 1) * max(n.forward + n.input_grad - 2 * n.weight_grad, n.forward / n.ranks),
        lambda n: min(2 * n.ranks - 1, n.microbatches),
        splits=True,
        effort=2.0,
    ),
    "zb_v": Estimate(
        lambda n: (n.ranks - 1) * n.forward / 2,
        lambda n: min(n.ranks, n.microbatches),
        chunks=(2,),
        splits=True,
        effort=3.0,
    ),
    "v_half": Estimate(
        lambda n: (n.ranks - 1) * n.whole / 2,
        lambda n: min(n.ranks / 2 + 1, n.microbatches),
        chunks=(2,),
        splits=True,
        growth=0.8,
    ),
    "v_min": Estimate(
        lambda n: (n.ranks - 1) * n.whole * 2 / 3,
        lambda n: min(n.ranks / 3 + 2, n.microbatches),
        chunks=(2,),
        splits=True,
        growth=0.8,
    ),
}
"""The schedules that are planned with: synchronous ones of a single direction."""
