"""The best plan is the best there is; what does not fit is told with bytes; published layouts come out as published."""

from dataclasses import replace
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.planner.machines import SMALL, costing, fleet
from tests.planner.test_description import GPT3_175B, LLAMA_405B

from penstock.cluster import Link
from penstock.errors import ScheduleError, UserError
from penstock.partition import LayerCosts
from penstock.planner import DeviceKind, Fleet, Hosts, Limits, Network, Planned, describe, load_fleet, plan_training
from penstock.planner.candidates import estimates
from penstock.planner.evaluation import evaluate
from penstock.planner.reasons import _largest_layer, layer_too_large
from penstock.planner.search import _first_cuts

CLUSTERS = Path(__file__).parents[2] / "examples" / "clusters"


def planned(machines: Fleet, *, batch: int = 16, keep: int = 5, **limits: object) -> Planned:
    return plan_training(SMALL, machines, global_batch=batch, sequence=128, limits=Limits(**limits), keep=keep)  # type: ignore[arg-type]


@pytest.mark.parametrize("memory", [1e9, 6e7])
def test_no_combination_is_faster_than_the_best_plan(memory: float) -> None:
    machines = fleet(hosts=2, devices=2, memory_bytes=memory)
    best = planned(machines, batch=8).plans[0]
    known = costing(machines, batch=8)
    for one in estimates(known, Limits()):
        try:
            tried = [evaluate(known, one.candidate, cuts, "as needed") for cuts in _first_cuts(known, one.candidate)]
        except ScheduleError:
            continue
        fitting = [plan.seconds for plan in tried if plan.lacking <= 0]
        assert min(fitting, default=best.forecast.step_seconds) >= best.forecast.step_seconds * (1 - 1e-9), (
            one.candidate
        )


@pytest.mark.parametrize("memory", [1e9, 6e7, 5e7])
def test_no_partition_of_any_combination_is_faster_than_the_best_plan(memory: float) -> None:
    """Symptom: 3.5 % slower at 6e7. Cause: what did not fit with even nor with balanced stages was left out, though it
    would with one layer moved."""
    machines = fleet(hosts=2, devices=1, memory_bytes=memory)
    best = planned(machines, batch=8).plans[0]
    known = costing(machines, batch=8)
    layers = len(known.work.names)
    looked_at = 0
    for one in estimates(known, Limits()):
        for cut in combinations(range(1, layers), one.candidate.num_stages - 1):
            try:
                found = evaluate(known, one.candidate, (0, *cut, layers), "as needed")
            except ScheduleError:
                break
            looked_at += 1
            if found.lacking <= 0:
                assert found.seconds >= best.forecast.step_seconds * (1 - 1e-9), (one.candidate, cut)
    assert looked_at > 300


def test_plans_are_ranked_fit_and_use_what_there_is() -> None:
    found = planned(fleet())
    steps = [plan.forecast.step_seconds for plan in found.plans]
    assert steps == sorted(steps)
    assert len({plan.name for plan in found.plans}) == len(found.plans) == 5
    for plan in found.plans:
        assert plan.devices <= 8
        assert plan.global_batch == 16
        assert sum(plan.partition) == 8
        assert all(map(float.__le__, plan.forecast.memory_bytes, plan.forecast.memory_limits))
        assert plan.forecast.tokens_per_second == pytest.approx(16 * 128 / plan.forecast.step_seconds)
        flops = describe(SMALL).step_flops(16, 128)
        assert plan.forecast.mfu == pytest.approx(flops / plan.forecast.step_seconds / (plan.devices * 1e12))
        plan.order()


def test_it_is_the_same_every_time() -> None:
    assert planned(fleet()) == planned(fleet())


def test_a_reason_accounts_for_the_whole_difference() -> None:
    first, second, *_ = planned(fleet()).plans
    gained = second.forecast.step_seconds - first.forecast.step_seconds
    share = gained / first.forecast.step_seconds
    assert first.reason.startswith(f"{gained:.3g} s ({share:.1%}) faster than {second.name}: ")
    parts = [second.forecast.seconds[name] - first.forecast.seconds[name] for name in first.forecast.seconds]
    assert sum(parts) == pytest.approx(gained)
    assert f"{max(parts):.3g} s less" in first.reason


def test_of_equal_steps_the_one_of_less_memory_stands_first() -> None:
    kept = {"tensor": (1,), "pipeline": (2,), "microbatch_sizes": (2,), "sharding": (0,)}
    first, second = planned(fleet(hosts=1, devices=2), schedules=("gpipe", "one_f_one_b"), **kept).plans
    assert first.forecast.step_seconds == pytest.approx(second.forecast.step_seconds, rel=1e-12)
    assert max(first.forecast.memory_bytes) < max(second.forecast.memory_bytes)
    assert first.reason.startswith(f"as fast as {second.name}, in ")


