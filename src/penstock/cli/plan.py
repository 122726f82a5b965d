"""`penstock plan`: how to train a model on these devices, the fastest way first, and why."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console

from penstock.cli.options import OutputFile, parse, read_json
from penstock.cli.outputs import PictureOptions, say_written, write_timelines
from penstock.errors import UserError
from penstock.notation.whole_file import write_whole
from penstock.partition import LayerCosts
from penstock.planner import Limits, MeasuredLayers, Plan, Planned, load_fleet, plan_to_json, plan_training
from penstock.planner.reasons import why
from penstock.units import Unit, size_unit, time_unit
from penstock.view.plans import plan_table, plans_html

_REFUSED_SHOWN = 8


@dataclass(frozen=True)
class PlanOptions(PictureOptions):
    """Find how to train a model on a cluster: degrees, schedule, microbatches, ZeRO level, recomputation, partition.

    Every combination is estimated by closed forms, the most promising are timed op by op with their partition and
    memory, and the fastest that fit are listed, each with why it stands before the next.
    """

    model: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="MODEL", help_behavior_hint="")]
    """A model's config.json, a directory with one, or a profile of its layers."""
    cluster: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="CLUSTER", help_behavior_hint="")]
    """A TOML or JSON file of devices, hosts and network; docs/plan.md describes it."""
    global_batch: int
    """Sequences of a step."""
    sequence: int
    """Tokens of each."""
    tensor: tuple[int, ...] = ()
    """Tensor degrees to try; none: those that divide the model, up to the devices of a host."""
    pipeline: tuple[int, ...] = ()
    """Numbers of pipeline ranks to try; none: all that use the devices."""
    chunks: tuple[int, ...] = ()
    """Stages a rank to try; none: those that suit each schedule."""
    schedules: tuple[str, ...] = ()
    """Schedules to try; none: all that plans are made of."""
    microbatch_sizes: tuple[int, ...] = ()
    """Sequences a microbatch to try; none: powers of two."""
    sharding: tuple[int, ...] = (0, 1, 2, 3)
    """ZeRO levels to try."""
    recompute: Literal["as needed", "never", "always"] = "as needed"
    """Layers that run their forward again: the fewest that fit, none, or all."""
    overlap: bool = True
    """Copies exchange gradients and parameters while they compute; with --no-overlap they stand still for it."""
    keep: int = 10
    """How many plans are listed."""
    against: tuple[int, ...] = ()
    """Tensor and pipeline degree of a layout in use, e.g. 8 16: what it comes to, and what makes the difference."""
    out: OutputFile = None
    """Save the best plan there, as JSON; `penstock train --plan` takes it."""
    json: OutputFile = None
    """Save all that was found there, as JSON."""

    def limits(self) -> Limits:
        """Returns what plans may be made of.

        Raises:
            UserError: an unknown schedule, or numbers out of range.
        """
        return Limits(
            tensor=self.tensor or None,
            pipeline=self.pipeline or None,
            chunks=self.chunks or None,
            microbatch_sizes=self.microbatch_sizes or None,
            sharding=self.sharding,
            recompute=self.recompute,
            overlap=self.overlap,
            schedules=self.schedules or Limits.schedules,
        )


def run(argv: list[str]) -> int:
    """Plans as `argv` asks for; returns the exit code."""
    options = parse(PlanOptions, argv, command="plan")
    options.pictures(options.out, options.json)
    if len(options.against) not in (0, 2):
        raise UserError(
            f"--against {' '.join(map(str, options.against))}; give a tensor and a pipeline degree, e.g. 8 16"
        )
    model, fleet = _model(options.model), load_fleet(options.cluster)
    plans = partial(plan_training, model, fleet, global_batch=options.global_batch, sequence=options.sequence)
    found = plans(limits=options.limits(), keep=options.keep)
    console = Console()
    _report(console, found)
    if options.against:
        tensor, pipeline = options.against
        other = replace(options.limits(), tensor=(tensor,), pipeline=(pipeline,))
        _say(console, "against", _compared(found.plans[0], lambda: plans(limits=other, keep=1).plans[0]))
    if options.out is not None:
        write_whole(options.out, plan_to_json(found.plans[0]))
        say_written(console, options.out)
    if options.json is not None:
        write_whole(options.json, _as_json(found))
        say_written(console, options.json)
    if options.png or options.svg or options.html:
        timelines = {found.plans[0].name: found.timeline()}
        above = plans_html(found.plans, found.refused, found.notes)
        write_timelines(console, timelines, options, above=above)
    return 0


