"""`penstock train` on processes under a schedule that steps inside."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.train.runs import Run, held_out_losses, losses, options, same_bits, saved_tensors

from penstock.cli.main import main
from penstock.planner import Forecast, Plan, plan_to_json


@pytest.mark.slow
def test_pipedream_trains_tells_its_losses_and_leaves_its_steady_phase_behind(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    sizes = {"run__steps": 12, "evaluate__every": 4, "checkpoint__every": 4}
    run = Run(tmp_path, *options(data__paths=text, run__output=output, **sizes), "--pipeline.schedule", "pipedream")
    assert (run.finish(), run.err) == (0, "")
    assert "note: pipedream steps the weights inside, 4 times a batch: a loss is the mean of its batch's" in run.out
    assert "note: optimizer.clip_norm=1.0 bounds the gradient of each stage by itself\n" in run.out
    assert list(losses(output)) == list(range(1, 13))
    assert list(held_out_losses(output)) == [4, 8, 12]
    assert losses(output)[12] < 0.8 * losses(output)[1]
    assert "grad_norm" not in (output / "losses.jsonl").read_text()
    for row in ("0", "1", "all"):
        assert re.search(rf"^ +{row}( +[\d.]+ +[\d.]+%){{6}}", run.out, re.MULTILINE), row
    assert main(["trace", str(output)]) == 0
    table = capsys.readouterr().out
    assert re.match(r"pipedream, 2 ranks, \d+ microbatches\n", table)
    assert table.split("\n", 1)[1].strip() in run.out


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["pipedream_2bw", "pipemare"])
def test_a_plan_with_copies_runs_and_goes_on_as_if_never_interrupted(schedule: str, text: Path, tmp_path: Path) -> None:
    plan = Plan(
        data=2,
        tensor=1,
        pipeline=2,
        outermost="data",
        schedule=schedule,
        chunks=1,
        microbatches=4,
        microbatch_size=2,
        sequence=32,
        sharding=0,
        partition=(1, 3),
        recompute=(1,),
        forecast=Forecast(1.0, 512.0, 0.0, 0.0, (1.0, 1.0), (2.0, 2.0), {}),
    )
    (tmp_path / "plan.json").write_text(plan_to_json(plan))
    sizes = {"data__paths": text, "run__steps": 8, "checkpoint__every": 4, "evaluate__every": 0}
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    begin = whole / "checkpoints" / "step-00000004"
    for words in (
        options(**sizes, run__output=whole),
        options(**sizes, run__output=resumed, run__resume=begin),
    ):
        run = Run(tmp_path, *words, "--plan", str(tmp_path / "plan.json"))
        assert (run.finish(), run.err) == (0, "")
    assert losses(resumed) == {step: loss for step, loss in losses(whole).items() if step > 4}
    assert same_bits(saved_tensors(resumed, 8), saved_tensors(whole, 8))
