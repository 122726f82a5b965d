"""A plan becomes a configuration that trains as planned; what this command cannot run is refused."""

from dataclasses import replace
from pathlib import Path

import pytest

from penstock.errors import ConfigError, NotationError
from penstock.planner import Forecast, Plan, plan_to_json
from penstock.schedules import named_schedule
from penstock.train.config import Config, PipelineConfig
from penstock.train.config_file import resolve
from penstock.train.planned import recompute_of, schedule_of, with_ends, with_plan
from penstock.train.preflight import check_layout

PLAN = Plan(
    data=1,
    tensor=1,
    pipeline=2,
    outermost="pipeline",
    schedule="interleaved_1f1b",
    chunks=3,
    microbatches=4,
    microbatch_size=2,
    sequence=64,
    sharding=0,
    partition=(1, 1, 1, 1, 1, 1),
    recompute=(1, 4),
    forecast=Forecast(1.0, 512.0, 0.0, 0.0, (1.0, 1.0), (2.0, 2.0), {}),
)


@pytest.fixture
def plan_file(tmp_path: Path) -> str:
    path = tmp_path / "plan.json"
    path.write_text(plan_to_json(PLAN))
    return str(path)


def test_the_command_line_takes_a_plan_and_goes_over_it(plan_file: str) -> None:
    config = resolve(["--plan", plan_file, "--run.steps", "3"])
    assert config.pipeline == PipelineConfig(2, "interleaved_1f1b", 4, (1,) * 6, 3, (1, 4))
    assert config.run.batch_size == 8
    assert config.run.steps == 3
    assert resolve(["--plan", plan_file, "--pipeline.microbatches", "8"]).pipeline.microbatches == 8
    check_layout(config)


def test_a_plan_goes_over_a_file(plan_file: str, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("[pipeline]\nranks = 5\n\n[run]\nseed = 7\n")
    config = resolve([str(tmp_path / "config.toml"), "--plan", plan_file])
    assert config.pipeline.ranks == 2
    assert config.run.seed == 7


def test_the_schedule_has_the_chunks_planned(plan_file: str) -> None:
    layout = resolve(["--plan", plan_file]).pipeline
    assert schedule_of(layout) == PLAN.order()
    assert schedule_of(layout) == named_schedule("interleaved_1f1b", num_ranks=2, num_microbatches=4, num_chunks=3)
    assert schedule_of(PipelineConfig()) == "one_f_one_b"


def test_layers_to_run_again_are_named(plan_file: str) -> None:
    assert recompute_of(resolve(["--plan", plan_file])) == ["block_0", "block_3"]
    assert recompute_of(Config()) is None


def test_a_plan_is_laid_onto_a_model_with_more_at_its_ends() -> None:
    names = ["wte", "wpe", "h.0", "h.1", "h.2", "h.3", "norm", "head"]
    layout = with_ends(with_plan(Config(), PLAN), names).pipeline
    assert layout.partition == (2, 1, 1, 1, 1, 2)
    assert layout.recompute == (2, 5)
    with pytest.raises(ConfigError, match=r"a model of 4 blocks, and model.hf has 2; plan for this one"):
        with_ends(with_plan(Config(), PLAN), ["wte", "h.0", "h.1", "head"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tensor": 2}, "the plan has tensor=2; .* penstock plan and --tensor 1"),
        ({"data": 3, "sharding": 1}, r"the plan has sharding=1 \(ZeRO 1\); .* penstock plan and --sharding 0"),
    ],
)
def test_degrees_that_do_not_run_are_refused(change: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        with_plan(Config(), replace(PLAN, **change))  # type: ignore[arg-type]


def test_mistakes_are_told(plan_file: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--plan names no file"):
        resolve(["--plan"])
    with pytest.raises(NotationError, match=r"cannot read .*none.json"):
        resolve(["--plan", str(tmp_path / "none.json")])
    with pytest.raises(ConfigError, match="does not lay out the model's 10 layers"):
        resolve(["--plan", plan_file, "--model.layers", "8"])
    with pytest.raises(ConfigError, match=r"pipeline.recompute names layer 9 of 6; use numbers from 0"):
        resolve(["--pipeline.recompute", "9"])
