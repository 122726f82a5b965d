"""ZB-H2: the ranks end as far apart as they start."""

from fractions import Fraction
from itertools import product

import pytest
from tests.schedules.grids import drawing_in, drawn, rows

from penstock import Cluster, StageCosts, simulate, verify, zb_h2
from penstock.errors import ScheduleError

GRIDS = {
    (1, 2): """
        rank 0: F0 I0 W0 F1 I1 W1
    """,
    (2, 4): """
        rank 0: F0 F1 F2 I0 W0 F3 I1 W1 I2 W2 I3 W3 .
        rank 1: .  F0 I0 F1 I1 F2 I2 W0 F3 I3 W1 W2 W3
    """,
    (3, 6): """
        rank 0: F0 F1 F2 F3 F4 I0 W0 F5 I1 W1 I2 W2 I3 W3 I4 W4 I5 W5 .  .
        rank 1: .  F0 F1 F2 I0 F3 I1 F4 I2 W0 F5 I3 W1 I4 W2 I5 W3 W4 W5 .
        rank 2: .  .  F0 I0 F1 I1 F2 I2 F3 I3 F4 I4 W0 F5 I5 W1 W2 W3 W4 W5
    """,
}

TIMES = [(1, 1, 1, 0), (2, 2, 1, 1), (3, 2, 2, 0), (3, 2, 2, 1), (2, 3, 0, 0), (5, 4, 3, 3)]
"""F, I, W and a transfer, c, with W ≤ F, W ≤ I and c ≤ W."""


@pytest.mark.parametrize(("num_ranks", "num_microbatches"), GRIDS)
def test_zb_h2_is_drawn_so(num_ranks: int, num_microbatches: int) -> None:
    assert rows(zb_h2(num_ranks, num_microbatches)) == drawn(GRIDS[num_ranks, num_microbatches])


def test_the_docstring_draws_what_is_generated() -> None:
    assert drawing_in(zb_h2) == rows(zb_h2(3, 6))


@pytest.mark.parametrize(("forward", "input_grad", "weight_grad", "transfer"), TIMES)
def test_the_closed_forms_of_zb_h2_hold_exactly(forward: int, input_grad: int, weight_grad: int, transfer: int) -> None:
    costs = StageCosts(forward=forward, input_grad=input_grad, weight_grad=weight_grad)
    for p in range(1, 6):
        for m in range(2 * p, 4 * p):
            timeline = simulate(zb_h2(p, m), costs, Cluster.uniform(p, latency_seconds=transfer))
            ideal = m * (forward + input_grad + weight_grad)
            gap = forward + input_grad + 2 * transfer - 2 * weight_grad
            assert timeline.per_rank_span == ideal + (p - 1) * gap
            assert timeline.makespan == ideal + (p - 1) * max(forward + transfer, gap)
            assert timeline.peak_activations == tuple(2 * (p - rank) - 1 for rank in range(p))


def test_no_rank_stands_still_where_f_i_and_w_take_as_long() -> None:
    timeline = simulate(zb_h2(5, 13), StageCosts())
    assert timeline.per_rank_span == 13 * 3
    assert [(row[0].start, row[-1].end) for row in timeline.by_rank] == [(rank, rank + 39) for rank in range(5)]


def test_the_closed_forms_of_zb_h2_hold_in_fractions() -> None:
    forward, input_grad, weight_grad = Fraction(1, 3), Fraction(2, 7), Fraction(1, 5)
    timeline = simulate(zb_h2(3, 7), StageCosts(forward=forward, input_grad=input_grad, weight_grad=weight_grad))
    assert timeline.per_rank_span == 9 * (forward + input_grad) + 3 * weight_grad


@pytest.mark.parametrize("deferred", [0, 3, 7])
def test_a_rank_holds_twice_what_1f1b_holds_but_one(deferred: int) -> None:
    costs = StageCosts(activation_bytes=7, deferred_bytes=deferred)
    for p in range(1, 5):
        for m in range(2 * p, 2 * p + 4):
            peaks = simulate(zb_h2(p, m), costs).peak_memory
            assert peaks == tuple((2 * (p - rank) - 1) * 7 + 2 * rank * deferred for rank in range(p))
            assert max(peaks) <= (2 * p - 1) * 7


def test_every_size_is_proven() -> None:
    for p, extra in product(range(1, 5), range(5)):
        proof = verify(zb_h2(p, 2 * p + extra))
        assert proof.peak_deferred == tuple(2 * rank + 1 for rank in range(p))


@pytest.mark.parametrize(("num_ranks", "num_microbatches"), [(1, 1), (4, 7), (4, 1)])
def test_too_few_microbatches_for_the_warm_up_are_refused(num_ranks: int, num_microbatches: int) -> None:
    with pytest.raises(ScheduleError) as refused:
        zb_h2(num_ranks, num_microbatches)
    assert str(refused.value) == (
        f"zb_h2: num_microbatches={num_microbatches} does not fill the warm-up of num_ranks={num_ranks}; use at least "
        f"twice as many as ranks, num_microbatches={2 * num_ranks}, or zb_h1"
    )
