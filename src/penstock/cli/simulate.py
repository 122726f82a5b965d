"""`penstock simulate`: how long a schedule takes, and how large its bubble is."""

from __future__ import annotations

from dataclasses import dataclass, replace

from rich.console import Console

from penstock.cli.costs import CostOptions
from penstock.cli.options import Chunks, InputFile, Microbatches, OutputFile, Ranks, Subject, parse, read_schedule
from penstock.cli.outputs import PictureOptions, say_written, write_timelines
from penstock.lowering import lower
from penstock.notation.timelines import PLANNED, Recording, save_recording
from penstock.profiler.files import load_profile
from penstock.profiler.prediction import Prediction, predict
from penstock.simulator import simulate
from penstock.timeline import Timeline
from penstock.units import size_unit, time_unit
from penstock.verifier import verify
from penstock.view.tables import rank_table


@dataclass(frozen=True)
class Simulate(CostOptions, PictureOptions):
    """Simulate a schedule on stages that all cost the same; times are seconds a microbatch and stage."""

    schedule: Subject
    """A schedule's name, "auto" for the best found by search, or a file with one (JSON or text grid)."""
    ranks: Ranks = None
    """Number of ranks p, for a schedule given by name."""
    microbatches: Microbatches = None
    """Number of microbatches m, for a schedule given by name."""
    num_chunks: Chunks = None
    """Number of stages a rank v, for a schedule given by name."""
    profile: InputFile = None
    """A profile of a model, in place of costs: its layers in equal numbers on the stages, its host and its links."""
    gathered: int | None = None
    """Data-parallel replicas share parameters, and a rank holds those of so many stages at once."""
    unshard: float = 0.0
    """Seconds of gathering a stage's parameters, with --gathered."""
    perfetto: OutputFile = None
    """Write a trace for ui.perfetto.dev there."""
    json: OutputFile = None
    """Write the timeline there, as `penstock trace` reads it."""


def run(argv: list[str]) -> int:
    """Simulates the schedule that `argv` names; returns the exit code."""
    options = parse(Simulate, argv, command="simulate")
    options.pictures(options.json, options.perfetto)
    schedule = read_schedule(
        options.schedule,
        num_ranks=options.ranks,
        num_microbatches=options.microbatches,
        num_chunks=options.num_chunks,
        given=options.given,
    )
    program = verify(lower(schedule, gathered=options.gathered)).program
    console = Console()
    if options.profile is not None:
        expected = predict(load_profile(options.profile), program)
        timeline = expected.timeline
        _report(console, schedule.name, timeline)
        _report_prediction(console, expected)
    else:
        costs = replace(options.costs(), unshard=options.unshard)
        timeline = simulate(program, costs, options.cluster(schedule.num_ranks))
        _report(console, schedule.name, timeline)
    if options.json is not None:
        save_recording(Recording(schedule, {PLANNED: timeline}), options.json)
        say_written(console, options.json)
    write_timelines(console, {schedule.name: timeline}, options, perfetto=options.perfetto)
    return 0


def _report_prediction(console: Console, expected: Prediction) -> None:
    unit, size = time_unit(expected.seconds), size_unit(max(expected.peak_bytes))
    lines = {
        "step": f"{unit.text(expected.seconds)}  (from call to return)",
        "peak memory": f"{', '.join(map(size.number, expected.peak_bytes))} {size.name}  (by rank, without optimizer)",
    }
    for label, value in lines.items():
        console.print(f"{label:<16} {value}", highlight=False, soft_wrap=True)


def _report(console: Console, name: str, timeline: Timeline) -> None:
    unit = time_unit(timeline.makespan)
    lines = {
        "schedule": name,
        "bubble_fraction": f"{timeline.bubble_fraction:.6g}  (idle / total)",
        "bubble_ratio": f"{timeline.bubble_ratio:.6g}  (idle / ideal)",
        "makespan": f"{unit.text(timeline.makespan)}  (from 0 to the end of the last op)",
        "per-rank span": f"{unit.text(timeline.per_rank_span)}  (first start to last end, longest rank)",
    }
    for label, value in lines.items():
        console.print(f"{label:<16} {value}", highlight=False, soft_wrap=True)
    console.print(rank_table(timeline))
