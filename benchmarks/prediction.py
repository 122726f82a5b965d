"""A step's time and peak memory, predicted from the profile of layers alone, beside the measured ones.

python benchmarks/prediction.py [--models tiny d256 llama linear] [--schedules gpipe one_f_one_b …] [--rounds 9]

Two processes, one core and one thread each, messages through shared memory. For each model, round after round, both
ranks profile its layers, host and messages (`penstock.profile`), a few schedules run some steps each, both ranks
profile again, the next few run, and so on.

Virtual cores change their speed: the same step takes 200 ms, and 290 ms a second later, and not all layers become
slower by the same factor. So each rank times a fixed computation, its *pace*, before and after every profile and every
step. A step counts where its two paces agree within `STEADY`; profiles count likewise. A step is predicted from the
profiles that were made at its paces, whenever that was, and their devices get the speed that they had at the step: by
the ratio of the paces, for the rest. No time of a run enters its prediction.

The ranks keep the memory that they free, as allocators of GPUs do: given back to the system and taken again, each page
of it would cost a fault, in which steps and profiles differ.

- `error`: the predicted step by the measured one, less 1; the median over the rounds.
- `compute transfer waiting host`: what the difference is made of (`penstock.profiler.causes`), in % of the step.
  `compute` is drift: the same layers took more or less than when they were profiled. `waiting` is what is left of the
  error when the program is simulated with the medians of its own ops, host and messages.
- `memory`: predicted peak by the measured one on the rank where they differ most, less 1. Measured: parameters, receive
  buffers, and every allocation of one step.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from runtime import free_port, join
from torch import distributed as dist
from torch import multiprocessing, nn

import penstock as ps
from penstock.errors import UserError
from penstock.ir.schedule import WeightRule
from penstock.profiler import Causes, causes
from penstock.profiler.measure import merged
from penstock.profiler.storage import most_held
from penstock.runtime import DistributedTransport
from penstock.schedules import named_schedule
from penstock.schedules.registry import SCHEDULES
from penstock.train.config import ModelConfig
from penstock.train.gpt import build_gpt, lm_loss
from penstock.train.launch import KEEPS_MEMORY

MICROBATCHES = 8
RETRIES = 4
"""Tries for a steady pace."""
WARM_UP = 2
"""Steps before those that count, after another schedule or a profile has run."""
BETWEEN_PROFILES = 4
"""Schedules that run between two profiles."""
STEPS = 3
"""Steps of a schedule that count, each time that it runs."""
STEADY = 0.1
"""Two paces that differ by less are one."""
FEWEST = 3
"""Profiles that predict a step, those of the nearest paces where fewer were made at its own."""


class Case(NamedTuple):
    """A model, its batch and its loss."""

    model: nn.Module
    inputs: torch.Tensor
    targets: torch.Tensor
    loss: Callable[[Any, Any], torch.Tensor]


def gpt(width: int, context: int) -> Case:
    """Returns the model of penstock train at this width."""
    tokens = torch.randint(0, 256, (2 * MICROBATCHES, context))
    model = build_gpt(ModelConfig(layers=4, width=width, heads=4, context=context), seed=0)
    return Case(model, tokens, tokens.roll(-1, 1), lm_loss)


def llama() -> Case:
    """Returns a small decoder of transformers."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "vocab_size": 512}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, use_cache=False))
    tokens = torch.randint(0, 512, (2 * MICROBATCHES, 96))
    return Case(model.train(), tokens, tokens.roll(-1, 1), lm_loss)


def linear() -> Case:
    """Returns linear layers of uneven widths."""
    widths = [256, 768, 512, 1024, 256, 896, 640, 256]
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    inputs = torch.randn(128 * MICROBATCHES, widths[0])
    return Case(nn.Sequential(*layers), inputs, torch.randn(len(inputs), widths[-1]), nn.functional.mse_loss)


CASES: dict[str, Callable[[], Case]] = {
    "tiny": lambda: gpt(64, 64),
    "d256": lambda: gpt(256, 128),
    "llama": llama,
    "linear": linear,
}


class Beside(NamedTuple):
    """A profile or a step with the paces of all ranks before and after it, in seconds.

    Attributes:
        what: the profile, or the step's seconds and its timeline.
        paces: `[rank]` of the fixed computation, the mean of before and after.
        steady: whether they agree on every rank.
    """

    what: Any
    paces: tuple[float, ...]
    steady: bool


