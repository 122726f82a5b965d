"""Bytes over time, by hand."""

from hypothesis import given, settings
from tests.random_schedules import valid_schedules
from tests.strategies import asynchronous

from penstock import Placement, Schedule, StageCosts, parse_grid, simulate, verify
from penstock.schedules import forward_only, gpipe, one_f_one_b, pipedream, pipedream_2bw, pipemare


def test_a_split_backward_frees_activations_first_and_the_rest_with_its_weight_gradient() -> None:
    schedule = parse_grid("""
        split p=1 m=2 weights=flush placement=0
        rank 0: F0 F1 I0 W0 I1 W1
    """)
    costs = StageCosts(
        forward=1, input_grad=2, weight_grad=3, parameter_bytes=100, activation_bytes=10, deferred_bytes=4
    )
    # F0 0-1, F1 1-2, I0 2-4 (-10 +4), W0 4-7 (-4), I1 7-9, W1 9-12
    assert simulate(schedule, costs).memory == (
        ((0, 100), (0, 110), (1, 120), (4, 114), (7, 110), (9, 104), (12, 100)),
    )
    assert simulate(schedule, costs).peak_memory == (120,)


def test_a_full_backward_frees_all_at_its_end() -> None:
    costs = StageCosts(forward=1, backward=2, activation_bytes=[3, 5], deferred_bytes=9)
    timeline = simulate(one_f_one_b(2, 2), costs)
    # rank 0: F0 0-1, F1 1-2, B0 4-6, B1 7-9; rank 1: F0 1-2, B0 2-4, F1 4-5, B1 5-7
    assert timeline.memory == (
        ((0, 0), (0, 3), (1, 6), (6, 3), (9, 0)),
        ((0, 0), (1, 5), (4, 0), (4, 5), (7, 0)),
    )
    assert timeline.peak_memory == (6, 5)


def test_a_rank_holds_the_parameters_of_all_its_stages_in_both_directions() -> None:
    schedule = Schedule("none", Placement.replicas((0, 1, 2), (2, 0, 1)), 1, ((), (), ()))
    assert simulate(schedule, StageCosts(parameter_bytes=[1, 10, 100])).peak_memory == (11, 110, 101)


def test_without_bytes_there_is_no_curve() -> None:
    timeline = simulate(gpipe(2, 2), StageCosts())
    assert timeline.memory == ()
    assert timeline.peak_memory == ()


@given(schedule=valid_schedules())
def test_the_step_ends_with_what_it_began_with(schedule: Schedule) -> None:
    costs = StageCosts(parameter_bytes=7, activation_bytes=5, deferred_bytes=2)
    timeline = simulate(schedule, costs)
    for curve in timeline.memory:
        assert curve[0][0] == 0
        assert curve[-1][1] == curve[0][1]
        assert all(held >= curve[0][1] for _, held in curve)
        assert [at for at, _ in curve] == sorted(at for at, _ in curve)


@given(schedule=valid_schedules())
def test_the_peak_in_bytes_is_the_peak_in_activations_where_each_is_one_byte(schedule: Schedule) -> None:
    timeline = simulate(schedule, StageCosts(activation_bytes=1))
    assert timeline.peak_memory == timeline.peak_activations


#   rank 0    F0 F1 .  .  B0 B0 S0 F2 B1 B1 S1 F3 B2 B2 S2 .  B3 B3 S3     F = 1, B = 2, S = 1
#   rank 1    .  F0 B0 B0 S0 F1 B1 B1 S1 F2 B2 B2 S2 F3 B3 B3 S3
def test_a_weight_version_is_held_from_its_step_to_the_last_backward_that_uses_it() -> None:
    """Rank 0: a second one from each step, which the next backward of the older one's microbatch gives back."""
    costs = StageCosts(forward=1, backward=2, optimizer_step=1, parameter_bytes=100, activation_bytes=1)
    timeline = simulate(pipedream(2, 4), costs)
    assert timeline.memory == (
        ((0, 100), (0, 101), (1, 102), (6, 101), (6, 201), (7, 202), (10, 101), (10, 201), (11, 202), (14, 101),
         (14, 201), (18, 100)),
        ((0, 100), (1, 101), (4, 100), (5, 101), (8, 100), (9, 101), (12, 100), (13, 101), (16, 100)),
    )  # fmt: skip
    assert timeline.peak_memory == (202, 101)


def test_gradients_and_optimizer_state_are_held_throughout_of_one_version() -> None:
    costs = StageCosts(parameter_bytes=[100, 200], gradient_bytes=[10, 20], optimizer_bytes=[1, 2])
    for schedule in (one_f_one_b(2, 3), pipemare(2, 3)):
        assert simulate(schedule, costs).memory == (((0, 111),), ((0, 222),))
    assert simulate(pipedream(2, 3), costs).peak_memory == (211, 222)
    assert simulate(pipedream_2bw(2, 4), costs).peak_memory == (211, 422)


def test_an_evaluation_holds_parameters_only() -> None:
    costs = StageCosts(parameter_bytes=100, gradient_bytes=10, optimizer_bytes=1, activation_bytes=5)
    assert simulate(forward_only(Placement.looped(2), 3), costs).memory == (((0, 100),), ((0, 100),))


def test_a_rank_that_serves_several_rows_holds_its_stage_once() -> None:
    schedule = pipedream(3, 4, replicas=(2, 1))
    assert simulate(schedule, StageCosts(gradient_bytes=[1, 10])).memory == (((0, 1),), ((0, 1),), ((0, 10),))


def test_receive_buffers_are_held_throughout_as_many_as_the_rings_have() -> None:
    """Two slots for outputs on rank 1, two for gradients on rank 0, each of stage 0's boundary."""
    schedule = one_f_one_b(2, 8)
    assert sorted(capacity for _, capacity in verify(schedule).receive_slots) == [2, 2]
    costs = StageCosts(gradient_bytes=100, boundary_bytes=[5, 7])
    assert simulate(schedule, costs).memory == (((0, 110),), ((0, 110),))
    assert simulate(schedule, StageCosts(boundary_bytes=5)).memory == (), "transfer times alone are no memory"


def test_a_receive_buffer_is_as_large_as_the_largest_message_of_its_channel() -> None:
    schedule = parse_grid("""
        loop p=2 m=1 weights=flush placement=0,1,0,1
        rank 0: 0F0 2F0 2B0 0B0
        rank 1: 1F0 3F0 3B0 1B0
    """)
    slots = {str(channel): capacity for channel, capacity in verify(schedule).receive_slots}
    assert slots == {"0→1 B": 1, "0→1 F": 2, "1→0 B": 2, "1→0 F": 1}
    costs = StageCosts(parameter_bytes=1, boundary_bytes=[1000, 300, 20, 0])
    # Rank 0 takes output 1 and the gradients of outputs 2 and 0, rank 1 outputs 0 and 2 and the gradient of output 1.
    assert simulate(schedule, costs).peak_memory == (2 + 300 + 2 * 1000, 2 + 300 + 2 * 1000)


@given(schedule=asynchronous())
@settings(max_examples=50)
def test_the_peak_in_versions_is_that_of_the_proof(schedule: Schedule) -> None:
    timeline = simulate(schedule, StageCosts(parameter_bytes=1, optimizer_step=2))
    assert timeline.peak_memory == verify(schedule).weight_versions
    assert all(curve[-1][1] == 1 for curve in timeline.memory)
