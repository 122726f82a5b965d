"""Predicted against measured: each cause is told by its name, and the causes add up."""

from dataclasses import replace

import pytest
from tests.profiler.ticking import by_hand

import penstock as ps
from penstock.ir.ops import OpKind
from penstock.lowering import lower
from penstock.profiler import Causes, causes, predict
from penstock.profiler.values import MessageCosts
from penstock.schedules import one_f_one_b
from penstock.timeline import Span, Timeline
from penstock.train.prediction import causes_text

PROGRAM = lower(one_f_one_b(2, 4))
EXPECTED = predict(by_hand(), PROGRAM)


def found(timeline: Timeline, *, step: float | None = None) -> Causes:
    return causes(EXPECTED, PROGRAM, [timeline], step_seconds=[] if step is None else [step])


def adds_up(told: Causes) -> bool:
    parts = told.compute + told.host + told.transfer + told.waiting
    return parts == pytest.approx(told.measured - told.predicted)


def test_a_step_as_predicted_has_no_causes() -> None:
    told = found(EXPECTED.timeline)
    assert (told.compute, told.transfer, told.waiting) == pytest.approx((0, 0, 0))
    assert adds_up(told)


def test_slower_layers_are_compute() -> None:
    slower = replace(EXPECTED.costs, forward=(29, 29))
    told = found(ps.simulate(PROGRAM, slower))
    assert told.compute == pytest.approx(told.measured - told.predicted) == pytest.approx(50)
    assert (told.transfer, told.waiting) == pytest.approx((0, 0))


def test_messages_that_take_longer_are_transfer() -> None:
    told = found(ps.simulate(PROGRAM, EXPECTED.costs, ps.Cluster.uniform(2, latency_seconds=6)))
    assert told.transfer >= told.measured - told.predicted >= 12
    assert (told.compute, told.host) == pytest.approx((0, 0))
    assert adds_up(told)


def test_what_lies_outside_the_program_is_host() -> None:
    told = found(EXPECTED.timeline, step=EXPECTED.timeline.makespan + 9)
    assert told.host == pytest.approx(9)
    assert adds_up(told)


def test_what_ops_take_longer_after_a_wait_is_no_drift_of_the_layers() -> None:
    profile = by_hand()
    asleep = replace(profile, host=replace(profile.host, waking=((5.0, 3.0),)))
    expected = predict(asleep, PROGRAM)
    assert expected.timeline.makespan > EXPECTED.timeline.makespan
    told = causes(expected, PROGRAM, [expected.timeline])
    assert (told.compute, told.host, told.transfer, told.waiting) == pytest.approx((0, 0, 0, 0))


def test_one_op_that_was_late_is_waiting() -> None:
    """The other ops of its kind took their median, so the layers are not slower: the ranks waited."""
    rank, op = 1, ps.Op(OpKind.F, 1, 2, 0)
    late = [
        span._replace(
            start=span.start + (100 if span.start > at or span.op == op else 0) - (100 if span.op == op else 0),
            end=span.end + (100 if span.start >= at else 0),
        )
        for span in EXPECTED.timeline.spans
        for at in [next(each.start for each in EXPECTED.timeline.spans if (each.rank, each.op) == (rank, op))]
    ]
    told = found(Timeline(2, tuple(Span(*span) for span in late)))
    assert told.compute == pytest.approx(0)
    assert told.waiting + told.host == pytest.approx(100)
    assert adds_up(told)


def test_expected_messages_that_took_nothing_are_transfer_below_zero() -> None:
    expected = predict(by_hand(messages=MessageCosts(latency_seconds=5.0)), PROGRAM)
    told = causes(expected, PROGRAM, [EXPECTED.timeline])
    assert told.transfer < -8
    assert told.compute == pytest.approx(0)


def test_no_timeline_is_refused() -> None:
    with pytest.raises(ps.UserError, match="timelines is empty"):
        causes(EXPECTED, PROGRAM, [])


def test_the_line_of_a_run_names_every_cause() -> None:
    text = causes_text(Causes(0.010, 0.012, 0.001, 0.0004, 0.0005, 0.0001))
    assert text == (
        "step: 10 ms predicted, 12 ms measured (+20.0%); of the difference, in ms: "
        "compute +1, transfer +0.5, waiting +0.1, host +0.4"
    )
