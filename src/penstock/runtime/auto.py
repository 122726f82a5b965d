"""What "auto" stands for: an order found by search, and the partition under which a step takes least time.

Both are functions of the arguments alone, with no clock in them, so that every rank finds the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import nn

from penstock.cluster import Cluster
from penstock.costs import PerStage, StageCosts
from penstock.errors import PartitionError, UserError, check_type
from penstock.ir.placement import Placement
from penstock.ir.schedule import Schedule
from penstock.models import CutModel
from penstock.partition import LayerCosts, Partition

if TYPE_CHECKING:  # these bring numba in, which only a search needs
    from penstock.optimize import Optimized

AUTO = "auto"
"""What stands for a search in the place of a schedule or a partition."""

_MORE_STAGES = 1.01
"""How many times faster an order of more stages a rank must be: each op has a price of its own that no costs tell."""

_ROUNDS, _SKETCH = 2, 0.2
"""How often order and partition are fitted to one another, and the effort of each search before the last."""


_EVEN = "even stages are best: other partitions and their orders take as long or longer"


@dataclass(frozen=True)
class Assumed:
    """What a search is for.

    Attributes:
        costs: of stages or of layers; None means that all stages cost the same, F = I = W = 1, or, where layers are to
            be balanced, that a layer costs what its matrices have of entries.
        cluster: devices and links; None means equal devices and messages that take no time.
        memory_limit: the most that F and I may keep on a rank at once, in the unit of `activation_bytes`; None means
            what 1F1B keeps.

    Raises:
        UserError: one of them is something else.
    """

    costs: StageCosts | LayerCosts | None = None
    cluster: Cluster | None = None
    memory_limit: PerStage | None = None

    def __post_init__(self) -> None:
        example = "e.g. penstock.StageCosts(forward=[1, 2])"
        check_type("costs", self.costs, StageCosts, LayerCosts, type(None), example=example)
        check_type("cluster", self.cluster, Cluster, type(None), example="e.g. penstock.Cluster.uniform(4)")
        # Lists become tuples, so that what was searched for can be looked up.
        if self.cluster is not None:
            fixed = replace(self.cluster, devices=tuple(self.cluster.devices), levels=tuple(self.cluster.levels))
            object.__setattr__(self, "cluster", fixed)
        if isinstance(self.memory_limit, Sequence):
            object.__setattr__(self, "memory_limit", tuple(self.memory_limit))

    @property
    def digest(self) -> str:
        """A short text that differs where any of this differs."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:16]


class Chosen(NamedTuple):
    """What was found.

    Attributes:
        schedule: an order.
        partition: layers of each stage.
        reason: what it comes to and what it was compared with, a line each.
    """

    schedule: Schedule
    partition: Partition
    reason: str


class _Question(NamedTuple):
    """What decides the answer of a search: of the model, how many layers it has and what they cost."""

    num_ranks: int
    num_microbatches: int
    num_layers: int
    layer_costs: LayerCosts | None
    partition: Partition | str | None
    assumed: Assumed


class _Candidate(NamedTuple):
    """An order, the partition that it was found for, and why that one."""

    found: Optimized
    partition: Partition
    why: str = ""


_ONE_AT_A_TIME = Lock()
"""Ranks that are threads of one process ask the same at the same time: the first searches, the others look it up."""


def layer_costs_of(model: CutModel) -> LayerCosts:
    """Returns layers that cost what their matrices have of entries, in units of the mean layer, and F = I = W.

    Every position of a batch meets each entry once, but for tables that are only looked up in (`nn.Embedding`).
    Convolutions, attention over long contexts and experts that are chosen cost otherwise.

    Raises:
        UserError: layers without any matrix, or that are not built yet.
    """
    entries = []
    for name, layer in model.layers.items():
        if not isinstance(layer, nn.Module):
            raise UserError(f'layer {name} is not built, so its size is not known; give costs= with partition="auto"')
        matrices = (
            parameter
            for module in layer.modules()
            if not isinstance(module, nn.Embedding | nn.EmbeddingBag)
            for parameter in module.parameters(recurse=False)
            if parameter.dim() >= 2
        )
        entries.append(sum(parameter.numel() for parameter in matrices))
    mean = sum(entries) / len(entries)
    if not mean:
        raise UserError('no layer has a matrix to be measured by; give costs=penstock.LayerCosts(…) for "auto"')
    seconds = [count / mean for count in entries]
    return LayerCosts(seconds, seconds, seconds, names=list(model.layers))