class Pace:
    """A computation that is always the same, timed on every rank at once."""

    def __init__(self, transport: DistributedTransport) -> None:
        self._transport = transport
        self._layer = nn.TransformerEncoderLayer(128, 4, 384, dropout=0.0, batch_first=True)
        self._inputs = torch.randn(2, 96, 128)

    def seconds(self) -> tuple[float, ...]:
        """Returns what it takes now, by rank; every rank calls it."""
        taken = []
        for _ in range(7):
            begin = time.perf_counter()
            self._layer(self._inputs).sum().backward()
            taken.append(time.perf_counter() - begin)
        rows = self._transport.gather(torch.tensor([statistics.median(taken[1:])], dtype=torch.float64))
        return tuple(rows[:, 0].tolist())

    def beside(self, work: Callable[[], Any]) -> Beside:
        """Returns what `work` gives, with the paces around it."""
        before = self.seconds()
        what = work()
        after = self.seconds()
        middle = tuple((early + late) / 2 for early, late in zip(before, after, strict=True))
        return Beside(what, middle, steady=_apart(after, before) < STEADY)


def _apart(some: Sequence[float], others: Sequence[float]) -> float:
    """Returns by how much paces differ from others, as a share of these, on the rank where they differ most."""
    return max(abs(one / other - 1) for one, other in zip(some, others, strict=True))


class Line(NamedTuple):
    """One row of the matrix: a schedule's steps, and how far the predicted peak was off."""

    model: str
    schedule: str
    steps: list[Causes]
    memory: float

    def off(self, cause: str) -> float:
        """Returns how much of a step a cause is, or how far the prediction is off: the median over steps."""
        return statistics.median(getattr(each, cause) / each.measured for each in self.steps) - (cause == "predicted")


def synchronous(case: Case) -> list[str]:
    """Returns the names of schedules that flush and are defined for two ranks."""
    names = []
    for name in SCHEDULES:
        try:
            schedule = named_schedule(name, num_ranks=2, num_microbatches=MICROBATCHES)
        except UserError:
            continue
        if schedule.weight_rule is WeightRule.FLUSH:
            names.append(name)
    return names


def main(rank: int, port: int, options: argparse.Namespace) -> None:
    """Runs all models on one rank; rank 0 prints."""
    join(rank, port)
    lines = [line for name in options.models for line in _case(name, options)]
    if rank == 0:
        _summary(lines)
    dist.destroy_process_group()


def _case(name: str, options: argparse.Namespace) -> list[Line]:
    torch.manual_seed(0)
    case = CASES[name]()
    transport = DistributedTransport()
    samples = len(case.inputs) // MICROBATCHES
    one = (case.model, case.inputs[:samples], case.targets[:samples])
    names = [each for each in synchronous(case) if each in (options.schedules or SCHEDULES)]
    pipes = {
        each: ps.Pipeline(case.model, case.loss, transport=transport, schedule=each, num_microbatches=MICROBATCHES)
        for each in names
    }
    memory = {each: _warm_up(pipe, case) for each, pipe in pipes.items()}
    pace = Pace(transport)
    steps: dict[str, list[Beside]] = {each: [] for each in pipes}
    profiles: list[Beside] = []

    def profile() -> None:
        make = lambda: ps.profile(  # noqa: E731
            *one, loss_fn=case.loss, transport=transport, seconds=options.seconds, recompute=False
        )
        for _ in range(RETRIES):
            profiles.append(pace.beside(make))
            if profiles[-1].steady:
                return

    profile()
    for number in range(options.rounds):
        order = names[:: -1 if number % 2 else 1]
        for start in range(0, len(order), BETWEEN_PROFILES):
            for each in order[start : start + BETWEEN_PROFILES]:
                steps[each] += _steady_steps(pace, pipes[each], case)
            profile()
    lines = []
    for each, pipe in pipes.items():
        expected = _predicted(merged([found.what for found in profiles]), pipe)
        rows: list[float] = [0.0, 0.0]
        dist.all_gather_object(rows, memory[each])
        off = max((wanted / held - 1 for wanted, held in zip(expected.peak_bytes, rows, strict=True)), key=abs)
        if steps[each]:
            lines.append(Line(name, each, [_explained(step, profiles, pipe) for step in steps[each]], off))
            if dist.get_rank() == 0:
                _print(lines[-1])
        elif dist.get_rank() == 0:
            print(f"{name:8} {each:17} no step at a steady pace", flush=True)
    transport.close()
    return lines


