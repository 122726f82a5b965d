"""A plan comes back from its file as it was, and a damaged file is refused with the place."""

import json
from pathlib import Path

import pytest

from penstock.errors import NotationError, UserError
from penstock.notation import schedule_from_json
from penstock.planner import Forecast, Plan, load_plan, plan_from_json, plan_to_json
from penstock.schedules import named_schedule

FORECAST = Forecast(1.5, 1000.0, 0.4, 0.1, (1e9, 2e9), (8e9, 8e9), {"multiplication": 1.5})
PLAN = Plan(
    data=2,
    tensor=1,
    pipeline=2,
    outermost="data",
    schedule="interleaved_1f1b",
    chunks=2,
    microbatches=4,
    microbatch_size=3,
    sequence=128,
    sharding=1,
    partition=(2, 2, 1, 3),
    recompute=(1, 4),
    forecast=FORECAST,
    reason="because × it is faster",
)


def test_a_plan_comes_back_as_it_was(tmp_path: Path) -> None:
    assert plan_from_json(plan_to_json(PLAN)) == PLAN
    assert hash(plan_from_json(plan_to_json(PLAN))) == hash(PLAN)
    (tmp_path / "plan.json").write_text(plan_to_json(PLAN), encoding="utf-8")
    assert load_plan(tmp_path / "plan.json") == PLAN


def test_what_follows_from_a_plan() -> None:
    assert PLAN.devices == 4
    assert PLAN.global_batch == 24
    assert PLAN.name == "data 2 × tensor 1 × pipeline 2, interleaved_1f1b v=2, microbatch 3, ZeRO 1"
    assert PLAN.stages().boundaries == (0, 2, 4, 5, 8)
    order = PLAN.order()
    assert order == named_schedule("interleaved_1f1b", num_ranks=2, num_microbatches=4, num_chunks=2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"partition": [2, 2]}, r"partition=\[2, 2\] for 2 ranks of 2 stages; give 4 numbers of layers"),
        ({"partition": [2, 2, 0, 3]}, "each at least 1"),
        ({"recompute": [8]}, "recompute names layer 8 of 8; they are counted from 0"),
        ({"data": 0}, "data=0; use at least 1"),
        ({"tensor": "two"}, r"tensor"),
        ({"outermost": "tensor"}, r"outermost"),
    ],
)
def test_a_damaged_plan_is_told(change: dict[str, object], message: str) -> None:
    tree = json.loads(plan_to_json(PLAN))
    tree["plan"] |= change
    with pytest.raises(NotationError, match=f"not a plan file: .*{message}"):
        plan_from_json(json.dumps(tree))


def test_other_files_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(NotationError, match="version 7; this penstock reads version 1"):
        plan_from_json(plan_to_json(PLAN).replace('"version":1', '"version":7'))
    with pytest.raises(NotationError, match=r"penstock.plan.*penstock train --plan takes"):
        schedule_from_json(plan_to_json(PLAN))
    with pytest.raises(NotationError, match="damaged or no JSON"):
        plan_from_json(plan_to_json(PLAN)[:-9])
    (tmp_path / "torn.json").write_text("{")
    with pytest.raises(UserError, match=r"torn.json: not a plan"):
        load_plan(tmp_path / "torn.json")
