"""The text grid: drawn, read back, and refused where it cannot be read."""

import inspect
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.random_schedules import any_schedules, paired_schedules, valid_schedules
from tests.strategies import schedule_or_reject

from penstock import Placement, Schedule, WeightRule, parse_grid
from penstock.errors import NotationError
from penstock.notation import draw_grid, grid
from penstock.notation.grid import slots
from penstock.schedules import SCHEDULES, gpipe, one_f_one_b

GRID = """
    gpipe p=2 m=2 weights=flush placement=0,1
    rank 0: F0 F1 .  .  B0 B1
    rank 1: .  F0 F1 B0 B1 .
"""


def same_lines(left: str, right: str) -> bool:
    return [line.strip() for line in left.strip().splitlines()] == [line.strip() for line in right.strip().splitlines()]


@given(name=st.sampled_from(sorted(SCHEDULES)), num_ranks=st.integers(1, 12), num_microbatches=st.integers(1, 12))
def test_every_registered_schedule_is_read_back_as_drawn(name: str, num_ranks: int, num_microbatches: int) -> None:
    schedule = schedule_or_reject(name, num_ranks, num_microbatches)
    assert parse_grid(draw_grid(schedule)) == schedule


@given(schedule=st.one_of(valid_schedules(max_microbatches=12), any_schedules()))
def test_any_schedule_is_read_back_as_drawn(schedule: Schedule) -> None:
    assert parse_grid(draw_grid(schedule)) == schedule


@given(schedule=valid_schedules(), rule=st.sampled_from(WeightRule), name=st.sampled_from(["v half", "a=b", "p=2 m=1"]))
def test_names_and_weight_rules_survive(schedule: Schedule, rule: WeightRule, name: str) -> None:
    """Symptom: a name with a space was an unknown field. Cause: the header was cut at its first space."""
    named = Schedule(name, schedule.placement, schedule.num_microbatches, schedule.ranks, rule)
    assert parse_grid(draw_grid(named)) == named


HAND_MADE = {
    "a V": """
        vee p=2 m=2 weights=flush placement=0,1,1,0
        rank 0: 0F0 0F1 .   3F0 3B0 3F1 3B1 0B0 .   0B1
        rank 1: .   1F0 2F0 1F1 2F1 2B0 1B0 2B1 1B1 .
    """,
    "two directions": """
        both p=2 m=2 weights=flush placement=0,1/1,0
        rank 0: F0   F1@1 B1@1 B0
        rank 1: F1@1 F0   B0   B1@1
    """,
    "I and W": """
        split p=2 m=2 weights=flush placement=0,1
        rank 0: F0 F1 .  I0 W0 I1 W1
        rank 1: .  F0 I0 F1 I1 W0 W1
    """,
    "optimizer steps": """
        async p=2 m=2 weights=stash placement=0,1
        rank 0: F0 F1 .  B0 S0 .  B1 S1
        rank 1: .  F0 B0 S0 F1 B1 S1 .
    """,
    "two chunks in a loop": """
        loop p=2 m=1 weights=flush placement=0,1,0,1
        rank 0: 0F0 .   2F0 .   .   2B0 .   0B0
        rank 1: .   1F0 .   3F0 3B0 .   1B0 .
    """,
    "overlapped pairs": """
        pairs p=2 m=3 weights=flush placement=0,1
        rank 0: F0 F1 .  F2+B0 .  B1 .  B2
        rank 1: .  F0 B0 F1    B1 F2 B2 .
    """,
    "overlapped pairs of two directions": """
        pairs p=2 m=4 weights=flush placement=0,1/1,0
        rank 0: F0   F2@1 F1   B2@1 F3@1+I0 B3@1 I1   W0   W1
        rank 1: F2@1 F0   F3@1 B0   F1+I2@1 B1   I3@1 W2@1 W3@1
    """,
    "offloads": """
        away p=2 m=3 weights=flush placement=0,1 keepers=1,0
        rank 0: F0 F1,OFFLOAD1 F2 B0,RELOAD1 .  B1 .  B2
        rank 1: .  F0          B0 F1         B1 F2 B2 .
    """,
    "a pair with what is offloaded behind it": """
        away p=2 m=4 weights=flush placement=0,1 keepers=1,0
        rank 0: F0 F1 .  F2+B0,OFFLOAD2 F3 B1,RELOAD2 .  B2 .  B3
        rank 1: .  F0 B0 F1             B1 F2         B2 F3 B3 .
    """,
    "a rank without ops": """
        idle p=2 m=1 weights=frozen placement=0,1
        rank 0: F0
        rank 1: .
    """,
}


