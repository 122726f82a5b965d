"""Optimizer steps inside a program: their time, and the wait for the other owners of a stage."""

import pytest

from penstock import Cluster, Device, Link, StageCosts, lower, pipedream, pipedream_2bw, pipemare, simulate
from penstock.errors import ScheduleError
from penstock.simulator.replay import Replay
from penstock.timeline import Shares, Timeline


def times(timeline: Timeline, rank: int) -> str:
    """Returns the spans of a rank as text."""
    return " ".join(f"{span.op}:{span.start}-{span.end}" for span in timeline.by_rank[rank])


def test_a_step_takes_its_time_behind_its_backward() -> None:
    timeline = simulate(pipedream(2, 2), StageCosts(forward=1, backward=2, optimizer_step=[5, 3]))
    assert times(timeline, 1) == "1F0:1-2 1B0:2-4 1S0:4-7 1F1:7-8 1B1:8-10 1S1:10-13"
    assert times(timeline, 0) == "0F0:0-1 0F1:1-2 0B0:4-6 0S0:6-11 0B1:11-13 0S1:13-18"


#   rank 0    F0 F0 .  B0 B0 R0 .  .  .  .  .  S0                      stage 0: F = 2, B = 2, R = 1, S = 1
#   rank 1    F1 F1 .  .  .  .  .  B1 B1 R1 R1 S1 (half as fast)       stage 1: F = 1, B = 1, S = 1
def test_owners_of_a_stage_step_once_all_have_reduced_and_wait_for_the_last() -> None:
    cluster = Cluster((Device(), Device(speed=0.5), Device()), ((3, Link()),))
    costs = StageCosts(forward=[2, 1], backward=[2, 1], reduce_grad=[1, 9], optimizer_step=1)
    timeline = simulate(pipedream(3, 2, replicas=(2, 1)), costs, cluster)
    assert times(timeline, 2) == "1F0:2-3 1B0:3-4 1S0:4-5 1F1@1:5-6 1B1@1:6-7 1S1@1:7-8", "one owner reduces nothing"
    assert times(timeline, 0) == "0F0:0-2 0B0:4-6 0REDUCE_GRAD0:6-7 0S0:13.0-14.0"
    assert times(timeline, 1) == "0F1@1:0-4.0 0B1@1:7-11.0 0REDUCE_GRAD1@1:11.0-13.0 0S1@1:13.0-15.0"
    (_, waited) = [wait for wait in timeline.waits if wait.rank == 0]
    assert (str(waited.op), waited.start, waited.end, waited.source, waited.sent) == ("0S0", 7, 13, 1, 13)
    assert timeline.shares(0) == Shares(compute=6, waiting=8, transfer=0, other=1)


def test_data_parallel_replicas_reduce_before_every_step() -> None:
    program = lower(pipedream(1, 2), reduce_gradients=True)
    timeline = simulate(program, StageCosts(forward=1, backward=1, reduce_grad=3, optimizer_step=1))
    assert times(timeline, 0) == (
        "0F0:0-1 0B0:1-2 0REDUCE_GRAD0:2-5 0S0:5-6 0F1:6-7 0B1:7-8 0REDUCE_GRAD1:8-11 0S1:11-12"
    )


def test_many_rounds_of_reductions_are_no_deep_recursion() -> None:
    timeline = simulate(pipedream(2, 4000, replicas=(2,)), StageCosts(forward=1, backward=1))
    assert timeline.makespan == 4000


def test_a_replay_times_steps_but_not_those_that_wait_for_other_owners() -> None:
    costs = StageCosts(forward=1, backward=2, optimizer_step=3)
    for schedule in (pipedream(3, 5), pipedream_2bw(3, 6), pipemare(3, 5)):
        assert Replay(lower(schedule)).makespan(costs) == simulate(schedule, costs).makespan
    with pytest.raises(ScheduleError, match="pipedream has ranks that step a stage together; use simulate for it"):
        Replay(lower(pipedream(3, 4, replicas=(2, 1))))
