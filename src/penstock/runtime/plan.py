"""From what the user says to what will run: schedule, proof and partition, all checked before any message."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from penstock.errors import PartitionError, ScheduleError
from penstock.ir.placement import Placement
from penstock.ir.schedule import Schedule, WeightRule
from penstock.lowering import lower
from penstock.models import CutModel, Tie
from penstock.notation import load_schedule
from penstock.partition import Partition
from penstock.runtime.ties import check_ties
from penstock.schedules import named_schedule
from penstock.verifier import Proof, verify

FILE_SUFFIXES = (".json", ".csv", ".txt")
"""A schedule whose name ends like this is a file."""


@dataclass(frozen=True)
class RunPlan:
    """What a pipeline will execute.

    Attributes:
        proof: the verified training program.
        partition: layers per stage.
        parameter_stages: every parameter of the model -> its stage, in model order; a tied one once.
        ties: parameters that several stages use.
    """

    proof: Proof
    partition: Partition
    parameter_stages: dict[str, int]
    ties: tuple[Tie, ...] = ()

    @property
    def schedule(self) -> Schedule:
        """The order of compute ops."""
        return self.proof.program.schedule

    @property
    def placement(self) -> Placement:
        """Stage -> rank."""
        return self.schedule.placement


def make_plan(
    model: CutModel,
    *,
    schedule: str | Path | Schedule,
    num_ranks: int,
    num_microbatches: int | None,
    partition: Partition | Sequence[int] | None,
    reduce_gradients: bool,
) -> RunPlan:
    """Returns the plan for `model` on `num_ranks` ranks.

    Raises:
        ScheduleError: unknown name, or a schedule of other sizes.
        VerificationError: a schedule that would not run.
        PartitionError: more stages than layers, or layers left out or taken twice.
        ModelError: a parameter on stages of different ranks in a schedule with two directions.
    """
    chosen = choose_schedule(schedule, num_ranks=num_ranks, num_microbatches=num_microbatches)
    if partition is None:
        cut = Partition.uniform(model.num_layers, chosen.num_stages)
    elif isinstance(partition, Partition):
        cut = partition
    elif all(isinstance(size, int) for size in partition):
        cut = Partition.of_sizes(partition)
    else:
        raise PartitionError(f"partition={partition!r}; give layers per stage, e.g. [3, 3]")
    cut.check(model.num_layers, chosen.num_stages)
    check_runnable(chosen)
    proof = verify(lower(chosen, reduce_gradients=reduce_gradients))
    parameter_stages, ties = model.parameters_of(cut)
    check_ties(ties, chosen.placement)
    return RunPlan(proof, cut, parameter_stages, ties)


def check_runnable(schedule: Schedule) -> None:
    """Refuses a schedule that does not train.

    Raises:
        ScheduleError: there is no backward at all.
    """
    if schedule.weight_rule is WeightRule.FROZEN:
        raise ScheduleError(
            f"{schedule.name} has the weight rule {schedule.weight_rule.value}, which is that of evaluation; train "
            "with another schedule, e.g. one_f_one_b"
        )


def choose_schedule(schedule: str | Path | Schedule, *, num_ranks: int, num_microbatches: int | None) -> Schedule:
    """Returns the schedule that is named, given, or in the file named, for these sizes.

    Raises:
        ScheduleError: unknown name, or a schedule of other sizes.
        NotationError: a file that holds no schedule.
    """
    if isinstance(schedule, str) and not schedule.endswith(FILE_SUFFIXES):
        if num_microbatches is None:
            raise ScheduleError(
                f'schedule="{schedule}" needs num_microbatches; at least {num_ranks} keep {num_ranks} ranks busy, '
                f"e.g. num_microbatches={4 * num_ranks}"
            )
        return named_schedule(schedule, num_ranks=num_ranks, num_microbatches=num_microbatches)
    chosen = schedule if isinstance(schedule, Schedule) else load_schedule(schedule)
    if chosen.num_ranks != num_ranks:
        raise ScheduleError(
            f"{chosen.name} is for {chosen.num_ranks} ranks and this pipeline has {num_ranks}; make one for "
            f"{num_ranks} or start {chosen.num_ranks} ranks"
        )
    if num_microbatches not in (None, chosen.num_microbatches):
        raise ScheduleError(
            f"num_microbatches={num_microbatches} and a schedule of {chosen.num_microbatches}; leave the former out"
        )
    return chosen
