"""Names of schedules."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.strategies import schedule_or_reject

from penstock import Cluster, StageCosts, one_f_one_b, simulate, verify, zb_auto
from penstock.errors import ScheduleError
from penstock.schedules import ALIASES, SCHEDULES, Given, named_schedule
from penstock.schedules.registry import canonical_name


@given(name=st.sampled_from(sorted(SCHEDULES)), num_ranks=st.integers(1, 6), num_microbatches=st.integers(1, 12))
def test_every_registered_schedule_is_proven_and_simulated(name: str, num_ranks: int, num_microbatches: int) -> None:
    schedule = schedule_or_reject(name, num_ranks, num_microbatches)
    assert (schedule.num_ranks, schedule.num_microbatches) == (num_ranks, num_microbatches)
    assert schedule.name == name
    proof = verify(schedule)
    assert simulate(proof.program, StageCosts()).peak_activations == proof.peak_activations


@pytest.mark.parametrize("alias", ALIASES)
def test_every_alias_leads_to_a_registered_schedule(alias: str) -> None:
    assert canonical_name(alias) in SCHEDULES


def test_hyphens_are_underscores_and_torch_names_are_known() -> None:
    expected = one_f_one_b(2, 4)
    for name in ("one-f-one-b", "one_f_one_b", "1F1B", "1f1b"):
        assert named_schedule(name, num_ranks=2, num_microbatches=4) == expected


@pytest.mark.parametrize(
    ("wrong", "meant"), [("gpip", "gpipe"), ("one_f_oneb", "one_f_one_b"), ("GPIPE", "gpipe"), ("1F1C", "1F1B")]
)
def test_a_near_miss_is_answered_with_the_name_that_was_meant(wrong: str, meant: str) -> None:
    with pytest.raises(ScheduleError) as refused:
        named_schedule(wrong, num_ranks=2, num_microbatches=4)
    message = str(refused.value)
    assert message.startswith(f'unknown schedule "{wrong}". Did you mean "')
    assert meant.casefold() in message.partition("Known:")[0].casefold()
    assert "Known: " in message and "one_f_one_b" in message.partition("Known:")[2]


def test_a_name_like_none_is_answered_with_all_of_them() -> None:
    with pytest.raises(ScheduleError) as refused:
        canonical_name("xyzzy")
    assert str(refused.value) == f'unknown schedule "xyzzy". Known: {", ".join(sorted(SCHEDULES))}'


UNEVEN = StageCosts((1, 1, 1, 3), (1, 1, 1, 3), (1, 1, 1, 3))


def test_an_order_that_depends_on_costs_is_found_for_those_given() -> None:
    cluster = Cluster.uniform(4, latency_seconds=0.5)
    fitted = named_schedule("zb_auto", num_ranks=4, num_microbatches=8, given=Given(UNEVEN, cluster))
    assert fitted == zb_auto(4, 8, costs=UNEVEN, cluster=cluster)
    assert fitted != named_schedule("zb_auto", num_ranks=4, num_microbatches=8)
    roomy = named_schedule("zb_auto", num_ranks=4, num_microbatches=8, given=Given(memory_limit=8))
    assert max(verify(roomy).peak_activations) > 4


def test_a_fixed_order_heeds_no_costs_and_refuses_a_memory_limit() -> None:
    sizes = {"num_ranks": 4, "num_microbatches": 8}
    assert named_schedule("gpipe", **sizes, given=Given(UNEVEN)) == named_schedule("gpipe", **sizes)
    with pytest.raises(ScheduleError, match=r"gpipe: its order is fixed.*zb_auto, zb_v_greedy do"):
        named_schedule("gpipe", **sizes, given=Given(memory_limit=2))
