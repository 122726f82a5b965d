"""What stages compute, keep and hand on for one microbatch, as a value: a table to print, costs to simulate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from penstock.costs import StageCosts
from penstock.units import size_text


@dataclass(frozen=True)
class StageSize:
    """One stage and one microbatch.

    Attributes:
        rank: that runs it.
        layers: how many, with the names of the first and the last.
        parameters: number of entries; a tied one counts on its first stage.
        parameter_bytes: of these.
        flops: floating point operations of matrix products, convolutions and attention in F.
        activation_bytes: what F keeps for the backward, beside what enters the stage.
        boundary: the values that leave it, by name where the model gives one; shapes and types as text.
        boundary_bytes: of these; 0 for the last stage.
    """

    rank: int
    layers: str
    parameters: int
    parameter_bytes: int
    flops: int
    activation_bytes: int
    boundary: Mapping[str, str]
    boundary_bytes: int


@dataclass(frozen=True)
class StageSizes:
    """All stages; print it, or simulate with its `costs`."""

    stages: tuple[StageSize, ...]

    @property
    def costs(self) -> StageCosts:
        """Costs with 1e12 operations a second, I and W as long as F each, and the bytes as they are."""
        seconds = [stage.flops / _FLOPS for stage in self.stages]
        return StageCosts(
            forward=seconds,
            input_grad=seconds,
            weight_grad=seconds,
            parameter_bytes=[stage.parameter_bytes for stage in self.stages],
            gradient_bytes=[stage.parameter_bytes for stage in self.stages],
            activation_bytes=[stage.activation_bytes for stage in self.stages],
            boundary_bytes=[stage.boundary_bytes for stage in self.stages],
        )

    def __str__(self) -> str:
        rows = [
            [
                str(index),
                str(stage.rank),
                stage.layers,
                f"{stage.parameters:,}",
                _share(stage.parameters, [each.parameters for each in self.stages]),
                size_text(stage.parameter_bytes),
                _share(stage.parameter_bytes, [each.parameter_bytes for each in self.stages]),
                _share(stage.flops, [each.flops for each in self.stages]),
                size_text(stage.activation_bytes),
                _share(stage.activation_bytes, [each.activation_bytes for each in self.stages]),
                size_text(stage.boundary_bytes) if stage.boundary else "",
                ", ".join(f"{name} {shape}".strip() for name, shape in stage.boundary.items()),
            ]
            for index, stage in enumerate(self.stages)
        ]
        columns = list(zip(_HEADINGS, *rows, strict=True))
        widths = [max(map(len, column)) for column in columns]
        lines = [
            "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(line, _SIDES, widths, strict=True)).rstrip()
            for line in (_HEADINGS, *rows)
        ]
        return "\n".join(lines)


_FLOPS = 1e12
_HEADINGS = ("stage", "rank", "layers", "parameters", "", "bytes", "", "F", "kept", "", "boundary", "values")
_SIDES = (">", ">", "<", ">", ">", ">", ">", ">", ">", ">", ">", "<")


def _share(part: float, all_parts: Sequence[float]) -> str:
    return f"{part / (sum(all_parts) or 1):.0%}"