def _model(path: Path) -> object:
    from penstock.profiler.costs import layer_costs
    from penstock.profiler.files import is_profile, load_profile

    path = path / "config.json" if path.is_dir() else path
    if is_profile(path):
        profile = load_profile(path)
        return MeasuredLayers(layer_costs(profile), profile.microbatch_size, profile.sequence)
    given = read_json(path, remedy="; name a config.json or a profile")
    if not isinstance(given, dict):
        raise UserError(f"{path}: holds no object; name a config.json or a profile")
    if isinstance(given.get("forward"), list):
        try:
            return LayerCosts(**given)
        except TypeError as error:
            raise UserError(f"{path}: {error}; a profile has the fields of LayerCosts") from None
    return given


def _compared(best: Plan, other: Callable[[], Plan]) -> str:
    """Returns what a layout lacks beside the best plan."""
    try:
        return why(best, (other(),))
    except UserError as error:
        return str(error)


def _say(console: Console, label: str, value: str) -> None:
    console.print(f"{label:<10} {value}", highlight=False, soft_wrap=True, markup=False)


def _report(console: Console, found: Planned) -> None:
    best = found.plans[0]
    step, memory = time_unit(best.forecast.step_seconds), size_unit(max(best.forecast.memory_bytes))
    spent = {
        part: seconds for part, seconds in best.forecast.seconds.items() if seconds > 1e-6 * best.forecast.step_seconds
    }
    console.print(plan_table(found.plans))
    lines = {
        "best": best.name,
        "why": best.reason,
        "speed": f"{best.forecast.tokens_per_second:,.0f} tokens/s on {best.devices} devices",
        "step": ", ".join(f"{part} {step.text(seconds)}" for part, seconds in spent.items()),
        "partition": _in_runs(list(map(str, best.partition))),
        "memory": _memory(best, memory),
        "search": f"{found.considered} combinations estimated, {found.timed} timed",
    }
    for label, value in lines.items():
        _say(console, label, value)
    for note in found.notes:
        _say(console, "note", note)
    for one in found.refused[:_REFUSED_SHOWN]:
        _say(console, "no room", f"tensor {one.tensor} × pipeline {one.pipeline}: {one.reason}")
    if len(found.refused) > _REFUSED_SHOWN:
        console.print(f"{'':<10} and {len(found.refused) - _REFUSED_SHOWN} more; --json has all", highlight=False)


def _memory(plan: Plan, unit: Unit) -> str:
    """Returns what each rank holds of what it has, the latter once where all have as much."""
    told = plan.forecast
    held, limits = ([unit.number(each) for each in row] for row in (told.memory_bytes, told.memory_limits))
    if len(set(limits)) == 1:
        return f"{_in_runs(held)} of {limits[0]} {unit.name}"
    return f"{_in_runs([f'{mine} of {most}' for mine, most in zip(held, limits, strict=True)])} {unit.name}"


def _in_runs(words: list[str]) -> str:
    """Returns the words, repeated ones once with their number."""
    runs = ((word, sum(1 for _ in run)) for word, run in groupby(words))
    return ", ".join(word if count == 1 else f"{word} ×{count}" for word, count in runs)


def _as_json(found: Planned) -> str:
    tree = {
        "format": "penstock.plans",
        "version": 1,
        "plans": [asdict(plan) for plan in found.plans],
        "refused": [asdict(one) for one in found.refused],
        "notes": found.notes,
        "considered": found.considered,
        "timed": found.timed,
    }
    return json.dumps(tree, indent=1, ensure_ascii=False) + "\n"
