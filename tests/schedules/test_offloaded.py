"""Any schedule within less memory, its activations in the host's: order, proof, time and bits."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.random_schedules import valid_schedules
from tests.runtime.runs import assert_same, mse, run
from tests.runtime.zoo import batch, made

import penstock as ps
from penstock.errors import ScheduleError
from penstock.ir import COMPUTE
from penstock.ir.ops import MOVES


def ops(schedule: ps.Schedule, rank: int) -> str:
    return " ".join(f"{op.kind.name}{op.microbatch}" for op in schedule.ranks[rank])


def test_what_is_needed_last_leaves_and_comes_back_one_backward_ahead() -> None:
    found = ps.offloaded(ps.one_f_one_b(4, 6), most=2)
    assert ops(found, 0) == (
        "F0 F1 OFFLOAD1 F2 OFFLOAD2 F3 B0 RELOAD1 OFFLOAD3 F4 B1 RELOAD2 OFFLOAD4 F5 B2 RELOAD3 B3 RELOAD4 B4 B5"
    )
    assert ops(found, 3) == ops(ps.one_f_one_b(4, 6), 3)
    assert found.keepers == (0, 1, 2, 3)
    proof = ps.verify(found)
    assert proof.peak_activations == (2, 2, 2, 1)
    assert proof.peak_guests == (0, 0, 0, 0)


@given(schedule=valid_schedules(), most=st.integers(1, 6))
def test_no_rank_holds_more_and_compute_keeps_its_order(schedule: ps.Schedule, most: int) -> None:
    if schedule.overlapped:
        with pytest.raises(ScheduleError, match="random overlaps ops"):
            ps.offloaded(schedule, most)
        return
    try:
        found = ps.offloaded(schedule, most)
    except ScheduleError as error:
        enough = int(str(error).rpartition("most=")[2])
        assert enough > most
        found, most = ps.offloaded(schedule, enough), enough
    assert tuple(tuple(op for op in row if op.kind in COMPUTE) for row in found.ranks) == schedule.ranks
    proof = ps.verify(found)
    assert max(proof.peak_activations) <= most
    costs = ps.StageCosts(activation_bytes=1)
    timeline = ps.simulate(found, costs)
    assert max(timeline.peak_activations) <= most
    assert timeline.spans == ps.simulate(schedule, costs).spans, "copies that take no time cost none"
    if max(ps.verify(schedule).peak_activations) <= most:
        assert not any(op.kind in MOVES for row in found.ranks for op in row)


#            0  1  2  3  4  5  6  7  8  9 10 11 12        F = 2, B = 4, a copy 3 of the 2 bytes held at most 2 times
#   rank 0   F0 F0 F1 F1 .  .  .  F2 …                    F2 waits for the memory of 1
def test_copies_to_the_host_take_its_link_and_free_the_device() -> None:
    schedule = ps.offloaded(ps.gpipe(1, 3), most=2)
    assert ops(schedule, 0) == "F0 F1 OFFLOAD1 F2 B0 RELOAD1 B1 B2"
    cluster = ps.Cluster((ps.Device(),), ((1, ps.Link()),), host=ps.Link(bytes_per_second=2 / 3))
    timeline = ps.simulate(schedule, ps.StageCosts(forward=2, backward=4, activation_bytes=2), cluster)
    assert [(str(op), start, end) for _, op, start, end in timeline.transmissions] == [
        ("0OFFLOAD1", 4, 7),
        ("0RELOAD1", 13, 16),
    ]
    assert [(str(span.op), span.start) for span in timeline.spans][2:] == [
        ("0F2", 7),
        ("0B0", 9),
        ("0B1", 16),
        ("0B2", 20),
    ]
    assert timeline.peak_memory == (4,)
    assert timeline.peak_activations == (2,)


@pytest.mark.parametrize("name", ["one_f_one_b", "gpipe", "zb_h1", "interleaved_1f1b", "zb_v"])
def test_gradients_have_the_bits_of_the_schedule_that_offloads_nothing(name: str) -> None:
    model, data = made("attention"), [batch(8, seed=seed) for seed in (1, 2)]
    schedule = ps.named_schedule(name, num_ranks=2, num_microbatches=8)
    plain = run(model, data, num_ranks=2, schedule=schedule)
    within = ps.offloaded(schedule, most=max(ps.verify(schedule).peak_activations) - 1)
    assert any(op.kind in MOVES for row in within.ranks for op in row)
    found = run(model, data, num_ranks=2, schedule=within)
    assert_same(found.grads, plain.grads)


def test_the_device_holds_as_many_as_was_proven() -> None:
    schedule = ps.offloaded(ps.gpipe(2, 8), most=3)

    def rank(transport: ps.LoopbackTransport) -> int:
        pipe = ps.Pipeline(made("attention"), mse, transport=transport, schedule=schedule)
        for _ in range(2):
            pipe.step(*batch(8))
        return pipe._training._offloading.most_held

    assert tuple(ps.run_ranks(rank, 2, timeout_seconds=20)) == ps.verify(schedule).peak_activations == (3, 3)


@pytest.mark.parametrize(
    ("schedule", "most", "message"),
    [
        (ps.one_f_one_b(4, 8), 0, "most=0; give how many activations a device may hold"),
        (ps.bpipe(4, 8), 2, "bpipe offloads already"),
        (ps.dualpipe_v(2, 6), 2, "dualpipe_v overlaps ops"),
    ],
)
def test_what_cannot_be_is_refused(schedule: ps.Schedule, most: int, message: str) -> None:
    with pytest.raises(ScheduleError, match=message):
        ps.offloaded(schedule, most)