def _steady_steps(pace: Pace, pipe: ps.Pipeline, case: Case) -> list[Beside]:
    """Returns the seconds and the timelines of steps at a steady pace, as many as several tries gave."""

    def step() -> tuple[float, ps.Timeline]:
        seconds = _step(pipe, case)
        (timeline,) = pipe.trace()
        return seconds, timeline

    for _ in range(WARM_UP):
        _step(pipe, case)  # caches and the allocator's memory are those of this schedule
    steps: list[Beside] = []
    for _ in range(RETRIES * STEPS):
        _step(pipe, case)
        found = pace.beside(step)
        if found.steady:
            steps.append(found)
            if len(steps) == STEPS:
                break
    return steps


def _explained(step: Beside, profiles: Sequence[Beside], pipe: ps.Pipeline) -> Causes:
    """Returns a step beside its prediction from the profiles at its paces."""

    near = sorted((profile for profile in profiles if profile.steady), key=lambda each: _apart(each.paces, step.paces))
    alike = sum(_apart(profile.paces, step.paces) < STEADY for profile in near)
    chosen = [_at_pace(profile, step.paces) for profile in near[: max(alike, FEWEST)]]
    seconds, timeline = step.what
    expected = _predicted(merged(chosen), pipe)
    return causes(expected, pipe.plan.proof.program, [timeline], step_seconds=[seconds])


def _at_pace(found: Beside, paces: Sequence[float]) -> ps.Profile:
    """Returns a profile whose devices have the speeds of other paces than those it was made at."""
    profile: ps.Profile = found.what
    ratios = [then / now for then, now in zip(found.paces, paces, strict=True)]
    return replace(profile, speeds=tuple(speed * ratio for speed, ratio in zip(profile.speeds, ratios, strict=True)))


def _predicted(profile: ps.Profile, pipe: ps.Pipeline) -> ps.Prediction:
    return ps.predict(profile, pipe.plan.proof.program, partition=pipe.plan.partition)


def _warm_up(pipe: ps.Pipeline, case: Case) -> float:
    """Returns the most bytes that this rank holds in a step."""
    for _ in range(2):
        _step(pipe, case)
    with most_held(torch.device("cpu")) as peak:
        pipe.step(case.inputs, case.targets)
    _clear(pipe)
    rings = sum(buffer.nbytes for buffer in pipe._links._rings.values())
    return peak() + rings + sum(parameter.nbytes for parameter in pipe.parameters())


def _step(pipe: ps.Pipeline, case: Case) -> float:
    begin = time.perf_counter()
    pipe.step(case.inputs, case.targets)
    taken = time.perf_counter() - begin
    _clear(pipe)
    return taken


def _clear(pipe: ps.Pipeline) -> None:
    for parameter in pipe.parameters():
        parameter.grad = None


_HEADING = "model    schedule          predicted   measured    error   compute transfer waiting    host   memory"


def _print(line: Line) -> None:
    predicted, measured = (
        statistics.median(getattr(each, which) for each in line.steps) for which in ("predicted", "measured")
    )
    parts = "".join(f"{line.off(cause):+8.1%}" for cause in ("compute", "transfer", "waiting", "host"))
    print(
        f"{line.model:8} {line.schedule:17} {predicted * 1e3:7.2f} ms {measured * 1e3:7.2f} ms "
        f"{line.off('predicted'):+8.1%}  {parts} {line.memory:+8.1%}",
        flush=True,
    )


def _summary(lines: Sequence[Line]) -> None:
    for what, errors in (
        ("step", [abs(line.off("predicted")) for line in lines]),
        ("step, by its own ops", [abs(line.off("waiting")) for line in lines]),
        ("memory", [abs(line.memory) for line in lines]),
    ):
        print(f"{what:22} median {statistics.median(errors):6.1%}   worst {max(errors):6.1%}   of {len(errors)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--schedules", nargs="+")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=0.5)
    chosen = parser.parse_args()
    print(
        f"penstock {ps.__version__}, torch {torch.__version__}, Python {sys.version.split()[0]}, "
        f"load {os.getloadavg()[0]:.1f}, {len(os.sched_getaffinity(0))} cores, m={MICROBATCHES}"
    )
    print(_HEADING, flush=True)
    os.environ.update(KEEPS_MEMORY)
    multiprocessing.spawn(main, (free_port(), chosen), nprocs=2)