def test_limits_are_kept() -> None:
    found = planned(fleet(), tensor=(2,), pipeline=(2,), schedules=("gpipe",), sharding=(1,), microbatch_sizes=(2,))
    (plan,) = found.plans
    assert plan.name == "data 2 × tensor 2 × pipeline 2, gpipe, microbatch 2, ZeRO 1"
    assert planned(fleet(), recompute="always").plans[0].recompute == tuple(range(1, 7))


def test_faster_devices_get_more_layers() -> None:
    fast, slow = DeviceKind("fast", 1e9, 3e12), DeviceKind("slow", 1e9, 1e12)
    mixed = Fleet((fast, slow), (Hosts("fast", 1), Hosts("slow", 1)), (Network(Link(1e-6, 1e10)),))
    plan = planned(mixed, pipeline=(2,), schedules=("one_f_one_b",)).plans[0]
    assert plan.partition[0] > 2 * plan.partition[1]


def test_slow_links_between_hosts_are_crossed_by_pipelines_not_by_copies() -> None:
    hosts = (Hosts("gpu", 2, 2, Link(1e-6, 1e11)),)
    lan = Fleet((DeviceKind("gpu", 1e9, 1e12),), hosts, (Network(Link(1e-5, 5e7)),))
    best = planned(lan, batch=32, sharding=(0, 1)).plans[0]
    assert best.pipeline == 2
    assert best.outermost == "pipeline"


def test_what_lacks_memory_is_told_in_bytes() -> None:
    small, kept = fleet(memory_bytes=3e7), {"schedules": ("one_f_one_b",), "sharding": (0,), "tensor": (1,)}
    told = {one.pipeline: one.reason for one in planned(small, **kept).refused}
    assert "rank 0 takes" in told[1]
    assert "bytes, even with one_f_one_b, ZeRO 0 over 8 copies, microbatches of 1" in told[1]
    message = r"tensor 1 × pipeline 1 lacks least: rank 0 takes .* it lacks [0-9]+ bytes"
    with pytest.raises(UserError, match=message):
        planned(small, pipeline=(1,), **kept)


def test_a_layer_too_large_for_a_device_is_told_with_the_degree_that_fits() -> None:
    small = fleet(hosts=1, devices=4, memory_bytes=9e6)
    message = r"layer 0 alone is too large .* tensor degree 1: .* a device has 8.583 MiB; tensor degree 2 would fit"
    with pytest.raises(UserError, match=message):
        planned(small, tensor=(1,), sharding=(0,))
    mixed = load_fleet(CLUSTERS / "mixed.toml")
    vast = {**LLAMA_405B, "hidden_size": 131072, "intermediate_size": 8 * 53248}
    with pytest.raises(UserError, match=r"too large .* tensor degree 1: .*tensor degree (16|32|64) would fit"):
        plan_training(vast, mixed, global_batch=8, sequence=4096)
    assert layer_too_large(costing(small), [2, 4], 0) is None
    of_two = _largest_layer(costing(small), 2, 0)[1]
    told = layer_too_large(costing(fleet(hosts=1, devices=4, memory_bytes=of_two * 0.99)), [1], 0)
    assert told is not None
    assert told.endswith("tensor degree 4 would fit")
    assert layer_too_large(costing(fleet(hosts=1, devices=4)), [1], 0) is None


def test_models_come_as_dict_description_module_or_costs() -> None:
    module = SimpleNamespace(config=SimpleNamespace(to_dict=lambda: SMALL))
    limits = Limits(pipeline=(2,), schedules=("one_f_one_b",))
    machines = fleet(hosts=1, devices=2)
    given = [SMALL, describe(SMALL), module]
    first, *others = (plan_training(model, machines, global_batch=4, sequence=64, limits=limits) for model in given)
    assert all(first == other for other in others)
    costs = LayerCosts([1e-3] * 6 + [3e-3], [1e-3] * 6 + [3e-3], [1e-3] * 6 + [3e-3], parameter_bytes=[1e5] * 7)
    plan = plan_training(costs, machines, global_batch=8, sequence=64, limits=limits).plans[0]
    assert plan.partition == (5, 2)
    assert plan.forecast.mfu == 0
    with pytest.raises(UserError, match=r"model is a int; give the dict of a config.json"):
        plan_training(3, machines, global_batch=4, sequence=64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"global_batch": 0}, "global_batch=0; use a whole number of at least 1"),
        ({"sequence": 1.5}, "sequence=1.5; use a whole number"),
        ({"keep": True}, "keep=True"),
        ({"fleet": "cluster.toml"}, "fleet is 'cluster.toml'"),
    ],
)
def test_wrong_arguments_are_told(change: dict[str, object], message: str) -> None:
    arguments = {"model": SMALL, "fleet": fleet(), "global_batch": 8, "sequence": 64}
    with pytest.raises(UserError, match=message):
        plan_training(**{**arguments, **change})  # type: ignore[arg-type]


