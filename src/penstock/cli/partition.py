"""`penstock partition`: lay layers onto stages so that a step takes least time, and say why."""

from __future__ import annotations

from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import tyro
from rich import box
from rich.console import Console
from rich.table import Table

from penstock.cli.options import Chunks, Microbatches, Ranks, parse, read_json, read_schedule
from penstock.cluster import Cluster, Device, Link
from penstock.errors import UserError, nearest
from penstock.partition import Balanced, LayerCosts, best_partition
from penstock.profiler.costs import layer_costs
from penstock.profiler.files import is_profile, load_profile
from penstock.units import size_unit, time_unit

OptionalBytes = Annotated[float | None, tyro.conf.arg(metavar="FLOAT", constructor=float, help_behavior_hint="")]
InputFile = Annotated[Path | None, tyro.conf.arg(metavar="FILE", constructor=Path, help_behavior_hint="")]


@dataclass(frozen=True)
class PartitionOptions:
    """Find the partition of layers into stages under which a schedule takes least time.

    Layers are given in a file, or as equal ones with an embedding before and a head behind them. Costs are seconds of
    one layer's forward on one microbatch; I and W take as long where nothing else is said.
    """

    costs: InputFile = None
    """A profile, or a JSON file with fields of LayerCosts: {"forward": [1, 1, 3], "input_grad": [1, 1, 3], "names":
    […]}."""
    layers: int = 24
    """Number of equal layers, where no file is given."""
    embedding: float = 0.0
    """What the embedding costs, in layers; 0: there is none."""
    head: float = 1.0
    """What the head costs, in layers; 0: there is none."""
    schedule: str = "one_f_one_b"
    """The schedule under which partitions are timed: a name, or a file with one."""
    ranks: Ranks = None
    """Number of ranks p, for a schedule given by name."""
    microbatches: Microbatches = None
    """Number of microbatches m, for a schedule given by name."""
    num_chunks: Chunks = None
    """Number of stages a rank v, for a schedule given by name."""
    latency: float = 0.0
    """Seconds that a message takes beside its bytes."""
    bandwidth: OptionalBytes = None
    """Bytes a second of the links between ranks; left out, as many as there are."""
    memory: OptionalBytes = None
    """Bytes of each rank's device; left out, as many as it takes."""
    recompute: bool = False
    """Let layers run their forward again where their activations do not fit."""

    def layer_costs(self) -> LayerCosts:
        """Returns what each layer costs.

        Raises:
            UserError: a file that does not hold costs, or numbers out of range.
        """
        if self.costs is not None:
            return _read_costs(self.costs)
        if self.layers < 1:
            raise UserError(f"--layers {self.layers}; use at least 1, e.g. --layers 24")
        ends = (("embedding", self.embedding), ("head", self.head))
        each = [(f"layer {layer}", 1.0) for layer in range(self.layers)]
        named = [end for end in ends[:1] if end[1]] + each + [end for end in ends[1:] if end[1]]
        seconds = [cost for _, cost in named]
        return LayerCosts(seconds, seconds, seconds, names=[name for name, _ in named])

    def cluster(self, num_ranks: int) -> Cluster:
        """Returns equal devices and links.

        Raises:
            UserError: numbers out of range.
        """
        device = Device() if self.memory is None else Device(self.memory)
        link = Link(self.latency) if self.bandwidth is None else Link(self.latency, self.bandwidth)
        return Cluster((device,) * num_ranks, ((num_ranks, link),))


def run(argv: list[str]) -> int:
    """Finds the partition that `argv` asks for; returns the exit code."""
    options = parse(PartitionOptions, argv, command="partition")
    costs = options.layer_costs()
    schedule = read_schedule(
        options.schedule,
        num_ranks=options.ranks,
        num_microbatches=options.microbatches,
        num_chunks=options.num_chunks,
    )
    best = best_partition(costs, schedule, cluster=options.cluster(schedule.num_ranks), recompute=options.recompute)
    console = Console()
    console.print(_table(best, costs, schedule.placement.table[0]))
    unit = time_unit(best.seconds)
    gain = best.uniform_seconds / best.seconds - 1 if best.seconds else 0.0
    even = "does not fit" if gain == float("inf") else f"{unit.text(best.uniform_seconds)}, {gain:.1%} more"
    lines = {
        "step": f"{unit.text(best.seconds)} under {schedule.name}, m={schedule.num_microbatches}",
        "even stages": even,
        "why": best.reason,
        "proof": "no partition takes less" if best.proven else "the best found; not all partitions were timed",
        "sizes": " ".join(str(last - first) for first, last in pairwise(best.partition.boundaries)),
    }
    for label, value in lines.items():
        console.print(f"{label:<12} {value}", highlight=False, soft_wrap=True, markup=False)
    return 0


def _table(best: Balanced, costs: LayerCosts, ranks: tuple[int, ...]) -> Table:
    unit = time_unit(max(best.stage_seconds))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("stage", "rank", "layers", f"F+I+W [{unit.name}]", "again"):
        table.add_column(heading, justify="right")
    if best.memory_bytes:
        memory = size_unit(max(best.memory_bytes))
        table.add_column(f"memory [{memory.name}]", justify="right")
    table.add_column("first to last")
    for stage, (first, last) in enumerate(pairwise(best.partition.boundaries)):
        row = [str(stage), str(ranks[stage]), str(last - first), unit.number(best.stage_seconds[stage])]
        row.append(str(sum(best.recompute[first:last])))
        if best.memory_bytes:
            row.append(memory.number(best.memory_bytes[ranks[stage]]))
        names = costs.names[first] if last - first == 1 else f"{costs.names[first]} … {costs.names[last - 1]}"
        table.add_row(*row, names)
    return table


def _read_costs(path: Path) -> LayerCosts:
    if is_profile(path):
        return layer_costs(load_profile(path))
    given = read_json(path)
    known = [field.name for field in fields(LayerCosts)]
    if not isinstance(given, dict) or not isinstance(given.get("forward"), list):
        raise UserError(f'{path}: holds no layers; write e.g. {{"forward": [1, 1, 3], "input_grad": [1, 1, 3]}}')
    for name, row in given.items():
        if name not in known:
            raise UserError(f'{path}: unknown cost "{name}".{nearest(name, known)} Known: {", ".join(known)}')
        if not isinstance(row, list):
            raise UserError(f"{path}: {name}={row!r}; give a list with one number a layer")
    return LayerCosts(**given)
