"""One pass of zb_auto's scheduler under fixed rules."""

from itertools import pairwise, product

import pytest

from penstock import Cluster, OpKind, Placement, Schedule, StageCosts, simulate, verify
from penstock.schedules.zb_auto_clock import Terms
from penstock.schedules.zb_auto_search import Rules, placed

GRID = [Rules(*choice) for choice in product((True, False), repeat=3)]


def terms(
    num_ranks: int, num_microbatches: int, *, times: tuple[float, float, float], transfer: float = 0, limit: float
) -> Terms:
    """Equal stages; F keeps 2 and I keeps 1, and the limit counts what F keeps."""
    seconds = {kind: (time,) * num_ranks for kind, time in zip((OpKind.F, OpKind.I, OpKind.W), times, strict=True)}
    return Terms(
        num_microbatches,
        seconds,
        transfer=(transfer,) * (num_ranks - 1),
        activation=(2,) * num_ranks,
        deferred=(1,) * num_ranks,
        limit=(2 * limit,) * num_ranks,
    )


def letters(found: Terms, rules: Rules) -> list[str]:
    return ["".join(op.kind.name for op in ops) for ops in placed(found, rules).orders]


@pytest.mark.parametrize(
    ("rule", "setting", "found"),
    [
        ("keep_first_backward", True, terms(3, 3, times=(2, 1, 2), limit=3)),
        ("keep_first_backward", False, terms(2, 3, times=(2, 1, 2), limit=3)),
        ("skip_forwards", True, terms(3, 5, times=(3, 2, 2), limit=4)),
        ("skip_forwards", False, terms(2, 6, times=(2, 2, 1), transfer=1, limit=3)),
        ("fill_small_gaps", True, terms(3, 8, times=(2, 1, 2), transfer=1, limit=4)),
        ("fill_small_gaps", False, terms(2, 3, times=(1, 1, 3), transfer=1, limit=2)),
    ],
)
def test_each_setting_of_each_rule_is_the_only_way_to_the_best_somewhere(
    rule: str, setting: bool, found: Terms
) -> None:
    spans: dict[bool, float] = {
        value: min(placed(found, rules).longest_span() for rules in GRID if getattr(rules, rule) is value)
        for value in (True, False)
    }
    assert spans[setting] < spans[not setting]


#   F = 2, I = 1, W = 2    0  1  2  3  4  5  6  7
#   rank 0                 F0 F0 F1 F1 .  I0        keeps its first I: F2 would end at 6
#   rank 1                 .  .  F0 F0 I0
def test_the_warm_up_stops_where_one_more_f_would_hold_up_the_first_i() -> None:
    found = terms(2, 3, times=(2, 1, 2), limit=3)
    assert letters(found, Rules(True, True, True))[0].index("I") == 2
    assert letters(found, Rules(False, True, True))[0].index("I") == 3


def test_the_warm_up_stops_at_the_limit() -> None:
    for limit in range(1, 7):
        warm_up = [
            row.index("I") for row in letters(terms(3, 8, times=(1, 1, 1), limit=limit), Rules(False, True, True))
        ]
        assert warm_up == [min(5, limit), max(min(3, limit - 1), 1), 1]


#   F = I = 1    0  1  2  3  4  5
#   rank 0       F0 F1 F2 F3 F4 I0
#   rank 1       .  F0 F1 .  I0       holds two at most, and stands still
#   rank 2       .  .  F0 I0
def test_the_warm_up_counts_on_a_rank_that_stands_still_for_its_first_i() -> None:
    found = terms(3, 8, times=(1, 1, 1), limit=9)._replace(limit=(18, 4, 18))
    assert [row.index("I") for row in letters(found, Rules(True, True, True))] == [5, 2, 1]


def forwards_before_each_backward(row: str) -> list[int]:
    return [row[:at].count("F") for at, letter in enumerate(row) if letter == "I"]


@pytest.mark.parametrize("rules", GRID)
def test_a_rank_is_ahead_of_the_next_until_its_forwards_are_out(rules: Rules) -> None:
    rows = letters(terms(4, 9, times=(3, 2, 1), transfer=1, limit=5), rules)
    for before, after in pairwise(map(forwards_before_each_backward, rows)):
        assert all(ahead > behind or ahead == 9 for ahead, behind in zip(before, after, strict=True))


@pytest.mark.parametrize("rules", GRID)
def test_rank_0_issues_all_its_w_as_soon_as_it_is_out_of_forwards(rules: Rules) -> None:
    row = letters(terms(3, 6, times=(2, 1, 1), limit=6), rules)[0]
    _, *after = row[row.rindex("F") :].split("I")
    assert after == ["W"] * len(after)


@pytest.mark.parametrize("rules", GRID)
@pytest.mark.parametrize("transfer", [0, 1])
def test_the_span_of_the_clock_is_the_span_that_is_simulated(rules: Rules, transfer: int) -> None:
    found = terms(4, 6, times=(3, 4, 2), transfer=transfer, limit=5)
    clock = placed(found, rules)
    schedule = Schedule("found", Placement.looped(4), 6, tuple(map(tuple, clock.orders)))
    verify(schedule)
    costs = StageCosts(forward=3, input_grad=4, weight_grad=2)
    timeline = simulate(schedule, costs, Cluster.uniform(4, latency_seconds=transfer))
    assert timeline.per_rank_span == clock.longest_span()
    ends = [row[-1].end for row in timeline.by_rank]
    assert ends == clock.free
