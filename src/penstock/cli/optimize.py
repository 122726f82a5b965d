"""`penstock optimize`: search for the best order under these costs and this memory, and say how good it is."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Literal, cast

import tyro
from rich.console import Console

from penstock.cli.costs import CostOptions
from penstock.cli.options import Microbatches, OptionalSeconds, OutputFile, Ranks, parse, read_json
from penstock.cli.outputs import PictureOptions, say_written, write_timelines
from penstock.costs import StageCosts
from penstock.errors import UserError, nearest
from penstock.ir.placement import Placement
from penstock.notation import schedule_to_json
from penstock.notation.whole_file import write_whole
from penstock.optimize import Optimized, Search, optimize_schedule, placements
from penstock.partition import Partition
from penstock.profiler.costs import layer_costs
from penstock.profiler.files import is_profile, load_profile
from penstock.units import time_unit
from penstock.view.terminal import print_grid

Chunks = Annotated[
    int | None,
    tyro.conf.arg(aliases=["-v"], metavar="INT", constructor=int, help_behavior_hint="(default: 1, of a V 2)"),
]
InputFile = Annotated[Path | None, tyro.conf.arg(metavar="FILE", constructor=Path, help_behavior_hint="")]


@dataclass(frozen=True)
class Optimize(CostOptions, PictureOptions):
    """Search for the order of ops that takes least time on these stages within this memory.

    Costs are seconds a microbatch and stage, the same for all stages, or in a file a list with one number a stage. The
    result is never slower than a named schedule on the same stages that fits the memory, and comes with a lower bound:
    no order at all is faster than that.
    """

    ranks: Ranks = None
    """Number of ranks p."""
    microbatches: Microbatches = None
    """Number of microbatches m."""
    num_chunks: Chunks = None
    """Number of stages a rank v."""
    placement: Literal["looped", "v", "wave", "free"] = "looped"
    """Where stages lie; free takes the best of those in use."""
    stage_costs: InputFile = None
    """A profile, or a JSON file with fields of StageCosts, such as {"forward": [1, 2], "input_grad": [1, 2]}; for
    uneven stages."""
    memory: tuple[float, ...] = ()
    """The most that a rank may keep, in the unit of --activation: one number, or one a rank; none: what 1F1B keeps."""
    activation: float = 1.0
    """What a forward keeps on a stage for a microbatch."""
    deferred: float = 1.0
    """What an input gradient keeps for the weight gradient."""
    objective: Literal["makespan", "span"] = "makespan"
    """The step from 0 to the last end, or a rank's longest span from first start to last end."""
    effort: float = 1.0
    """How much is tried; 2 tries about twice as much."""
    gap: float = 0.0
    """Stop within this share of the lower bound, e.g. 0.01."""
    seconds: OptionalSeconds = None
    """Stop or go on until so many are spent, by a clock that counts what is tried: the result is the same anywhere."""
    exact: float = 0.0
    """Spend so many seconds of OR-Tools' own clock on a proof (extra solver); for small sizes."""
    seed: int = 0
    """Of the random choices."""
    out: OutputFile = None
    """Save the schedule there, as JSON; all commands take it by that name."""

    def all_costs(self) -> StageCosts:
        """Returns the costs of the stages.

        Raises:
            UserError: negative costs, or a file that does not hold any.
        """
        uniform = self.costs()
        given: dict[str, object] = {field.name: getattr(uniform, field.name) for field in fields(uniform)}
        given |= {"activation_bytes": self.activation, "deferred_bytes": self.deferred}
        if self.stage_costs is not None:
            given |= self._of_profile() if is_profile(self.stage_costs) else _read_costs(self.stage_costs)
        return StageCosts(**given)  # type: ignore[arg-type]  # StageCosts checks what a file holds

    def _of_profile(self) -> dict[str, object]:
        """Returns the costs of the profile's layers in equal numbers on the stages."""
        costs = layer_costs(load_profile(cast(Path, self.stage_costs)))
        num_stages = self.placements()[0].num_stages
        staged = costs.stage_costs(Partition.uniform(costs.num_layers, num_stages))
        return {field.name: getattr(staged, field.name) for field in fields(staged)}

    def placements(self) -> list[Placement]:
        """Returns the placements to try.

        Raises:
            UserError: chunks that the placement is not made of.
        """
        return chosen_placements(self.placement, self.sizes()[0], self.num_chunks)

    def sizes(self) -> tuple[int, int]:
        """Returns p and m."""
        return 4 if self.ranks is None else self.ranks, 8 if self.microbatches is None else self.microbatches


