"""The JSON file of a schedule: round trip, and every damage told with its place."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.random_schedules import any_schedules, paired_schedules, valid_schedules
from tests.strategies import schedule_or_reject

from penstock import (
    Schedule,
    WeightRule,
    bpipe,
    gpipe,
    load_schedule,
    one_f_one_b,
    parse_grid,
    schedule_from_json,
    schedule_to_json,
    verify,
)
from penstock.errors import NotationError, VerificationError
from penstock.notation import files
from penstock.schedules import SCHEDULES, named_schedule


@given(name=st.sampled_from(sorted(SCHEDULES)), num_ranks=st.integers(1, 12), num_microbatches=st.integers(1, 12))
def test_every_registered_schedule_is_read_back_as_written(name: str, num_ranks: int, num_microbatches: int) -> None:
    schedule = schedule_or_reject(name, num_ranks, num_microbatches)
    assert schedule_from_json(schedule_to_json(schedule)) == schedule


@given(
    schedule=st.one_of(valid_schedules(max_microbatches=12), any_schedules()),
    rule=st.sampled_from(WeightRule),
    name=st.sampled_from(["gpipe", "zwölf ½", "two words", 'quo"ted']),
)
def test_any_schedule_is_read_back_as_written(schedule: Schedule, rule: WeightRule, name: str) -> None:
    named = Schedule(name, schedule.placement, schedule.num_microbatches, schedule.ranks, rule)
    assert schedule_from_json(schedule_to_json(named)) == named
    assert schedule_from_json(schedule_to_json(named).encode()) == named


def test_optimizer_steps_survive() -> None:
    schedule = parse_grid("""
        async p=2 m=1 weights=stash placement=0,1
        rank 0: F0 .  .  B0 S0
        rank 1: .  F0 B0 S0
    """)
    assert schedule_from_json(schedule_to_json(schedule)) == schedule


@given(schedule=paired_schedules())
@settings(max_examples=50)
def test_pairs_survive(schedule: Schedule) -> None:
    assert schedule_from_json(schedule_to_json(schedule)) == schedule


def test_offloads_and_keepers_survive() -> None:
    assert schedule_from_json(schedule_to_json(bpipe(5, 8))) == bpipe(5, 8)


def test_pairs_and_keepers_are_written_where_there_are_some() -> None:
    assert not {"overlapped", "keepers"} & json.loads(schedule_to_json(gpipe(2, 1))).keys()
    paired = replace(one_f_one_b(2, 3), overlapped=((1, 3), ()))
    assert json.loads(schedule_to_json(paired))["overlapped"] == [[1, 3], []]
    assert json.loads(schedule_to_json(bpipe(4, 5)))["keepers"] == [3, 2, 1, 0]


def test_the_file_in_the_docstring_is_what_is_written() -> None:
    lines = (files.__doc__ or "").splitlines()
    shown = json.loads("".join(line for line in lines if line.startswith("    ")))
    assert shown == json.loads(schedule_to_json(gpipe(2, 1)))


def test_a_schedule_is_loaded_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "schedule.json"
    path.write_text(schedule_to_json(one_f_one_b(3, 4)))
    assert load_schedule(path) == load_schedule(str(path)) == one_f_one_b(3, 4)


WHOLE = json.loads(schedule_to_json(gpipe(2, 1)))


def changed(**fields: Any) -> str:
    return json.dumps(WHOLE | fields)


def without(field: str) -> str:
    return json.dumps({key: value for key, value in WHOLE.items() if key != field})


WRONG: dict[str, tuple[str | bytes, str]] = {
    "nothing": ("", "Input data was truncated"),
    "half a file": (schedule_to_json(gpipe(2, 1))[:60], "truncated"),
    "no JSON": ("penstock", "JSON is malformed"),
    "a list": ("[]", "Expected `object`, got `array`"),
    "another format": (
        changed(format="torch.schedule"),
        'the file says format "torch.schedule"; a schedule says "penstock.schedule"',
    ),
    "no format": (without("format"), "missing required field `format`"),
    "a newer version": (changed(version=2), "the file has version 2; this penstock reads version 1; write it again"),
    "a version in words": (changed(version="one"), "Expected `int`, got `str` - at `$.version`"),
    "an unknown field": (changed(colour="red"), "Object contains unknown field `colour`"),
    "a missing field": (without("ranks"), "missing required field `ranks`"),
    "an unknown weight rule": (changed(weight_rule="none"), "Invalid enum value 'none' - at `$.weight_rule`"),
    "a rank in words": (changed(placement=[[0, "1"]]), "Expected `int`, got `str` - at `$.placement["),
    "a gap in the placement": (changed(placement=[[0, 2]]), "placement uses ranks [0, 2]"),
    "a placement without stages": (changed(placement=[]), "placement is empty"),
    "no microbatches": (changed(num_microbatches=0), "num_microbatches=0; use at least 1"),
    "half a microbatch": (changed(num_microbatches=1.5), "Expected `int`, got `float` - at `$.num_microbatches`"),
    "a rank too few": (changed(ranks=[["0F0"]]), "gpipe has ops for 1 ranks but places stages on 2"),
    "a rank too many": (changed(ranks=[[], [], []]), "gpipe has ops for 3 ranks but places stages on 2"),
    "not an op": (changed(ranks=[["0F0"], ["1X0"]]), 'rank 1: "1X0" is not an op'),
    "a number for an op": (changed(ranks=[[0], []]), "Expected `str`, got `int` - at `$.ranks["),
    "a stage outside": (changed(ranks=[["0F0"], ["2F0"]]), 'rank 1: "2F0" names stage 2 of 2'),
    "a replica outside": (changed(ranks=[["0F0@1"], []]), 'rank 0: "0F0@1" names replica 1 of 1'),
    "a stage left out": (
        changed(placement=[[0, 1, 0]], ranks=[["F0"], []]),
        'rank 0: "F0" has no stage and the rank holds 0, 2',
    ),
    "pairs of too few ranks": (changed(overlapped=[[0]]), "gpipe has pairs for 1 ranks of 2"),
    "a pair that is none": (changed(overlapped=[[1], []]), "rank 0 of gpipe: no pair at position 1; positions ascend"),
    "a pair in words": (changed(overlapped=[["0"], []]), "Expected `int`, got `str` - at `$.overlapped["),
    "a keeper outside": (changed(keepers=[1, 2]), "gpipe has keeper 2 among 2 ranks"),
    "an empty name": (changed(name=""), "schedule name ''; use words"),
    # Symptom: a traceback. Cause: these two are no DecodeError.
    "not UTF-8": (b'{"format": "\xff"}', "can't decode byte 0xff"),
    "a nest without end": ('{"x": ' + "[" * 100_000, "not a schedule file"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_file_is_refused_with_its_place(case: str, tmp_path: Path) -> None:
    content, said = WRONG[case]
    with pytest.raises(NotationError) as refused:
        schedule_from_json(content)
    assert said in str(refused.value)
    path = tmp_path / "schedule.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(NotationError) as refused:
        load_schedule(path)
    assert str(refused.value).startswith(f"{path}: ")
    assert said in str(refused.value)


@pytest.mark.parametrize("length", range(0, len(schedule_to_json(gpipe(2, 1))), 7))
def test_a_file_cut_anywhere_is_refused(length: int) -> None:
    with pytest.raises(NotationError, match="not a schedule file"):
        schedule_from_json(schedule_to_json(gpipe(2, 1))[:length])


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(NotationError, match=r"cannot read .*none.json: No such file or directory"):
        load_schedule(tmp_path / "none.json")
    with pytest.raises(NotationError, match="Is a directory"):
        load_schedule(tmp_path)


@pytest.mark.parametrize(("name", "lost"), [("gpipe", "3B2"), ("one_f_one_b", "3F1")])
def test_an_op_lost_from_the_last_rank_of_a_file_is_found(name: str, lost: str, tmp_path: Path) -> None:
    content = json.loads(schedule_to_json(named_schedule(name, num_ranks=4, num_microbatches=4)))
    content["ranks"][3].remove(lost)
    path = tmp_path / "schedule.json"
    path.write_text(json.dumps(content))
    with pytest.raises(VerificationError, match=rf"rank 3: {lost} is missing"):
        verify(load_schedule(path))


def test_an_op_of_a_microbatch_outside_is_found() -> None:
    content = json.loads(schedule_to_json(gpipe(2, 2)))
    content["ranks"][1].append("1F2")
    with pytest.raises(VerificationError, match="rank 1 position 4: 1F2 is outside the 2 microbatches"):
        verify(schedule_from_json(json.dumps(content)))
