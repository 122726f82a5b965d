"""A compiled program gives the makespan that simulate gives, under any costs."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import penstock as ps
from penstock.errors import ScheduleError, UserError
from penstock.simulator.replay import Replay, _sweep

costs = st.integers(0, 9)


@given(st.data())
@settings(max_examples=40)
def test_replay_equals_simulate_to_the_last_digit(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["naive", "gpipe", "one_f_one_b"]))
    p, m = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 6))
    program = ps.lower(ps.named_schedule(name, num_ranks=p, num_microbatches=m))
    replay = Replay(program)
    for _ in range(3):
        per_stage = st.lists(costs, min_size=p, max_size=p)
        given_costs = ps.StageCosts(
            forward=data.draw(per_stage), backward=data.draw(per_stage), boundary_bytes=data.draw(per_stage)
        )
        cluster = ps.Cluster.uniform(p, latency_seconds=data.draw(costs), bytes_per_second=2)
        if p == 1 or len({channel[:2] for channel in program.channels}) == len(program.channels):
            assert replay.makespan(given_costs, cluster) == ps.simulate(program, given_costs, cluster).makespan


def test_several_chunks_replay_where_links_have_latency_only() -> None:
    program = ps.lower(ps.interleaved_1f1b(4, 8, num_chunks=3))
    replay = Replay(program)
    assert replay.num_ops == 2 * 4 * 3 * 8
    for latency in (0, 1, 7):
        cluster = ps.Cluster.uniform(4, latency_seconds=latency)
        given_costs = ps.StageCosts(forward=3, backward=range(1, 13))
        assert replay.makespan(given_costs, cluster) == ps.simulate(program, given_costs, cluster).makespan


def test_channels_that_queue_for_one_link_are_refused() -> None:
    replay = Replay(ps.lower(ps.interleaved_1f1b(2, 4, num_chunks=2)))
    with pytest.raises(ScheduleError, match="from rank 0 to rank 1; use simulate"):
        replay.makespan(ps.StageCosts(boundary_bytes=1), ps.Cluster.uniform(2, bytes_per_second=1))


def test_costs_of_another_size_are_refused() -> None:
    with pytest.raises(UserError, match="forward has 3 values for 2 stages"):
        Replay(ps.lower(ps.gpipe(2, 2))).makespan(ps.StageCosts(forward=[1, 2, 3]))


@pytest.mark.parametrize(("schedule", "said"), [(ps.dualpipe(2, 4), "overlaps ops"), (ps.bpipe(4, 4), "offloads")])
def test_pairs_and_offloads_are_refused(schedule: ps.Schedule, said: str) -> None:
    with pytest.raises(ScheduleError, match=f"{schedule.name} {said}.*; use simulate for it"):
        Replay(ps.lower(schedule))


def test_the_sweep_needs_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock.simulator.replay._kernel", lambda: _sweep)
    assert Replay(ps.lower(ps.one_f_one_b(3, 4))).makespan(ps.StageCosts(forward=1, backward=2)) == (4 + 3 - 1) * 3
