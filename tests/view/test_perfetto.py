"""The trace holds every op, wait and message once, in the structure that trace viewers read."""

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from penstock.cluster import Cluster
from penstock.costs import StageCosts
from penstock.errors import UserError
from penstock.ir.ops import NO_MICROBATCH, Op, OpKind
from penstock.schedules import one_f_one_b
from penstock.simulator import simulate
from penstock.timeline import Span, Timeline
from penstock.view.perfetto import save_perfetto, trace_events

REQUIRED = {
    "X": {"name", "cat", "pid", "tid", "ts", "dur", "args"},
    "M": {"name", "pid", "tid", "args"},
    "b": {"name", "cat", "pid", "tid", "id", "ts", "args"},
    "e": {"name", "cat", "pid", "tid", "id", "ts"},
    "s": {"name", "cat", "pid", "tid", "id", "ts"},
    "f": {"name", "cat", "pid", "tid", "id", "ts", "bp"},
    "C": {"name", "pid", "tid", "ts", "args"},
}


def timeline() -> Timeline:
    costs = StageCosts(0.001, 0.001, 0.0015, activation_bytes=7)
    return simulate(one_f_one_b(3, 4), costs, Cluster.uniform(3, latency_seconds=0.0003))


def events(**kinds: object) -> list[dict[str, Any]]:
    """Returns the events of two equal timelines that have these fields."""
    trace: Any = trace_events({"planned": timeline(), "measured": timeline()})
    return [event for event in trace["traceEvents"] if kinds.items() <= event.items()]


def test_every_event_has_the_fields_of_its_phase() -> None:
    assert {event["ph"] for event in events()} == set(REQUIRED)
    for event in events():
        assert set(event) - {"ph"} == REQUIRED[event["ph"]]


def test_processes_are_timelines_and_threads_are_ranks() -> None:
    assert [e["args"]["name"] for e in events(name="process_name")] == ["planned", "measured"]
    assert [(e["tid"], e["args"]["name"]) for e in events(name="thread_name", pid=1)] == [
        (0, "rank 0"),
        (1, "rank 1"),
        (2, "rank 2"),
    ]


def test_each_op_is_one_event_in_microseconds() -> None:
    found = {(e["tid"], e["name"]): (e["ts"], e["dur"]) for e in events(cat="compute", pid=0)}
    assert len(found) == len(timeline().spans)
    assert found[0, "0F1"] == (1000, 1000)
    assert next(e["args"] for e in events(cat="compute", name="2B3")) == {
        "kind": "B",
        "stage": 2,
        "microbatch": 3,
    }


def test_waits_are_split_into_the_peer_s_part_and_the_transfer() -> None:
    (waiting,) = events(cat="waiting", pid=0, tid=1, ts=0)
    (transfer,) = events(cat="transfer", pid=0, tid=1, ts=1000)
    assert (waiting["dur"], transfer["dur"]) == (1000, 300)
    assert waiting["args"] == {"before": "1F0", "source": 0, "kind": "F", "stage": 1, "microbatch": 0}


def test_events_of_a_track_do_not_overlap() -> None:
    for rank in range(3):
        track = sorted((e["ts"], e["ts"] + e["dur"]) for e in events(ph="X", pid=0, tid=rank))
        assert all(first[1] <= second[0] + 1e-6 for first, second in pairwise(track))


def test_each_message_begins_and_ends_once_under_a_number_of_its_own() -> None:
    numbers = Counter((e["id"], e["ph"]) for e in events() if "id" in e)
    assert set(numbers.values()) == {1}
    assert len(numbers) == 4 * 2 * len(timeline().transmissions)


def test_arrows_lead_from_within_the_maker_to_the_start_of_the_taker() -> None:
    spans = {(e["tid"], e["name"]): e for e in events(cat="compute", pid=0)}
    arrows = {e["id"]: e for e in events(ph="s", pid=0)}
    ends = {e["id"]: e for e in events(ph="f", pid=0)}
    messages = {e["id"]: e["args"] for e in events(ph="b", pid=0)}
    for number, arrow in arrows.items():
        facts = messages[number]
        step = -1 if facts["kind"] == "F" else 1
        maker = spans[facts["source"], f"{facts['stage'] + step}{facts['kind']}{facts['microbatch']}"]
        taker = spans[facts["target"], f"{facts['stage']}{facts['kind']}{facts['microbatch']}"]
        assert maker["ts"] <= arrow["ts"] < maker["ts"] + maker["dur"]
        assert (arrow["tid"], ends[number]["tid"]) == (facts["source"], facts["target"])
        assert ends[number]["ts"] == taker["ts"]


def test_ops_that_compute_nothing_are_communication() -> None:
    reduction = Span(0, Op(OpKind.REDUCE_GRAD, 0, NO_MICROBATCH, 1), 0, 1)
    trace: Any = trace_events({"t": Timeline(1, (reduction,))})
    event = trace["traceEvents"][-1]
    assert (event["cat"], event["args"]) == (
        "communication",
        {"kind": "REDUCE_GRAD", "stage": 0, "replica": 1},
    )


def test_the_file_is_json_and_an_unwritable_one_is_named(tmp_path: Path) -> None:
    save_perfetto({"planned": timeline()}, tmp_path / "trace.json")
    assert json.loads((tmp_path / "trace.json").read_text())["displayTimeUnit"] == "ms"
    with pytest.raises(UserError, match=r"cannot write .*absent/trace.json: No such file"):
        save_perfetto({"planned": timeline()}, tmp_path / "absent" / "trace.json")
