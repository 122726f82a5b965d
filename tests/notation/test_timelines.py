"""A timeline comes back from its file as it was, and a file that is none is refused with its place."""

import ast
import json
import re
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.strategies import schedule_or_reject

from penstock.cluster import Cluster
from penstock.costs import StageCosts
from penstock.errors import NotationError
from penstock.ir.ops import NO_MICROBATCH, Op, OpKind
from penstock.notation.timelines import (
    Recording,
    load_recording,
    recording_from_json,
    recording_to_json,
    save_recording,
    timeline_from_json,
    timeline_to_json,
)
from penstock.schedules import SCHEDULES, one_f_one_b
from penstock.simulator import simulate
from penstock.timeline import Span, Timeline

LITERAL = """\
{"format": "penstock.timeline", "version": 1,
 "spans": [
  [["0F0",0,1],["0B0",3,5]],
  [["1F0",1,2],["1B0",2,3]]],
 "waits": [
  [0,"0B0",1,3,1,3],
  [1,"1F0",0,1,0,1]],
 "transmissions": [
  [0,1,"F","1F0",1,1],
  [1,0,"B","0B0",3,3]],
 "memory": [
  [[0,0],[0,8],[5,0]],
  [[0,0],[1,8],[3,0]]]}"""

seconds = st.floats(min_value=0, max_value=1e3)


def simulated() -> Timeline:
    return simulate(one_f_one_b(2, 1), StageCosts(forward=1, backward=(2, 1), activation_bytes=8))


def test_the_file_of_the_smallest_pipeline() -> None:
    assert timeline_to_json(simulated()) == LITERAL
    assert timeline_from_json(LITERAL) == simulated()


@given(st.sampled_from(sorted(SCHEDULES)), st.integers(1, 5), st.integers(1, 8), seconds, seconds, seconds)
def test_timelines_come_back_exactly(name: str, p: int, m: int, forward: float, grad: float, latency: float) -> None:
    costs = StageCosts(forward=forward, input_grad=grad, activation_bytes=1.5, boundary_bytes=8)
    cluster = Cluster.uniform(p, latency_seconds=latency, bytes_per_second=100)
    timeline = simulate(schedule_or_reject(name, p, m), costs, cluster)
    assert timeline_from_json(timeline_to_json(timeline)) == timeline


def test_ops_without_microbatch_and_of_another_replica_come_back() -> None:
    spans = (
        Span(0, Op(OpKind.F, 3, 2, 1), -0.5, 0.25),
        Span(0, Op(OpKind.REDUCE_GRAD, 0, NO_MICROBATCH), 0.25, 1),
    )
    assert timeline_from_json(timeline_to_json(Timeline(1, spans))).spans == spans


def test_fractions_are_rounded_to_floats() -> None:
    timeline = simulate(one_f_one_b(2, 2), StageCosts(forward=Fraction(1, 3)))  # type: ignore[arg-type]
    assert timeline_from_json(timeline_to_json(timeline)).spans[0].end == 1 / 3


def test_whole_numbers_stay_whole() -> None:
    assert isinstance(timeline_from_json(LITERAL).makespan, int)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "penstock.timeline",
            "penstock.schedule",
            'format "penstock.schedule"; a timeline says "penstock.timeline"',
        ),
        ('"version": 1', '"version": 2', "has version 2; this penstock reads version 1"),
        ('"version": 1', '"version": "one"', "version"),
        ('"memory"', '"memories"', "memories"),
        ('["0F0",0,1]', '["0F0",0]', r"spans\[0\]\[0\]"),
        ('["0F0",0,1]', '["0F0",0,"1"]', r"spans\[0\]\[0\]\[2\]"),
        ('["0F0",0,1]', '["0X0",0,1]', '"X" of 0X0 is no kind of op'),
        ('["0F0",0,1]', '["F",0,1]', '"F" is not an op'),
        ('["0F0",0,1]', '["0F0",2,1]', "0F0 ends at 1, before it starts at 2"),
        ('[1,"1F0",0,1,0,1]', '[2,"1F0",0,1,0,1]', "rank 2 is named, but there are 2 ranks"),
        ('[1,"1F0",0,1,0,1]', '[1,"1F0",0,1,-1,1]', "rank -1 is named"),
        ('[0,1,"F","1F0",1,1]', '[0,7,"F","1F0",1,1]', "rank 7 is named"),
        (",\n  [[0,0],[1,8],[3,0]]", "", "memory has 1 curves for 2 ranks"),
        (LITERAL[-40:], "", "not a timeline"),
        (LITERAL, "[1, 2]", "not a timeline"),
        (LITERAL, "", "not a timeline"),
        (LITERAL, "[" * 100_000, "not a timeline"),
    ],
)
def test_a_foreign_timeline_is_refused(old: str, new: str, message: str) -> None:
    assert old in LITERAL
    with pytest.raises(NotationError, match=message):
        timeline_from_json(LITERAL.replace(old, new, 1))


def test_a_timeline_without_ranks_is_refused() -> None:
    with pytest.raises(NotationError, match="spans are empty"):
        timeline_from_json(timeline_to_json(Timeline(0, ())))


def recording() -> Recording:
    measured = replace(simulated(), memory=(), waits=())
    return Recording(one_f_one_b(2, 1), {"planned": simulated(), 'measured "twice"': measured})


def test_a_recording_comes_back_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "timelines.json"
    save_recording(recording(), path)
    assert load_recording(path) == recording()
    assert list(tmp_path.iterdir()) == [path]


def test_a_recording_is_plain_json() -> None:
    assert set(json.loads(recording_to_json(recording()))) == {"format", "version", "schedule", "timelines"}


def test_the_error_names_the_timeline_and_the_file(tmp_path: Path) -> None:
    path = tmp_path / "timelines.json"
    path.write_text(recording_to_json(recording()).replace('["0F0",0,1]', '["0F0",2,1]', 1))
    with pytest.raises(NotationError, match=r'timelines.json: timeline "planned": 0F0 ends at 1'):
        load_recording(path)


def test_a_timeline_of_another_schedule_is_refused() -> None:
    foreign = Recording(one_f_one_b(3, 1), {"planned": simulated()})
    with pytest.raises(NotationError, match='timeline "planned" has 2 ranks, its schedule 3'):
        recording_from_json(recording_to_json(foreign))


def test_files_that_cannot_be_read_or_written_are_named(tmp_path: Path) -> None:
    with pytest.raises(NotationError, match=r"cannot read .*absent.json: No such file"):
        load_recording(tmp_path / "absent.json")
    with pytest.raises(NotationError, match=r"cannot write .*absent/t.json: No such file"):
        save_recording(recording(), tmp_path / "absent" / "t.json")
    (tmp_path / "binary.json").write_bytes(b"\x89PNG\xff\x00")
    with pytest.raises(NotationError, match=r"binary.json: not a recording"):
        load_recording(tmp_path / "binary.json")


def test_no_call_makes_a_decoder_of_a_type_of_ours() -> None:
    """Symptom: a crash when ranks that are threads read a file. Cause: msgspec 0.22 takes a type apart on first use,
    which two threads must not do at once. So decoders are made when their module is imported.
    """
    found = []
    for source in sorted((Path(__file__).parents[2] / "src").rglob("*.py")):
        text = source.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)) if "msgspec" in text else ():
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith((".json.decode", ".msgpack.decode")):
                kinds = {ast.unparse(each.value) for each in node.keywords if each.arg == "type"}
                found += [f"{source.name}:{node.lineno}" for kind in kinds if not re.fullmatch(r"[a-z\[\], ]+", kind)]
    assert not found