def balanced_partition(model: CutModel, schedule: Schedule, assumed: Assumed) -> Chosen:
    """Returns the partition of `model` under which `schedule` takes least time.

    Raises:
        UserError: costs of stages, or of another number of layers.
        PartitionError: fewer layers than stages, or none that fits the memory.
    """
    from penstock.partition import best_partition

    costs = layer_costs_for(model, assumed)
    balanced = best_partition(costs, schedule, cluster=assumed.cluster)
    line = _partition_line(balanced.partition, balanced.seconds, balanced.uniform_seconds, balanced.reason)
    return Chosen(schedule, balanced.partition, f"{line}{_basis(assumed, layers=True)}")


def found_schedule(
    model: CutModel,
    *,
    num_ranks: int,
    num_microbatches: int,
    partition: Partition | str | None,
    assumed: Assumed,
) -> Chosen:
    """Returns the best order found, and the partition that it is for.

    Where costs are of layers, one and two stages a rank are tried, looped and as a V, and more stages taken only where
    they save a hundredth; sizes or costs of stages say how many there are.

    Args:
        model: what is cut.
        num_ranks: p.
        num_microbatches: m.
        partition: layers of each stage; None means even numbers, "auto" the best.
        assumed: what is searched for.

    Raises:
        UserError: costs, sizes or a cluster that do not go together, or a memory limit that lets nothing through.
        PartitionError: fewer layers than stages.
    """
    layers = None
    if partition == AUTO or isinstance(assumed.costs, LayerCosts):
        layers = layer_costs_for(model, assumed)
    with _ONE_AT_A_TIME:
        return _answer(_Question(num_ranks, num_microbatches, model.num_layers, layers, partition, assumed))


@lru_cache(maxsize=4)
def _answer(asked: _Question) -> Chosen:
    best: _Candidate | None = None
    for placement in _placements(asked):
        candidate = _candidate(asked, placement)
        more = best is not None and placement.num_stages > best.partition.num_stages
        if best is None or candidate.found.value * (_MORE_STAGES if more else 1 + 1e-12) < best.found.value:
            best = candidate
    if best is None:
        raise RuntimeError("no placement to search: there is always the loop")
    reason = f"schedule auto: {best.found.reason}{_basis(asked.assumed, layers=asked.layer_costs is not None)}"
    return Chosen(best.found.schedule, best.partition, "\n".join(filter(None, (reason, best.why))))


def _candidate(asked: _Question, placement: Placement) -> _Candidate:
    """Returns the best order on `placement`; with partition "auto" order and partition are fitted in turn."""
    from penstock.partition import best_partition

    even = Partition.uniform(asked.num_layers, placement.num_stages)
    if asked.partition != AUTO or asked.layer_costs is None:
        cut = asked.partition if isinstance(asked.partition, Partition) else even
        return _Candidate(_searched(asked, placement, cut, effort=1), cut)
    cut, tried = even, {even: _EVEN}
    for _ in range(_ROUNDS):
        order = _searched(asked, placement, cut, effort=_SKETCH).schedule
        balanced = best_partition(asked.layer_costs, order, cluster=asked.assumed.cluster)
        if balanced.uniform_seconds == float("inf"):
            tried.pop(even, None)
        cut = balanced.partition
        if cut in tried:
            break
        tried[cut] = balanced.reason
    orders = [_Candidate(_searched(asked, placement, one, effort=1), one, why) for one, why in tried.items()]
    best = min(orders, key=lambda order: order.found.value)
    seconds = orders[0].found.value if even in tried else float("inf")
    return best._replace(why=_partition_line(best.partition, best.found.value, seconds, best.why))


