"""From what the user says to what will run: schedule, proof and partition, all checked before any message."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from penstock.errors import PartitionError, ScheduleError, check_type
from penstock.ir.placement import Placement
from penstock.ir.schedule import Schedule, WeightRule
from penstock.lowering import lower
from penstock.models import CutModel, Tie
from penstock.models.cut_points import partition_at
from penstock.notation import load_schedule
from penstock.partition import LayerCosts, Partition
from penstock.runtime.auto import AUTO, Assumed, Chosen, balanced_partition, found_schedule, layer_costs_for
from penstock.runtime.shared_weights.ties import check_ties
from penstock.schedules import Given, named_schedule
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
        reason: what "auto" came to, and why; empty where nothing was searched.
        assumed: a digest of what it was found for.
    """

    proof: Proof
    partition: Partition
    parameter_stages: dict[str, int]
    ties: tuple[Tie, ...] = ()
    reason: str = ""
    assumed: str = ""

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
    partition: Partition | Sequence[int] | Sequence[str] | None,
    reduce_gradients: bool,
    assumed: Assumed | None = None,
) -> RunPlan:
    """Returns the plan for `model` on `num_ranks` ranks.

    Raises:
        ScheduleError: unknown name, or a schedule of other sizes.
        VerificationError: a schedule that would not run.
        PartitionError: more stages than layers, or layers left out or taken twice.
        ModelError: a parameter on several stages of a schedule that steps inside.
        UserError: costs, a cluster or a memory limit that do not go with the rest.
    """
    assumed = assumed or Assumed()
    cut = _partition_of(partition, model)
    if schedule == AUTO:
        chosen = found_schedule(
            model,
            num_ranks=num_ranks,
            num_microbatches=_number(num_microbatches, AUTO, num_ranks),
            partition=cut,
            assumed=assumed,
        )
    else:
        fixed = choose_schedule(schedule, num_ranks=num_ranks, num_microbatches=num_microbatches)
        chosen = _fitted(model, _with_partition(model, fixed, cut, assumed), schedule, assumed)
    chosen.partition.check(model.num_layers, chosen.schedule.num_stages)
    check_runnable(chosen.schedule)
    proof = verify(lower(chosen.schedule, reduce_gradients=reduce_gradients))
    parameter_stages, ties = model.parameters_of(chosen.partition)
    check_ties(ties, chosen.schedule)
    digest = assumed.digest if assumed != Assumed() else ""
    return RunPlan(proof, chosen.partition, parameter_stages, ties, chosen.reason, digest)


def _partition_of(
    partition: Partition | Sequence[int] | Sequence[str] | None, model: CutModel
) -> Partition | str | None:
    if partition is None or isinstance(partition, Partition):
        return partition
    if partition == AUTO:
        return AUTO
    if isinstance(partition, str):
        return partition_at(list(model.layers), [partition])
    if not isinstance(partition, Sequence):
        raise PartitionError(f'partition={partition!r}; give layers per stage, e.g. [3, 3], or "auto"')
    names = [point for point in partition if isinstance(point, str)]
    sizes = [size for size in partition if isinstance(size, int)]
    if len(names) == len(partition) and names:
        return partition_at(list(model.layers), names)
    if len(sizes) != len(partition):
        raise PartitionError(
            f"partition={partition!r}; give layers per stage, e.g. [3, 3], or names of the layers where stages begin"
        )
    return Partition.of_sizes(sizes)


def _with_partition(model: CutModel, schedule: Schedule, partition: Partition | str | None, assumed: Assumed) -> Chosen:
    """Returns `schedule` with the partition asked for."""
    if isinstance(partition, str):
        return balanced_partition(model, schedule, assumed)
    return Chosen(schedule, partition or Partition.uniform(model.num_layers, schedule.num_stages), "")


def _fitted(model: CutModel, chosen: Chosen, schedule: str | Path | Schedule, assumed: Assumed) -> Chosen:
    """Returns `chosen` with its order found anew for the costs of its stages, where it is of a kind that has such."""
    named = isinstance(schedule, str) and not schedule.endswith(FILE_SUFFIXES)
    if not named:
        if assumed.memory_limit is not None:
            raise ScheduleError(
                f"memory_limit={assumed.memory_limit} and a schedule whose order is fixed; leave memory_limit out, or "
                'use schedule="auto"'
            )
        return chosen
    costs = assumed.costs
    if isinstance(costs, LayerCosts):
        costs = layer_costs_for(model, assumed).stage_costs(chosen.partition)
    if costs is None and assumed.cluster is None and assumed.memory_limit is None:
        return chosen
    fitted = named_schedule(
        str(schedule),
        num_ranks=chosen.schedule.num_ranks,
        num_microbatches=chosen.schedule.num_microbatches,
        given=Given(costs, assumed.cluster, assumed.memory_limit),
    )
    return chosen._replace(schedule=fitted)


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
        count = _number(num_microbatches, schedule, num_ranks)
        return named_schedule(schedule, num_ranks=num_ranks, num_microbatches=count)
    check_type("schedule", schedule, str, Path, Schedule, example='"one_f_one_b"')
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


def _number(num_microbatches: int | None, schedule: str, num_ranks: int) -> int:
    if num_microbatches is None:
        raise ScheduleError(
            f'schedule="{schedule}" needs num_microbatches; at least {num_ranks} keep {num_ranks} ranks busy, '
            f"e.g. num_microbatches={4 * num_ranks}"
        )
    return num_microbatches
