"""Where stages begin, said by names of the model's modules."""

from __future__ import annotations

import re
from collections.abc import Sequence

from penstock.errors import PartitionError, nearest
from penstock.partition import Partition


def partition_at(layers: Sequence[str], points: Sequence[str]) -> Partition:
    r"""Returns the partition whose stages after the first begin at `points`.

    Args:
        layers: names of the model's layers, in order.
        points: names of modules, or regular expressions that match whole names of layers, each maybe several: of six
            blocks, `[r"blocks\.[24]"]` makes three stages. A name of a module that has several layers is its first.

    Raises:
        PartitionError: a point that is no layer, lies inside one, is the first, or is there twice.
    """
    starts: list[int] = []
    for point in points:
        found = _layers_at(layers, point)
        if 0 in found:
            raise PartitionError(
                f"partition={list(points)!r}: {point!r} is the first layer, where stage 0 begins anyway; name where "
                "the stages after it begin"
            )
        for layer in found:
            if layer in starts:
                raise PartitionError(
                    f"partition={list(points)!r} names {layers[layer]} twice; name each once, or give layers per "
                    "stage, e.g. [3, 3]"
                )
        starts += found
    return Partition((0, *sorted(starts), len(layers)))


_SHOWN = 6
"""Names in a message: enough to see their manner."""


def _layers_at(layers: Sequence[str], point: str) -> list[int]:
    """Returns the layers that one point names."""
    if point in layers:
        return [layers.index(point)]
    inside = [layer for layer, name in enumerate(layers) if name.startswith(f"{point}.")]
    if inside:
        return inside[:1]
    around = next((name for name in layers if point.startswith(f"{name}.")), None)
    if around is not None:
        raise PartitionError(f"partition: {point} lies inside {around}, which stays whole; begin a stage at {around!r}")
    try:
        found = [layer for layer, name in enumerate(layers) if re.fullmatch(point, name)]
    except re.error as error:
        raise PartitionError(f"partition: {point!r} is neither a layer nor a regular expression: {error}") from None
    if not found:
        shown = ", ".join(layers[:_SHOWN]) + (" …" if len(layers) > _SHOWN else "")
        raise PartitionError(
            f'partition={point!r}; give layers per stage, e.g. [3, 3], "auto", or names of layers where stages begin: '
            f"{shown}.{nearest(point, layers)}"
        )
    return found