def _searched(asked: _Question, placement: Placement, partition: Partition, *, effort: float) -> Optimized:
    from penstock.optimize import Search, optimize_schedule

    assumed = asked.assumed
    costs = assumed.costs if isinstance(assumed.costs, StageCosts) else None
    return optimize_schedule(
        asked.num_ranks,
        asked.num_microbatches,
        costs=asked.layer_costs.stage_costs(partition) if asked.layer_costs is not None else costs,
        cluster=assumed.cluster,
        memory_limit=assumed.memory_limit,
        placement=placement,
        search=Search(effort=effort),
    )


def layer_costs_for(model: CutModel, assumed: Assumed) -> LayerCosts:
    """Returns the costs of the model's layers: those given, or by their matrices.

    Raises:
        PartitionError: costs of stages, or of another number of layers.
        UserError: layers whose size is not known.
    """
    if isinstance(assumed.costs, StageCosts):
        raise PartitionError(
            'partition="auto" needs the costs of layers, and costs=StageCosts(…) are of stages; give '
            f"penstock.LayerCosts with {model.num_layers} numbers, or leave costs out"
        )
    costs = assumed.costs or layer_costs_of(model)
    if costs.num_layers != model.num_layers:
        raise PartitionError(
            f"costs are of {costs.num_layers} layers and the model has {model.num_layers}; give one number a layer, "
            "in model order"
        )
    return costs


def _placements(asked: _Question) -> Iterator[Placement]:
    from penstock.optimize import placements

    num_ranks, cluster = asked.num_ranks, asked.assumed.cluster
    stages, what = _num_stages(asked.partition, asked.assumed)
    chunks = [1, 2]
    if stages is not None:
        if stages % num_ranks or not stages:
            raise PartitionError(
                f'schedule="auto" on {num_ranks} ranks, and {what} for {stages} stages; give a multiple of '
                f"{num_ranks}, e.g. {num_ranks}"
            )
        chunks = [stages // num_ranks]
    elif asked.layer_costs is None or asked.num_layers < 2 * num_ranks:
        chunks = [1]
    elif cluster and any(device.memory_bytes != float("inf") for device in cluster.devices):
        chunks = [1]  # whether several stages fit a rank is not known before there is an order
    for count in chunks:
        yield from placements(num_ranks, count).values()


def _num_stages(partition: Partition | str | None, assumed: Assumed) -> tuple[int | None, str]:
    """Returns how many stages the arguments speak of, and which one does."""
    if isinstance(partition, Partition):
        return partition.num_stages, "partition is"
    if isinstance(assumed.costs, StageCosts):
        rows: list[Any] = list(vars(assumed.costs).values())
        for row in rows:
            if isinstance(row, Sequence):
                return len(row), "costs are"
    return None, ""


def _basis(assumed: Assumed, *, layers: bool) -> str:
    if assumed.costs is not None:
        return ""
    taken = "a layer counts what its matrices have of entries, 1 the mean" if layers else "F = I = W = 1 on every stage"
    return f" (no costs were given: {taken})"


def _partition_line(partition: Partition, seconds: float, even_seconds: float, why: str) -> str:
    sizes = [len(partition.layers_of(stage)) for stage in range(partition.num_stages)]
    more = even_seconds / seconds - 1 if seconds else 0.0
    against = f"even stages take {more:.1%} more: "
    if more == float("inf") or partition == Partition.uniform(partition.num_layers, partition.num_stages):
        against = ""  # why says it all
    return f"partition auto: {sizes} layers a stage, a step of {seconds:.4g}; {against}{why}"
