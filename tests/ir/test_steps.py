"""Which gradients a step applies, and whose it waits for."""

from penstock import Op, OpKind, parse_grid
from penstock.ir import Value, ValueKind
from penstock.ir.steps import (
    Gradient,
    awaited_gradients,
    contributed,
    optimizer_steps,
    reduction,
    rounds,
    useful_products,
)
from penstock.schedules import gpipe, pipedream, pipedream_2bw

S = OpKind.S


def test_a_step_applies_what_its_rank_has_gathered_for_its_stage_since_the_last() -> None:
    schedule = parse_grid("""
        split p=1 m=3 weights=latest placement=0,0
        rank 0: 0F0 1F0 0F1 1F1 0F2 1F2 1B0 0I0 1I1 0B1 1W1 1S1 0W0 0S0 1B2 0B2 0S2
    """)
    steps = optimizer_steps(schedule)
    assert {key: [(step.op.microbatch, step.microbatches) for step in taken] for key, taken in steps.taken.items()} == {
        (0, 0): [(0, (1, 0)), (2, (2,))],
        (0, 1): [(1, (0, 1))],
    }
    assert steps.taken[0, 1][0].position == 11
    assert steps.pending == {(0, 1): [Gradient(14, Op(OpKind.B, 1, 2))]}


def test_a_flush_has_no_steps_and_all_its_gradients_pending() -> None:
    steps = optimizer_steps(gpipe(2, 3))
    assert steps.taken == {}
    assert [len(left) for left in steps.pending.values()] == [3, 3]


def test_a_rank_that_serves_several_rows_gathers_over_them() -> None:
    schedule = parse_grid("""
        rows p=2 m=2 weights=stash placement=0,1/0,1
        rank 0: F0 F1@1 B0 B1@1 S1@1
        rank 1: F0 B0 F1@1 B1@1 S1@1
    """)
    assert [step.microbatches for step in optimizer_steps(schedule).taken[0, 0]] == [(0, 1)]
    assert awaited_gradients(schedule) == {}, "there is one copy of each stage"


def test_the_k_th_steps_of_all_owners_make_one_version() -> None:
    schedule = pipedream(3, 4, replicas=(2, 1))
    steps = optimizer_steps(schedule)
    together = [[(step.rank, step.op.microbatch) for step in made] for made in rounds(schedule, 0, steps)]
    assert together == [[(0, 0), (1, 1)], [(0, 2), (1, 3)]]
    assert [[step.rank for step in made] for made in rounds(schedule, 1, steps)] == [[2]] * 4


def test_a_step_waits_for_what_the_other_owners_contribute() -> None:
    awaited = awaited_gradients(pipedream(4, 6, replicas=(3, 1)))
    assert awaited[Op(S, 0, 4, 1)] == (
        Value(ValueKind.WEIGHT_GRAD, 0, 3, 0),
        Value(ValueKind.WEIGHT_GRAD, 0, 5, 2),
    )
    assert {op.stage for op in awaited} == {0}
    assert contributed(reduction(Op(S, 0, 3, 0))) == Value(ValueKind.WEIGHT_GRAD, 0, 3, 0)
    assert awaited_gradients(pipedream_2bw(2, 4)) == {}


def test_weight_gradients_are_of_use_only_where_a_step_takes_them() -> None:
    flush, stashed = useful_products(gpipe(2, 2)), useful_products(pipedream(2, 2))
    assert flush[OpKind.B] == (ValueKind.INPUT_GRAD,)
    assert stashed[OpKind.B] == (ValueKind.INPUT_GRAD, ValueKind.WEIGHT_GRAD)
    assert flush[OpKind.F] == stashed[OpKind.F] == (ValueKind.OUTPUT, ValueKind.SAVED)
