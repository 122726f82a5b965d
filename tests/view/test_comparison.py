"""A comparison's numbers are the closed forms of the literature, at the work of a rank held equal."""

from fractions import Fraction

import pytest

from penstock.costs import StageCosts
from penstock.errors import UserError
from penstock.view import comparison
from penstock.view.comparison import SORTS, Row, compare, pareto

P, M = 4, 8


def row(name: str, p: int = P, m: int = M, **options: object) -> Row:
    (found,) = compare(p, m, names=[name], **options).rows  # type: ignore[arg-type]
    return found


def test_1f1b_has_its_closed_form_whatever_the_costs() -> None:
    # (p-1)(F+I+W) idle on each rank, m(F+I+W) busy.
    found = row("one_f_one_b", costs=StageCosts(2, 3, 5))
    assert found.makespan == found.per_rank_span == (M + P - 1) * 10
    assert found.bubble_fraction == Fraction(P - 1, M + P - 1)
    assert (found.peak_activations, found.peak_deferred, found.weight_copies) == (P, 0, 1)
    assert found.messages == 2 * (P - 1) * M


def test_chunks_cost_their_share_so_interleaving_divides_the_bubble() -> None:
    # (p-1)/v of F+I+W idle on each rank (Narayanan et al. 2021).
    found = row("interleaved_1f1b")
    assert found.num_chunks == 2
    assert found.makespan == 3 * M + Fraction(3 * (P - 1), 2)
    # (2(p-1) + (v-1)p + 1) chunks on the first rank.
    assert found.peak_activations == Fraction(2 * (P - 1) + P + 1, 2)
    assert found.messages == 2 * (2 * P - 1) * M


def test_gpipe_keeps_all_microbatches_and_naive_one() -> None:
    assert row("gpipe").peak_activations == M
    naive = row("naive")
    assert (naive.peak_activations, naive.makespan) == (1, 3 * M * P)


def test_zb_h1_leaves_a_third_of_the_bubble_and_says_what_it_defers() -> None:
    # (p-1)(F+I-W) with F = I = W.
    found = row("zb_h1")
    assert found.makespan == 3 * M + P - 1
    assert found.peak_deferred > 0


def test_bidirectional_stages_cost_a_whole_share_and_their_weights_are_held_twice() -> None:
    # (p-2) / (3m/2 + p-2) idle where B = 2F and m = p (Li and Hoefler 2021, table 2).
    found = row("chimera", m=P)
    assert found.num_chunks == 1
    assert found.bubble_fraction == Fraction(2 * (P - 2), 3 * P + 2 * (P - 2))
    assert sum(found.timeline.busy) == 3 * P * P
    assert found.weight_copies == 2


def test_asynchronous_schedules_keep_weight_versions() -> None:
    assert row("pipedream").weight_copies == P
    assert row("pipedream_2bw").weight_copies == 2


def test_a_transfer_lengthens_every_hop() -> None:
    assert row("gpipe", transfer_seconds=Fraction(1, 4)).makespan == 3 * (M + P - 1) + Fraction(2 * (P - 1), 4)


def test_undefined_schedules_are_named_with_their_reason() -> None:
    found = compare(3, 5, names=["chimera", "gpipe"])
    assert [row.name for row in found.rows] == ["gpipe"]
    assert list(found.undefined) == ["chimera"]
    assert "chimera" not in found.undefined["chimera"]
    assert found.undefined["chimera"]


@pytest.mark.parametrize("sort", sorted(SORTS))
def test_rows_ascend_in_what_they_are_sorted_by(sort: str) -> None:
    names = ["gpipe", "naive", "1F1B", "pipedream"]
    rows = compare(P, M, names=names, sort=sort).rows
    keys = [SORTS[sort](row) for row in rows]
    assert keys == sorted(keys)


def test_aliases_are_the_schedules_they_name() -> None:
    assert [row.name for row in compare(2, 2, names=["1F1B", "one_f_one_b"]).rows] == ["one_f_one_b"]


def test_all_registered_schedules_are_compared_or_refused() -> None:
    found = compare(2, 4)
    assert {row.name for row in found.rows} | set(found.undefined) == set(comparison.SCHEDULES)


def test_the_front_holds_what_nothing_beats_in_memory_and_bubble() -> None:
    rows = compare(P, M, names=["naive", "gpipe", "one_f_one_b", "zb_h1"]).rows
    assert [row.name for row in pareto(rows)] == ["naive", "zb_h1"]


def test_equal_points_are_on_the_front_once() -> None:
    rows = compare(P, M, names=["one_f_one_b", "pipedream_2bw"]).rows
    assert [row.name for row in pareto(rows)] == ["one_f_one_b"]


def test_what_cannot_be_compared_is_said() -> None:
    with pytest.raises(UserError, match="compare: num_ranks=0; use at least 1"):
        compare(0, 8)
    with pytest.raises(UserError, match=r"forward=\(1, 2\); give one number"):
        compare(2, 2, costs=StageCosts(forward=(1, 2)))
    with pytest.raises(UserError, match='unknown schedule "gpip"'):
        compare(2, 2, names=["gpip"])
