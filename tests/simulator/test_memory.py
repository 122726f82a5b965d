"""Bytes over time, by hand."""

from hypothesis import given
from tests.random_schedules import valid_schedules

from penstock import Placement, Schedule, StageCosts, parse_grid, simulate
from penstock.schedules import gpipe, one_f_one_b


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