@pytest.mark.parametrize("case", HAND_MADE)
def test_what_is_drawn_by_hand_is_drawn_again(case: str) -> None:
    assert same_lines(draw_grid(parse_grid(HAND_MADE[case])), HAND_MADE[case])


def test_the_drawing_in_the_module_is_what_is_drawn() -> None:
    lines = inspect.getdoc(grid).splitlines()  # type: ignore[union-attr]
    drawing = [line.strip() for line in lines if line.startswith("    ")]
    assert drawing == draw_grid(one_f_one_b(3, 3)).splitlines()


def test_idle_slots_carry_no_meaning() -> None:
    packed = "\n".join(" ".join(line.replace(".", "").split()) for line in GRID.strip().splitlines())
    assert parse_grid(packed) == parse_grid(GRID) == gpipe(2, 2)


def test_columns_are_as_wide_as_their_widest_op() -> None:
    lines = draw_grid(gpipe(2, 11)).splitlines()
    assert lines[1].index("B10") > 0
    assert len(lines[1]) > len(lines[2])
    for line in lines[2:]:
        assert line.index("F10") == lines[1].index("F10") + len("F10 ")


def test_rank_numbers_are_aligned() -> None:
    lines = draw_grid(gpipe(11, 1)).splitlines()
    assert lines[1].startswith("rank  0: F0")
    assert lines[11].startswith("rank 10: . ")


def test_an_order_that_cannot_run_is_still_drawn() -> None:
    stuck = Schedule("stuck", Placement.looped(2), 1, tuple(ops[::-1] for ops in gpipe(2, 1).ranks))
    assert draw_grid(stuck).splitlines()[1:] == ["rank 0: B0 F0", "rank 1: B0 F0"]


def test_an_order_that_cannot_run_is_drawn_with_its_pairs() -> None:
    text = "stuck p=1 m=2 weights=flush placement=0 keepers=0\nrank 0: OFFLOAD0 B0+F0 F1,OFFLOAD1 B1"
    schedule = parse_grid(text)
    assert [str(op) for op in schedule.ranks[0]] == ["0OFFLOAD0", "0B0", "0F0", "0F1", "0OFFLOAD1", "0B1"]
    assert schedule.overlapped == ((1,),)
    assert same_lines(draw_grid(schedule), text)


@given(schedule=paired_schedules())
@settings(max_examples=50)
def test_any_pairs_are_read_back_as_drawn(schedule: Schedule) -> None:
    assert parse_grid(draw_grid(schedule)) == schedule


@given(schedule=valid_schedules(), name=st.sampled_from(["keepers=1", "a keepers=0,1"]))
def test_keepers_are_read_from_the_end_of_the_header_only(schedule: Schedule, name: str) -> None:
    named = replace(schedule, name=name)
    assert parse_grid(draw_grid(named)) == named
    kept = replace(named, keepers=tuple(range(named.num_ranks)))
    assert parse_grid(draw_grid(kept)) == kept


def test_the_ops_of_a_pair_share_a_slot_and_offloads_take_none() -> None:
    assert slots(parse_grid(HAND_MADE["overlapped pairs"])) == [[0, 1, 3, 3, 5, 7], [1, 2, 3, 4, 5, 6]]
    assert slots(parse_grid(HAND_MADE["offloads"]))[0] == [0, 1, 1, 2, 3, 3, 5, 7]


def test_an_op_takes_the_first_slot_after_what_it_needs() -> None:
    assert slots(one_f_one_b(2, 2)) == [[0, 1, 3, 5], [1, 2, 3, 4]]


