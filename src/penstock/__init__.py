"""Pipeline-parallel training for PyTorch in which the schedule is data.

    schedule = ps.one_f_one_b(num_ranks=4, num_microbatches=8)
    ps.verify(schedule)
    timeline = ps.simulate(schedule, ps.StageCosts(forward=1, input_grad=1, weight_grad=1))

Names are loaded on first use, so that `import penstock` costs nothing and the core needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from penstock._version import __version__

if TYPE_CHECKING:
    from penstock.cluster import Cluster, Device, Link
    from penstock.costs import StageCosts
    from penstock.errors import PenstockError, UserError
    from penstock.ir import Op, OpKind, Placement, Program, Schedule, WeightRule
    from penstock.lowering import lower
    from penstock.models import LayerSpec, from_module
    from penstock.notation import (
        load_schedule,
        parse_grid,
        program_from_json,
        program_to_json,
        schedule_from_json,
        schedule_to_json,
    )
    from penstock.optimize import Optimized, Search, optimize_schedule
    from penstock.partition import Balanced, LayerCosts, Partition, best_partition
    from penstock.planner import (
        Fleet,
        Plan,
        Planned,
        load_fleet,
        load_plan,
        plan_from_json,
        plan_to_json,
        plan_training,
    )
    from penstock.profiler import Prediction, Profile, load_profile, predict, profile, save_profile
    from penstock.runtime import (
        LoopbackTransport,
        LossScaler,
        Pipeline,
        Recompute,
        Transport,
        clip_by_stage,
        nesterov_look_ahead,
        pipemare_delays,
        pipemare_learning_rate,
        run_ranks,
    )
    from penstock.schedules import (
        bpipe,
        breadth_first,
        chimera,
        dualpipe,
        dualpipe_v,
        eager_1f1b,
        gis,
        gpipe,
        interleaved_1f1b,
        naive,
        named_schedule,
        one_f_one_b,
        pipedream,
        pipedream_2bw,
        pipemare,
        unbroken,
        v_half,
        v_min,
        v_zb,
        wave,
        zb_auto,
        zb_h1,
        zb_h2,
        zb_v,
        zb_v_greedy,
    )
    from penstock.simulator import simulate
    from penstock.timeline import Timeline
    from penstock.verifier import Proof, verify

_HOMES = {
    "cluster": ("Cluster", "Device", "Link"),
    "costs": ("StageCosts",),
    "errors": ("PenstockError", "UserError"),
    "ir": ("Op", "OpKind", "Placement", "Program", "Schedule", "WeightRule"),
    "lowering": ("lower",),
    "models": ("LayerSpec", "from_module"),
    "notation": (
        "load_schedule",
        "parse_grid",
        "program_from_json",
        "program_to_json",
        "schedule_from_json",
        "schedule_to_json",
    ),
    "optimize": ("Optimized", "Search", "optimize_schedule"),
    "partition": ("Balanced", "LayerCosts", "Partition", "best_partition"),
    "planner": (
        "Fleet",
        "Plan",
        "Planned",
        "load_fleet",
        "load_plan",
        "plan_from_json",
        "plan_to_json",
        "plan_training",
    ),
    "profiler": ("Prediction", "Profile", "load_profile", "predict", "profile", "save_profile"),
    "runtime": (
        "LoopbackTransport",
        "LossScaler",
        "Pipeline",
        "Recompute",
        "Transport",
        "clip_by_stage",
        "nesterov_look_ahead",
        "pipemare_delays",
        "pipemare_learning_rate",
        "run_ranks",
    ),
    "schedules": (
        "bpipe",
        "breadth_first",
        "chimera",
        "dualpipe",
        "dualpipe_v",
        "eager_1f1b",
        "gis",
        "gpipe",
        "interleaved_1f1b",
        "naive",
        "named_schedule",
        "offloaded",
        "one_f_one_b",
        "pipedream",
        "pipedream_2bw",
        "pipemare",
        "unbroken",
        "v_half",
        "v_min",
        "v_zb",
        "wave",
        "zb_auto",
        "zb_h1",
        "zb_h2",
        "zb_v",
        "zb_v_greedy",
    ),
    "simulator": ("simulate",),
    "timeline": ("Timeline",),
    "verifier": ("Proof", "verify"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Balanced",
    "Cluster",
    "Device",
    "Fleet",
    "LayerCosts",
    "LayerSpec",
    "Link",
    "LoopbackTransport",
    "LossScaler",
    "Op",
    "OpKind",
    "Optimized",
    "Partition",
    "PenstockError",
    "Pipeline",
    "Placement",
    "Plan",
    "Planned",
    "Prediction",
    "Profile",
    "Program",
    "Proof",
    "Recompute",
    "Schedule",
    "Search",
    "StageCosts",
    "Timeline",
    "Transport",
    "UserError",
    "WeightRule",
    "__version__",
    "best_partition",
    "bpipe",
    "breadth_first",
    "chimera",
    "clip_by_stage",
    "dualpipe",
    "dualpipe_v",
    "eager_1f1b",
    "from_module",
    "gis",
    "gpipe",
    "interleaved_1f1b",
    "load_fleet",
    "load_plan",
    "load_profile",
    "load_schedule",
    "lower",
    "naive",
    "named_schedule",
    "nesterov_look_ahead",
    "offloaded",
    "one_f_one_b",
    "optimize_schedule",
    "parse_grid",
    "pipedream",
    "pipedream_2bw",
    "pipemare",
    "pipemare_delays",
    "pipemare_learning_rate",
    "plan_from_json",
    "plan_to_json",
    "plan_training",
    "predict",
    "profile",
    "program_from_json",
    "program_to_json",
    "run_ranks",
    "save_profile",
    "schedule_from_json",
    "schedule_to_json",
    "simulate",
    "unbroken",
    "v_half",
    "v_min",
    "v_zb",
    "verify",
    "wave",
    "zb_auto",
    "zb_h1",
    "zb_h2",
    "zb_v",
    "zb_v_greedy",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'penstock' has no attribute '{name}'")
    return getattr(import_module(f"penstock.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
