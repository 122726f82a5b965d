"""Wave: one copy of the model in zig-zags down and up the ranks."""

from collections.abc import Callable
from fractions import Fraction

import pytest
from tests.schedules.grids import drawing_in, drawn, rows

from penstock import Op, OpKind, Placement, StageCosts, interleaved_1f1b, named_schedule, simulate, verify, wave
from penstock.errors import ScheduleError

GRIDS = {
    (2, 2, 2): """
        rank 0: 0F0 0F1 .   3F0 3B0 3F1 3B1 0B0 .   0B1
        rank 1: .   1F0 2F0 1F1 2F1 2B0 1B0 2B1 1B1 .
    """,
    (2, 1, 4): """
        rank 0: 0F0 .   .   3F0 4F0 .   .   7F0 7B0 .   .   4B0 3B0 .   .   0B0
        rank 1: .   1F0 2F0 .   .   5F0 6F0 .   .   6B0 5B0 .   .   2B0 1B0 .
    """,
    (4, 4, 2): """
        rank 0: 0F0 0F1 0F2 0F3 .   .   .   7F0 7B0 7F1 7B1 7F2 7B2 7F3 7B3 0B0 .   0B1 .   0B2 .   0B3
        rank 1: .   1F0 1F1 1F2 1F3 .   6F0 .   6F1 6B0 6F2 6B1 6F3 6B2 1B0 6B3 1B1 .   1B2 .   1B3 .
        rank 2: .   .   2F0 2F1 2F2 5F0 2F3 5F1 .   5F2 5B0 5F3 5B1 2B0 5B2 2B1 5B3 2B2 .   2B3 .   .
        rank 3: .   .   .   3F0 4F0 3F1 4F1 3F2 4F2 3F3 4F3 4B0 3B0 4B1 3B1 4B2 3B2 4B3 3B3 .   .   .
    """,
}
"""(p, m, v) -> rows."""


@pytest.mark.parametrize(("num_ranks", "num_microbatches", "num_chunks"), GRIDS)
def test_wave_is_drawn_so(num_ranks: int, num_microbatches: int, num_chunks: int) -> None:
    schedule = wave(num_ranks, num_microbatches, num_chunks=num_chunks)
    assert rows(schedule) == drawn(GRIDS[num_ranks, num_microbatches, num_chunks])


def test_the_docstring_draws_what_is_generated() -> None:
    assert drawing_in(wave) == rows(wave(3, 3))


def test_one_wave_is_the_v_and_more_are_zig_zags() -> None:
    assert wave(3, 3).placement == Placement.v_shaped(3)
    assert wave(3, 3, num_chunks=6).placement == Placement.wave(3, 3)


@pytest.mark.parametrize(
    ("forward", "backward"), [(1, 1), (1, 2), (2, 1), (2, 3), (0, 1), (1, 0), (Fraction(2, 3), Fraction(5, 7))]
)
def test_the_closed_forms_of_wave_hold_exactly(forward: Fraction, backward: Fraction) -> None:
    costs = StageCosts(forward=forward, backward=backward)
    for p in range(1, 5):
        for waves in (1, 2):
            for units in (1, 2, 3):
                m = units * p
                timeline = simulate(wave(p, m, num_chunks=2 * waves), costs)
                longer, shorter = max(forward, backward), min(forward, backward)
                bubble = 2 * (p - 1) * (units * longer - (units - 1) * shorter)
                assert timeline.makespan == 2 * waves * m * (forward + backward) + bubble


def test_where_f_equals_b_the_bubble_is_the_least_there_is_and_that_of_interleaved_1f1b() -> None:
    """The last rank idles while the first microbatch comes and while the last gradient goes: (p-1)·(F+B)."""
    for p in range(1, 5):
        for v in (2, 4):
            for m in (p, 2 * p, 4 * p):
                timeline = simulate(wave(p, m, num_chunks=v), StageCosts(forward=1, backward=1))
                assert timeline.bubble_fraction == (p - 1) / (v * m + p - 1)
                interleaved = simulate(interleaved_1f1b(p, m, num_chunks=v), StageCosts(forward=1, backward=1))
                assert timeline.makespan == interleaved.makespan


def test_the_bubble_of_one_unit_with_b_twice_f_is_below_the_papers_estimate() -> None:
    for p in range(2, 6):
        for waves in (1, 2, 4):
            timeline = simulate(wave(p, p, num_chunks=2 * waves), StageCosts(forward=1, backward=2))
            assert timeline.bubble_fraction == (2 * p - 2) / (3 * p * waves + 2 * p - 2)
            estimate = (2 * p - 2) / (3 * p * waves + p - 1)
            assert 0.75 * estimate < timeline.bubble_fraction < estimate