HEAD = "gpipe p=2 m=2 weights=flush placement=0,1"
BODY = "rank 0: F0 F1 B0 B1\nrank 1: F0 F1 B0 B1"
WRONG = {
    "empty": ("", "a grid has a header line and one line a rank"),
    "no rows": (HEAD, "a grid has a header line and one line a rank"),
    "a row too few": (f"{HEAD}\nrank 0: F0 F1", "header: p=2 and stages on 2 ranks, but 1 rows follow"),
    "a row too many": (f"{HEAD}\n{BODY}\nrank 2: F0", "header: p=2 and stages on 2 ranks, but 3 rows follow"),
    "another p": (f"{HEAD.replace('p=2', 'p=3')}\n{BODY}", "header: p=3 and stages on 2 ranks"),
    "an unknown field": (
        f"{HEAD.replace('placement', 'plcement')}\n{BODY}",
        'header: unknown field "plcement". Did you mean "placement"? Known: p, m, weights, placement',
    ),
    "a missing field": (
        f"{HEAD.replace(' m=2', '')}\n{BODY}",
        "header: m missing; write e.g. gpipe p=2 m=4 weights=flush placement=0,1",
    ),
    "a word for a number": (f"{HEAD.replace('m=2', 'm=two')}\n{BODY}", "header: invalid literal"),
    "a hole in the placement": (f"{HEAD.replace('0,1', '0,,1')}\n{BODY}", "header: invalid literal"),
    # Symptom: ScheduleError. Cause: only the numbers of the header were guarded.
    "a gap in the placement": (f"{HEAD.replace('0,1', '0,2')}\n{BODY}", "header: placement uses ranks [0, 2]"),
    "ragged directions": (f"{HEAD}/0\n{BODY}", "header: placement has replicas of [2, 1] stages"),
    "an unknown weight rule": (
        f"{HEAD.replace('flush', 'flash')}\n{BODY}",
        f"header: weights=flash; use one of {', '.join(WeightRule)}",
    ),
    "no microbatches": (f"{HEAD.replace('m=2', 'm=0')}\n{BODY}", "header: num_microbatches=0; use at least 1"),
    "rows out of order": (
        f"{HEAD}\nrank 1: F0\nrank 0: F0",
        'line 2: expected "rank 0: …", got "rank 1: F0"',
    ),
    "a row without label": (f"{HEAD}\nrank 0: F0\nF0 B0", 'line 3: expected "rank 1: …", got "F0 B0"'),
    "not an op": (f"{HEAD}\nrank 0: F0 Q1\nrank 1: F0", 'rank 0: "Q1" is not an op'),
    "three in one": (f"{HEAD}\nrank 0: F0+B0+F1\nrank 1: F0", "rank 0 of gpipe: no pair at position 1; positions"),
    "a pair of forwards": (f"{HEAD}\nrank 0: F0+F1\nrank 1: F0", "rank 0 of gpipe: no pair at position 0"),
    "half a pair": (f"{HEAD}\nrank 0: F0+ B0\nrank 1: F0", 'rank 0: "" is not an op'),
    "a word for a keeper": (f"{HEAD} keepers=1,x\n{BODY}", "header: invalid literal"),
    "a keeper outside": (f"{HEAD} keepers=1,2\n{BODY}", "header: gpipe has keeper 2 among 2 ranks"),
    "keepers before the end": (
        f"{HEAD.replace(' placement', ' keepers=1,0 placement')}\n{BODY}",
        "header: p missing",
    ),
    "a stage outside": (f"{HEAD}\nrank 0: F0\nrank 1: 2F0", 'rank 1: "2F0" names stage 2 of 2'),
    "a stage left out": (
        "vee p=2 m=1 weights=flush placement=0,1,1,0\nrank 0: F0\nrank 1: 1F0",
        'rank 0: "F0" has no stage and the rank holds 0, 3',
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_grid_is_refused_with_its_place(case: str) -> None:
    text, said = WRONG[case]
    with pytest.raises(NotationError) as refused:
        parse_grid(text)
    assert said in str(refused.value)