def test_wrong_limits_are_told() -> None:
    with pytest.raises(UserError, match=r'schedule "zb_w".* Did you mean'):
        Limits(schedules=("zb_w",))
    with pytest.raises(UserError, match="tensor=0; use whole numbers of at least 1"):
        Limits(tensor=(0,))
    with pytest.raises(UserError, match="ZeRO levels are 0, 1, 2 and 3"):
        Limits(sharding=(4,))
    with pytest.raises(UserError, match="tensor=3 does not divide the model; use a divisor of 4"):
        planned(fleet(), tensor=(3,))
    with pytest.raises(UserError, match=r"no combination of .* is defined"):
        planned(fleet(), pipeline=(9,))


def test_published_layouts_come_out_near_their_published_speed() -> None:
    # Llama 3 (2024), table 4: 405B on 8,192 H100, TP 8 × PP 16 × DP 64, 32 sequences a copy: 43 %; and on 16,384,
    # DP 128, 16 sequences: 41 %. The efficiency in h100.toml is fitted to the first; the second follows.
    h100 = load_fleet(CLUSTERS / "h100.toml")
    kept = {"tensor": (8,), "pipeline": (16,), "chunks": (8,), "schedules": ("interleaved_1f1b",), "sharding": (1,)}
    mfu = {}
    for hosts, batch in ((1024, 2048), (2048, 2048)):
        machines = Fleet(h100.kinds, (Hosts("h100", 8, hosts, h100.hosts[0].link),), h100.network)
        limits = Limits(**kept, microbatch_sizes=(1,))  # type: ignore[arg-type]
        (plan,) = plan_training(LLAMA_405B, machines, global_batch=batch, sequence=8192, limits=limits).plans
        spent = plan.forecast.step_seconds - plan.forecast.seconds["recompute"]  # those runs recomputed nothing
        mfu[hosts] = plan.forecast.mfu * plan.forecast.step_seconds / spent
    assert mfu[1024] == pytest.approx(0.43, abs=0.03)
    assert mfu[2048] == pytest.approx(0.41, abs=0.03)


@pytest.mark.parametrize(
    ("widths", "batch", "pipeline", "chunks", "size", "mfu"),
    [
        ((48, 6144, 64), 4, 1, 1, 4, 0.415),
        ((96, 12288, 96), 64, 8, 3, 1, 0.514),
        ((128, 25600, 160), 512, 64, 1, 1, 0.563),
    ],
    ids=["22B", "175B", "1T"],
)
def test_runs_without_fused_attention_come_out_near_their_published_speed(
    widths: tuple[int, int, int], batch: int, pipeline: int, chunks: int, size: int, mfu: float
) -> None:
    """Korthikanti et al. 2022, table 5; efficiency 0.75 is that of a100.toml."""
    model = describe(GPT3_175B | dict(zip(("n_layer", "n_embd", "n_head"), widths, strict=True)))
    a100 = load_fleet(CLUSTERS / "a100.toml")
    kind = replace(a100.kinds[0], memory_bytes=1e13)  # what the runs did to fit is not modelled
    machines = replace(a100, kinds=(kind,), hosts=(replace(a100.hosts[0], count=pipeline),))
    limits = Limits(
        tensor=(8,),
        pipeline=(pipeline,),
        chunks=(chunks,),
        schedules=("one_f_one_b" if chunks == 1 else "interleaved_1f1b",),
        microbatch_sizes=(size,),
        recompute="never",
    )
    written = replace(model, fused_attention=False)
    (plan,) = plan_training(written, machines, global_batch=batch, sequence=2048, limits=limits).plans
    assert plan.forecast.mfu == pytest.approx(mfu, rel=0.08)


def test_the_published_layout_of_gpt_3_is_within_a_tenth_of_the_best_found() -> None:
    # Narayanan et al. 2021, section 5.1: 8 tensor × 16 pipeline × 8 data.
    a100 = load_fleet(CLUSTERS / "a100.toml")
    kept = {"schedules": ("interleaved_1f1b", "one_f_one_b"), "microbatch_sizes": (1,), "sharding": (1,)}
    known = Limits(tensor=(8,), pipeline=(16,), chunks=(1, 2, 3), **kept)  # type: ignore[arg-type]
    free = Limits(tensor=(4, 8), pipeline=(8, 16), chunks=(1, 2, 3), **kept)  # type: ignore[arg-type]
    plans = [plan_training(GPT3_175B, a100, global_batch=1536, sequence=2048, limits=one) for one in (known, free)]
    published, best = (found.plans[0].forecast.step_seconds for found in plans)
    assert best <= published <= 1.1 * best
