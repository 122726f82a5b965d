"""A plan: how to train a model on a fleet, and what is to be expected of it. A value, printable and saved as JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from penstock.errors import UserError
from penstock.ir.schedule import Schedule
from penstock.partition import Partition
from penstock.schedules import named_schedule


@dataclass(frozen=True)
class Forecast:
    """What a plan is expected to come to.

    Attributes:
        step_seconds: of one optimizer step.
        tokens_per_second: over all devices.
        mfu: FLOPs of the model, without what runs again, by the peak of the devices in use; 0: not known.
        bubble_fraction: share of the step that the mean rank stands still.
        memory_bytes: of each rank, on each of its devices.
        memory_limits: bytes that each has.
        seconds: where the mean rank's step goes; adds up to it. See `Parts`.
    """

    step_seconds: float
    tokens_per_second: float
    mfu: float
    bubble_fraction: float
    memory_bytes: tuple[float, ...]
    memory_limits: tuple[float, ...]
    seconds: dict[str, float]

    def __hash__(self) -> int:
        """Returns the same for equal forecasts; `seconds`, which is no hashable value, is left out."""
        return hash((self.step_seconds, self.memory_bytes))


@dataclass(frozen=True)
class Plan:
    """What to run.

    Attributes:
        data: copies of the pipeline.
        tensor: devices that share each layer.
        pipeline: ranks of a pipeline.
        outermost: which of pipeline and data is outermost on the devices; tensor groups are innermost.
        schedule: its name.
        chunks: stages a rank.
        microbatches: of each pipeline in a step.
        microbatch_size: sequences in each.
        sequence: tokens in each.
        sharding: ZeRO level: what the copies share of optimizer state (1), gradients (2) and parameters (3).
        partition: layers of each stage, embedding and head among them.
        recompute: layers that run their forward again before their backward.
        forecast: what it is expected to come to.
        reason: why it stands before the next best, in words.

    Raises:
        UserError: degrees below 1, or a partition that does not fit them.
    """

    data: int
    tensor: int
    pipeline: int
    outermost: Literal["pipeline", "data"]
    schedule: str
    chunks: int
    microbatches: int
    microbatch_size: int
    sequence: int
    sharding: int
    partition: tuple[int, ...]
    recompute: tuple[int, ...]
    forecast: Forecast
    reason: str = ""

    def __post_init__(self) -> None:
        for name in ("data", "tensor", "pipeline", "chunks", "microbatches", "microbatch_size", "sequence"):
            if getattr(self, name) < 1:
                raise UserError(f"plan: {name}={getattr(self, name)}; use at least 1")
        if len(self.partition) != self.pipeline * self.chunks or min(self.partition, default=0) < 1:
            raise UserError(
                f"plan: partition={list(self.partition)} for {self.pipeline} ranks of {self.chunks} stages; give "
                f"{self.pipeline * self.chunks} numbers of layers, each at least 1"
            )
        foreign = [layer for layer in self.recompute if not 0 <= layer < sum(self.partition)]
        if foreign:
            raise UserError(
                f"plan: recompute names layer {foreign[0]} of {sum(self.partition)}; they are counted from 0"
            )

    @property
    def devices(self) -> int:
        """Devices in use."""
        return self.data * self.tensor * self.pipeline

    @property
    def global_batch(self) -> int:
        """Sequences of a step."""
        return self.data * self.microbatches * self.microbatch_size

    @property
    def name(self) -> str:
        """The degrees and the schedule in one line."""
        chunks = f" v={self.chunks}" if self.chunks > 1 else ""
        sharding = f", ZeRO {self.sharding}" if self.sharding else ""
        return (
            f"data {self.data} × tensor {self.tensor} × pipeline {self.pipeline}, {self.schedule}{chunks}, "
            f"microbatch {self.microbatch_size}{sharding}"
        )

    def stages(self) -> Partition:
        """Returns the partition as the layers of each stage."""
        return Partition.of_sizes(self.partition)

    def order(self) -> Schedule:
        """Returns the schedule.

        Raises:
            ScheduleError: it is not defined at these sizes.
        """
        return named_schedule(
            self.schedule, num_ranks=self.pipeline, num_microbatches=self.microbatches, num_chunks=self.chunks
        )