def test_twice_the_waves_halve_the_bubble_ratio() -> None:
    costs = StageCosts(forward=1, backward=2)
    for p in (2, 3, 5):
        one, two, four = (simulate(wave(p, p, num_chunks=v), costs).bubble_ratio for v in (2, 4, 8))
        assert one == 2 * two == 4 * four


def test_a_rank_holds_at_most_p_microbatches_of_all_its_chunks() -> None:
    for p in range(1, 5):
        for v in (2, 4):
            for m in {1, p - 1, p, p + 1, 2 * p, 3 * p} - {0}:
                peaks = verify(wave(p, m, num_chunks=v)).peak_activations
                assert max(peaks) <= v * p
                if m % p == 0:
                    assert peaks == tuple(v * p - (p - 1 - rank) for rank in range(p))


def test_at_most_p_microbatches_are_under_way() -> None:
    for p in (1, 2, 3, 4):
        under_way = 0
        for kind, stage, _, _ in wave(p, 11, num_chunks=4).ranks[0]:
            if stage == 0:
                under_way += 1 if kind == OpKind.F else -1
                assert 0 <= under_way <= p


def test_gradients_of_a_stage_accumulate_in_microbatch_order() -> None:
    for p in (1, 2, 3, 4):
        schedule = wave(p, 7, num_chunks=4)
        for ops in schedule.ranks:
            for kind in (OpKind.F, OpKind.B):
                for stage in {op.stage for op in ops}:
                    found = [op.microbatch for op in ops if op.kind == kind and op.stage == stage]
                    assert found == list(range(7))


PRIORITIES: dict[str, Callable[[Op], tuple[int, ...]]] = {
    "backward first, then the oldest microbatch": lambda op: (-op.kind, op.microbatch),
    "backward first, then the deepest stage": lambda op: (-op.kind, -op.stage, op.microbatch),
    "forward first, then the oldest microbatch": lambda op: (op.kind, op.microbatch),
}


@pytest.mark.parametrize("priority", PRIORITIES)
def test_every_sensible_priority_lists_the_same_order(priority: str) -> None:
    for p in range(1, 5):
        for v in (2, 4):
            for m in (1, p, p + 1, 2 * p, 3 * p + 1):
                assert _listed(p, m, v, PRIORITIES[priority]) == wave(p, m, num_chunks=v).ranks


def _listed(p: int, m: int, v: int, priority: Callable[[Op], tuple[int, ...]]) -> tuple[tuple[Op, ...], ...]:
    """Returns the order of a list schedule in which, slot by slot, each rank looks at all that it could run."""
    placement = Placement.wave(p, v // 2)
    left = {
        Op(kind, stage, microbatch)
        for kind in (OpKind.F, OpKind.B)
        for stage in range(p * v)
        for microbatch in range(m)
    }
    done: set[Op] = set()
    orders: list[list[Op]] = [[] for _ in range(p)]
    while left:
        running = []
        for rank, order in enumerate(orders):
            held = [op for op in left if placement.rank_of(op.stage) == rank and _before(op, p, p * v) <= done]
            if held:
                running.append((order, min(held, key=priority)))
        for order, op in running:
            order.append(op)
            done.add(op)
            left.remove(op)
    return tuple(map(tuple, orders))


def _before(op: Op, limit: int, num_stages: int) -> set[Op]:
    if op.kind == OpKind.B:
        return {op._replace(stage=op.stage + 1) if op.stage + 1 < num_stages else op._replace(kind=OpKind.F)}
    if op.stage:
        return {op._replace(stage=op.stage - 1)}
    return {Op(OpKind.B, 0, op.microbatch - limit)} if op.microbatch >= limit else set()


def test_it_goes_by_the_name_of_its_paper() -> None:
    found = named_schedule("hanayo", num_ranks=2, num_microbatches=4, num_chunks=4)
    assert found == wave(2, 4, num_chunks=4)


@pytest.mark.parametrize(
    ("num_chunks", "said"),
    [
        (3, "a wave goes down and up and takes two chunks a rank, use an even number, e.g. num_chunks=4"),
        (1, "a wave goes down and up and takes two chunks a rank, use an even number, e.g. num_chunks=2"),
        (0, "use at least 1"),
    ],
)
def test_half_a_wave_is_refused(num_chunks: int, said: str) -> None:
    with pytest.raises(ScheduleError) as refused:
        wave(2, 4, num_chunks=num_chunks)
    assert str(refused.value).startswith(f"wave: num_chunks={num_chunks}; {said}")
