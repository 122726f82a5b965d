"""How long plans take to find, and how the cost model compares with published runs.

python benchmarks/plan.py [--published]

Seconds are of the search and the winner's timeline, in a process that has imported everything: wall clock, and of the
process's own CPU, which a busy machine lengthens less.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from penstock.planner import Fleet, Limits, Planned, describe, load_fleet, plan_training

CLUSTERS = Path(__file__).parents[1] / "examples" / "clusters"


def llama(layers: int, hidden: int, heads: int, inner: int) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "intermediate_size": inner,
        "vocab_size": 128256,
    }


def gpt(layers: int, hidden: int, heads: int) -> dict[str, Any]:
    sizes = {"n_layer": layers, "n_embd": hidden, "n_head": heads}
    return {"model_type": "gpt2", **sizes, "vocab_size": 51200, "n_positions": 2048}


def hosts(name: str, devices: int) -> Fleet:
    """Returns the example cluster `name` with so many devices."""
    fleet = load_fleet(CLUSTERS / f"{name}.toml")
    return replace(fleet, hosts=(replace(fleet.hosts[0], count=devices // 8),))


class Run(NamedTuple):
    """A published run: model, cluster, sequences and tokens, degrees, chunks, microbatch, fused attention, and MFU."""

    name: str
    model: dict[str, Any]
    cluster: str
    batch: int
    sequence: int
    degrees: tuple[int, int, int]
    chunks: int
    size: int
    recompute: bool
    fused: bool
    mfu: float


PUBLISHED = [
    Run("Korthikanti 2022, 22B", gpt(48, 6144, 64), "a100", 4, 2048, (1, 8, 1), 1, 4, False, False, 0.415),
    Run("Korthikanti 2022, 175B", gpt(96, 12288, 96), "a100", 64, 2048, (1, 8, 8), 3, 1, False, False, 0.514),
    Run("Korthikanti 2022, 530B", gpt(105, 20480, 128), "a100", 280, 2048, (1, 8, 35), 3, 1, False, False, 0.560),
    Run("Korthikanti 2022, 1T", gpt(128, 25600, 160), "a100", 512, 2048, (1, 8, 64), 1, 1, False, False, 0.563),
    # 140 TFLOP/s of 312, every fourth of which runs a forward again.
    Run(
        "Narayanan 2021, 175B", gpt(96, 12288, 96), "a100", 1536, 2048, (8, 8, 16), 3, 1, True, False, 140 / 312 * 3 / 4
    ),
    Run("Llama 3, 405B", llama(126, 16384, 128, 53248), "h100", 2048, 8192, (64, 8, 16), 8, 1, False, True, 0.43),
    Run("Llama 3, 405B", llama(126, 16384, 128, 53248), "h100", 2048, 8192, (128, 8, 16), 8, 1, False, True, 0.41),
]


def compare() -> None:
    print(f"{'':<24} {'devices':>8} {'d×t×p':>9} {'published':>9} {'here':>6} {'ratio':>6}")
    for run in PUBLISHED:
        data, tensor, pipeline = run.degrees
        kind, *_ = hosts(run.cluster, 8).kinds
        # What the runs did to fit is not modelled; memory is left out here.
        fleet = replace(hosts(run.cluster, data * tensor * pipeline), kinds=(replace(kind, memory_bytes=1e13),))
        limits = Limits(
            tensor=(tensor,),
            pipeline=(pipeline,),
            chunks=(run.chunks,),
            schedules=("one_f_one_b" if run.chunks == 1 else "interleaved_1f1b",),
            microbatch_sizes=(run.size,),
            sharding=(1,) if data > 1 else (0,),
            recompute="always" if run.recompute else "never",
        )
        model = replace(describe(run.model), fused_attention=run.fused)
        found = plan_training(model, fleet, global_batch=run.batch, sequence=run.sequence, limits=limits)
        mfu = found.plans[0].forecast.mfu
        devices, degrees = data * tensor * pipeline, f"{data}×{tensor}×{pipeline}"
        print(f"{run.name:<24} {devices:>8} {degrees:>9} {run.mfu:>9.1%} {mfu:>6.1%} {mfu / run.mfu:>6.2f}")


SEARCHES: list[tuple[str, dict[str, Any], Fleet, int, int]] = [
    ("Llama 3 405B on 1,024", llama(126, 16384, 128, 53248), hosts("h100", 1024), 256, 8192),
    ("Llama 3 405B on 16,384", llama(126, 16384, 128, 53248), hosts("h100", 16384), 2048, 8192),
    ("GPT-3 175B on 1,024", gpt(96, 12288, 96), hosts("a100", 1024), 1536, 2048),
    ("Llama 3 8B on four mixed hosts", llama(32, 4096, 32, 14336), load_fleet(CLUSTERS / "mixed.toml"), 64, 4096),
]


def search() -> None:
    print(f"{'':<32} {'wall s':>7} {'CPU s':>7} {'tried':>7} {'timed':>6} {'step s':>7} {'MFU':>6}  best")
    for name, model, fleet, batch, sequence in SEARCHES:
        begin, spent = time.perf_counter(), time.process_time()
        found: Planned = plan_training(model, fleet, global_batch=batch, sequence=sequence)
        found.timeline()
        wall, cpu = time.perf_counter() - begin, time.process_time() - spent
        best = found.plans[0]
        print(
            f"{name:<32} {wall:>7.1f} {cpu:>7.1f} {found.considered:>7} {found.timed:>6} "
            f"{best.forecast.step_seconds:>7.2f} {best.forecast.mfu:>6.1%}  {best.name}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--published", action="store_true", help="only the comparison with published runs")
    options = parser.parse_args()
    compare()
    if not options.published:
        print()
        search()


if __name__ == "__main__":
    main()