def chosen_placements(name: str, num_ranks: int, num_chunks: int | None) -> list[Placement]:
    """Returns the placements that `name` stands for: one, or all of so many chunks for `free`.

    Raises:
        UserError: chunks that the placement is not made of.
    """
    if num_ranks < 1 or (num_chunks is not None and num_chunks < 1):
        raise UserError(f"-p {num_ranks} -v {num_chunks}; use at least one of each, e.g. -p 4 -v 2")
    chunks = num_chunks if num_chunks is not None else 2 if name in ("v", "wave") else 1
    if name == "v" and chunks != 2:
        raise UserError(f"-v {chunks}; a V has 2 stages a rank, use -v 2 or --placement wave")
    if name == "wave" and chunks % 2:
        raise UserError(f"-v {chunks}; a wave has an even number of stages a rank, e.g. -v 4")
    if name in ("v", "wave"):
        return [Placement.wave(num_ranks, chunks // 2)]
    return list(placements(num_ranks, chunks).values()) if name == "free" else [Placement.looped(num_ranks, chunks)]


def run(argv: list[str]) -> int:
    """Searches as `argv` asks for; returns the exit code."""
    options = parse(Optimize, argv, command="optimize")
    num_ranks, num_microbatches = options.sizes()
    options.pictures(options.out)
    where = options.placements()
    best = optimize_schedule(
        num_ranks,
        num_microbatches,
        costs=options.all_costs(),
        cluster=options.cluster(num_ranks),
        memory_limit=options.memory[0] if len(options.memory) == 1 else options.memory or None,
        placement=where,
        search=Search(options.objective, options.effort, options.gap, options.seconds, options.exact, options.seed),
    )
    console = Console()
    _report(console, best)
    if options.out is not None:
        write_whole(options.out, schedule_to_json(best.schedule))
        say_written(console, options.out)
    write_timelines(console, {best.schedule.name: best.timeline}, options)
    return 0


def _report(console: Console, best: Optimized) -> None:
    unit = time_unit(best.value)
    if sum(map(len, best.schedule.ranks)) <= 400:
        print_grid(best.schedule, console)
    fastest = min(best.named, key=lambda name: best.named[name], default=None)
    proof = "no order is faster" if best.proven else f"gap {best.gap:.2%}"
    lines = {
        best.objective: f"{unit.text(best.value)}  (found by {best.source})",
        "lower bound": f"{unit.text(best.lower_bound)}  ({proof})",
        "bubble_fraction": f"{best.timeline.bubble_fraction:.6g}  (idle / total)",
    }
    if fastest is not None:
        lines["best named"] = f"{unit.text(best.named[fastest])}  ({fastest}; {len(best.named)} fit the memory)"
    else:
        lines["best named"] = "none fits the memory"
    for label, value in lines.items():
        console.print(f"{label:<16} {value}", highlight=False, soft_wrap=True, markup=False)


def _read_costs(path: Path) -> dict[str, object]:
    given = read_json(path)
    if not isinstance(given, dict):
        raise UserError(f'{path}: holds no object of costs; write e.g. {{"forward": [1, 2], "input_grad": [1, 2]}}')
    known = [field.name for field in fields(StageCosts)]
    for name in given:
        if name not in known:
            raise UserError(f'{path}: unknown cost "{name}".{nearest(name, known)} Known: {", ".join(known)}')
    return given
