"""ZB-H1: 1F1B with its backward split."""

from fractions import Fraction
from itertools import pairwise, product

import pytest
from tests.schedules.grids import drawing_in, drawn, rows

from penstock import Schedule, StageCosts, one_f_one_b, simulate, verify, zb_h1

GRIDS = {
    (1, 2): """
        rank 0: F0 I0 W0 F1 I1 W1
    """,
    (3, 1): """
        rank 0: F0 .  .  .  .  I0 W0
        rank 1: .  F0 .  .  I0 W0 .
        rank 2: .  .  F0 I0 W0 .  .
    """,
    (3, 2): """
        rank 0: F0 F1 .  .  .  I0 W0 I1 W1
        rank 1: .  F0 F1 .  I0 .  I1 W0 W1
        rank 2: .  .  F0 I0 F1 I1 W0 W1 .
    """,
    (3, 4): """
        rank 0: F0 F1 F2 .  .  I0 W0 F3 I1 W1 I2 W2 I3 W3
        rank 1: .  F0 F1 .  I0 F2 I1 W0 F3 I2 W1 I3 W2 W3
        rank 2: .  .  F0 I0 F1 I1 F2 I2 W0 F3 I3 W1 W2 W3
    """,
    (4, 6): """
        rank 0: F0 F1 F2 F3 .  .  .  I0 W0 F4 I1 W1 F5 I2 W2 I3 W3 I4 W4 I5 W5
        rank 1: .  F0 F1 F2 .  .  I0 F3 I1 W0 F4 I2 W1 F5 I3 W2 I4 W3 I5 W4 W5
        rank 2: .  .  F0 F1 .  I0 F2 I1 F3 I2 W0 F4 I3 W1 F5 I4 W2 I5 W3 W4 W5
        rank 3: .  .  .  F0 I0 F1 I1 F2 I2 F3 I3 W0 F4 I4 W1 F5 I5 W2 W3 W4 W5
    """,
}

TIMES = [(1, 1, 1), (2, 2, 1), (3, 2, 2), (2, 3, 0), (5, 4, 3)]
"""F, I and W with W ≤ F and W ≤ I."""


@pytest.mark.parametrize(("num_ranks", "num_microbatches"), GRIDS)
def test_zb_h1_is_drawn_so(num_ranks: int, num_microbatches: int) -> None:
    assert rows(zb_h1(num_ranks, num_microbatches)) == drawn(GRIDS[num_ranks, num_microbatches])


def test_the_docstring_draws_what_is_generated() -> None:
    assert drawing_in(zb_h1) == rows(zb_h1(3, 4))


@pytest.mark.parametrize(("forward", "input_grad", "weight_grad"), TIMES)
def test_the_closed_forms_of_zb_h1_hold_exactly(forward: int, input_grad: int, weight_grad: int) -> None:
    costs = StageCosts(forward=forward, input_grad=input_grad, weight_grad=weight_grad)
    for p, m in product(range(1, 7), range(1, 13)):
        timeline = simulate(zb_h1(p, m), costs)
        if m >= p:
            bubble = (p - 1) * (forward + input_grad - weight_grad)
            assert timeline.makespan == m * (forward + input_grad + weight_grad) + bubble
        if m <= p:
            assert timeline.makespan == (m + p - 1) * (forward + input_grad) + weight_grad
        assert timeline.peak_activations == tuple(min(p - rank, m) for rank in range(p))


def test_the_closed_forms_of_zb_h1_hold_in_fractions() -> None:
    forward, input_grad, weight_grad = Fraction(1, 3), Fraction(2, 7), Fraction(1, 5)
    timeline = simulate(zb_h1(5, 7), StageCosts(forward=forward, input_grad=input_grad, weight_grad=weight_grad))
    assert timeline.makespan == 11 * (forward + input_grad) + 3 * weight_grad


@pytest.mark.parametrize("deferred", [0, 3, 7])
def test_a_rank_holds_what_1f1b_holds_or_less_when_w_keeps_less(deferred: int) -> None:
    costs = StageCosts(activation_bytes=7, deferred_bytes=deferred)
    for p, m in product(range(1, 6), range(1, 9)):
        peaks = simulate(zb_h1(p, m), costs).peak_memory
        assert max(peaks) <= p * 7
        if m >= p:
            assert peaks == tuple((p - rank) * 7 + rank * deferred for rank in range(p))


def test_zb_h1_is_1f1b_with_its_backwards_split() -> None:
    def order(schedule: Schedule, backward: str) -> list[list[str]]:
        kinds = {"F": "F", backward: "B"}
        return [[f"{kinds[op.kind.name]}{op.microbatch}" for op in ops if op.kind.name in kinds]
                for ops in schedule.ranks]  # fmt: skip

    for p, m in product(range(1, 6), range(1, 9)):
        assert order(zb_h1(p, m), "I") == order(one_f_one_b(p, m), "B")


def test_each_w_comes_as_many_microbatches_after_its_i_as_its_rank_has_before_it() -> None:
    for rank, ops in enumerate(zb_h1(4, 9).ranks):
        assert [op.microbatch for op in ops if op.kind.name == "W"] == list(range(9))
        for before, op in pairwise(ops):
            if op.kind.name == "W" and before.kind.name == "I":
                assert before.microbatch - op.microbatch == rank


def test_every_size_is_proven() -> None:
    for p, m in product(range(1, 6), range(1, 9)):
        assert verify(zb_h1(p, m)).peak_deferred == tuple(min(rank + 1, m) for rank in range(p))
