"""Contiguous layer ranges, one per stage, covering every layer exactly once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from penstock.errors import PartitionError


@dataclass(frozen=True)
class Partition:
    """Layer ranges per stage; stage s holds layers `boundaries[s]` up to but not including `boundaries[s+1]`.

    Attributes:
        boundaries: num_stages + 1 rising numbers from 0 to the number of layers.

    Raises:
        PartitionError: boundaries that do not start at 0, or a stage without layers.
    """

    boundaries: tuple[int, ...]

    def __post_init__(self) -> None:
        if any(isinstance(layer, bool) or not isinstance(layer, int) for layer in self.boundaries):
            raise PartitionError(f"partition {self.boundaries}: layers are whole numbers, e.g. (0, 3, 6)")
        if len(self.boundaries) < 2 or self.boundaries[0] != 0:
            raise PartitionError(
                f"partition {self.boundaries} does not run from layer 0 to the last; write e.g. (0, 3, 6)"
            )
        for stage, (first, last) in enumerate(pairwise(self.boundaries)):
            if last <= first:
                raise PartitionError(
                    f"partition {self.boundaries} leaves stage {stage} without layers: it would hold "
                    f"{last - first}; give every stage one or more"
                )

    @staticmethod
    def uniform(num_layers: int, num_stages: int) -> Partition:
        """Returns stages whose layer counts differ by at most one, the longer ones first.

        Raises:
            PartitionError: no stage, or more stages than layers.
        """
        if num_stages < 1:
            raise PartitionError(f"num_stages={num_stages}; use at least 1")
        if num_stages > num_layers:
            raise PartitionError(
                f"{num_layers} layers cannot fill {num_stages} stages; use at most {num_layers} stages, or more layers"
            )
        size, longer = divmod(num_layers, num_stages)
        return Partition.of_sizes([size + (stage < longer) for stage in range(num_stages)])

    @staticmethod
    def of_sizes(sizes: Sequence[int]) -> Partition:
        """Returns stages of these numbers of layers: `of_sizes([3, 5])` is `(0, 3, 8)`.

        Raises:
            PartitionError: no stage, or a stage without layers.
        """
        for size in sizes:
            if isinstance(size, bool) or not isinstance(size, int):
                raise PartitionError(f"partition sizes {list(sizes)}: {size!r} is no whole number of layers, e.g. 3")
        return Partition(tuple(accumulate(sizes, initial=0)))

    @property
    def num_stages(self) -> int:
        """Number of stages, s."""
        return len(self.boundaries) - 1

    @property
    def num_layers(self) -> int:
        """Number of layers over all stages."""
        return self.boundaries[-1]

    def layers_of(self, stage: int) -> range:
        """Returns the indices of the layers of `stage`."""
        return range(self.boundaries[stage], self.boundaries[stage + 1])

    def check(self, num_layers: int, num_stages: int) -> Partition:
        """Returns this partition if it takes each of `num_layers` layers into one of `num_stages` stages.

        Raises:
            PartitionError: layers left out, layers that do not exist, or another number of stages.
        """
        sizes = [len(self.layers_of(stage)) for stage in range(self.num_stages)]
        if self.num_stages != num_stages:
            raise PartitionError(
                f"partition {sizes} has {self.num_stages} stages; the schedule has {num_stages}, so give "
                f"{num_stages} sizes"
            )
        if self.num_layers < num_layers:
            left = list(range(self.num_layers, num_layers))
            raise PartitionError(
                f"partition {sizes} leaves out layers {left} of {num_layers}; sizes must add up to {num_layers}"
            )
        if self.num_layers > num_layers:
            raise PartitionError(
                f"partition {sizes} takes {self.num_layers} layers; the model has {num_layers}, and sizes "
                "must add up to it"
            )
        return self


def shifted(cuts: tuple[int, ...], low: int, high: int, step: int) -> tuple[int, ...] | None:
    """Returns boundaries of which those numbered `low` to `high - 1` are moved by `step`; None if a stage is empty."""
    moved = (*cuts[:low], *(cut + step for cut in cuts[low:high]), *cuts[high:])
    return moved if all(first < last for first, last in pairwise(moved)) else None
