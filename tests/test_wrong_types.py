"""An argument of a wrong type is told in one sentence with its value and one that works, never as a Python error."""

from collections.abc import Callable

import pytest

import penstock as ps
from penstock.errors import UserError, check_type
from penstock.schedules import Given

GPIPE = ps.gpipe(2, 2)
ONE = ps.Placement.looped(1)

CALLS: dict[str, tuple[Callable[[], object], str]] = {
    "verify a name": (lambda: ps.verify("gpipe"), "subject is 'gpipe', not a Schedule or a Program"),
    "lower a name": (lambda: ps.lower("gpipe"), "schedule is 'gpipe', not a Schedule"),
    "simulate a name": (lambda: ps.simulate("gpipe", ps.StageCosts()), "subject is 'gpipe'"),
    "seconds as costs": (lambda: ps.simulate(GPIPE, 3), "costs is 3, not a StageCosts"),
    "ranks as cluster": (lambda: ps.simulate(GPIPE, ps.StageCosts(), 2), "cluster is 2, not a Cluster"),
    "a number as name": (lambda: ps.named_schedule(3, num_ranks=2, num_microbatches=2), "3 is no name of a schedule"),
    "half a microbatch": (lambda: ps.Schedule("x", ONE, 2.5, ((),)), "num_microbatches is 2.5, not a whole number"),
    "half a rank": (lambda: ps.Placement.looped(2.5), "num_ranks is 2.5, not a whole number"),
    "half a rank of a V": (lambda: ps.Placement.v_shaped(2.5), "num_ranks is 2.5"),
    "half a chunk": (lambda: ps.Placement.looped(2, 1.5), "num_chunks is 1.5"),
    "flat placement": (lambda: ps.Placement((0, 1)), r"a row is a tuple of ranks, e\.g\. \(\(0, 1\),\)"),
    "ranks as placement": (lambda: ps.Schedule("x", 2, 2, ((), ())), "placement is 2, not a Placement"),
    "ops as text": (lambda: ps.Schedule("x", ONE, 1, (("0F0",),)), "an op of rank 0 is '0F0', not an Op"),
    "kind as text": (lambda: ps.Schedule("x", ONE, 1, ((ps.Op("F", 0, 0),),)), "kind of an op is 'F', not an OpKind"),
    "a rule as text": (lambda: ps.Schedule("x", ONE, 1, ((),), "flash"), "weight_rule is 'flash', not a WeightRule"),
    "a number as schedule name": (lambda: ps.Schedule(3, ONE, 1, ((),)), "name is 3, not a text"),
    "a grid of numbers": (lambda: ps.parse_grid(3), "text is 3, not a text"),
    "JSON of numbers": (lambda: ps.schedule_from_json(3), "text is 3, not a text or a byte string"),
    "a schedule name as JSON": (lambda: ps.schedule_to_json("gpipe"), "schedule is 'gpipe', not a Schedule"),
    "a schedule as a program": (lambda: ps.program_to_json(GPIPE), "program is a Schedule, not a Program"),
    "a number as path": (lambda: ps.load_schedule(3), "path is 3, not a text or a Path"),
    "no path": (lambda: ps.load_schedule(None), "path is None"),
    "seconds as costs of zb_auto": (lambda: ps.zb_auto(4, 8, costs=3), "costs is 3, not a StageCosts;"),
    "ranks as cluster of zb_auto": (lambda: ps.zb_auto(4, 8, cluster=4), "cluster is 4, not a Cluster;"),
    "text as limit": (lambda: ps.zb_auto(4, 8, memory_limit="a"), "memory_limit='a' is not a number; use e.g. 4"),
    "costs of zb_v_greedy": (lambda: ps.zb_v_greedy(4, 8, costs="x"), "costs is 'x', not a StageCosts;"),
    "given": (
        lambda: ps.named_schedule("zb_auto", num_ranks=2, num_microbatches=2, given=3),
        "given is 3, not a Given",
    ),
    "limits of too few ranks": (
        lambda: ps.named_schedule("zb_auto", num_ranks=4, num_microbatches=4, given=Given(memory_limit=(1, 2))),
        "memory_limit has 2 values for 4 ranks",
    ),
    "devices as numbers": (lambda: ps.Cluster((1, 2), ((2, ps.Link()),)), "a device is 1, not a Device"),
    "one level, not a list": (lambda: ps.Cluster((ps.Device(),), ps.Link()), "levels is Link"),
}


@pytest.mark.parametrize(("call", "message"), CALLS.values(), ids=CALLS)
def test_one_sentence_says_what_is_wrong(call: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError, match=message) as refused:
        call()
    assert "\n" not in str(refused.value)


def test_a_truth_value_is_no_number() -> None:
    with pytest.raises(UserError, match=r"num_ranks is True, not a whole number; give e\.g\. 4"):
        check_type("num_ranks", True, int, example="e.g. 4")


def test_a_long_value_is_named_by_its_type() -> None:
    with pytest.raises(UserError, match="text is a tuple, not a text"):
        check_type("text", tuple(range(100)), str, example="a text")
