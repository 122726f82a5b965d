"""Weight versions and staleness: the stated rules come out, by closed form and by numbers; broken rules are refused."""

from collections.abc import Callable

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tests.numbers_training import Training, Wrong, first_weight, gradients, stepped, weights_after
from tests.random_schedules import with_ranks
from tests.strategies import asynchronous

from penstock import Op, OpKind, Schedule, lower, parse_grid, verify
from penstock.errors import VerificationError
from penstock.schedules import gpipe, pipedream, pipedream_2bw, pipemare
from penstock.verifier.weights import weights_of

SIZES = [(p, m) for p in range(1, 6) for m in (1, 2, 3, 5, 8, 11)]


# ------------------------------------------------------------------------------------ what the papers state


@pytest.mark.parametrize(("num_ranks", "num_microbatches"), SIZES)
def test_pipedream_uses_the_version_of_n_minus_k_steps_ago(num_ranks: int, num_microbatches: int) -> None:
    """w(t+1) = w(t) - η∇f(w_1(t-n+1), ..., w_n(t)): microbatch t meets version t-(n-1-k) on stage k from 0."""
    schedule = pipedream(num_ranks, num_microbatches)
    uses = weights_of(schedule).uses
    for stage in range(num_ranks):
        for t in range(num_microbatches):
            version = max(t - (num_ranks - 1 - stage), 0)
            assert uses[stage, t] == (version, version, t)
    proof = verify(schedule)
    assert proof.staleness == tuple(min(num_ranks - 1 - stage, num_microbatches - 1) for stage in range(num_ranks))


@pytest.mark.parametrize("num_ranks", range(1, 7))
def test_stage_k_of_n_of_pipedream_keeps_n_minus_k_versions(num_ranks: int) -> None:
    for num_microbatches in range(1, 2 * num_ranks + 2):
        kept = verify(pipedream(num_ranks, num_microbatches)).weight_versions
        for stage in range(num_ranks):
            versions = num_ranks - stage
            # Of few microbatches: version 0, the newest, and those that a forward has used since the first step.
            expected = min(versions, 2 + max(num_microbatches - versions, 0)) if num_microbatches > 1 else 1
            assert kept[stage] == expected
            assert expected == versions or num_microbatches < max(2 * versions - 2, 1)


@pytest.mark.parametrize(("num_ranks", "num_microbatches"), SIZES)
def test_vertical_sync_uses_the_input_stages_version_everywhere(num_ranks: int, num_microbatches: int) -> None:
    schedule = pipedream(num_ranks, num_microbatches, vertical_sync=True)
    uses = weights_of(schedule).uses
    for stage in range(num_ranks):
        for t in range(num_microbatches):
            version = max(t - num_ranks + 1, 0)
            assert uses[stage, t] == (version, version, t)
    proof = verify(schedule)
    assert proof.staleness == (min(num_ranks, num_microbatches) - 1,) * num_ranks
    if num_microbatches >= 2 * num_ranks - 1:
        assert proof.weight_versions == (num_ranks,) * num_ranks


@pytest.mark.parametrize("num_ranks", range(1, 7))
@pytest.mark.parametrize("num_versions", range(1, 5))
def test_2bw_has_a_delay_of_one_and_two_versions_on_every_stage(num_ranks: int, num_versions: int) -> None:
    """W(t+1) = W(t) - η∇f(W(t-1))."""
    for per_version in range(num_ranks, num_ranks + 4):
        schedule = pipedream_2bw(num_ranks, per_version * num_versions, microbatches_per_version=per_version)
        uses = weights_of(schedule).uses
        for stage in range(num_ranks):
            for microbatch in range(schedule.num_microbatches):
                step = microbatch // per_version
                assert uses[stage, microbatch] == (max(step - 1, 0), max(step - 1, 0), step)
        proof = verify(schedule)
        assert proof.staleness == (min(num_versions - 1, 1),) * num_ranks
        assert proof.weight_versions == (min(num_versions, 2),) * num_ranks


@pytest.mark.parametrize("per_version", range(1, 6))
@pytest.mark.parametrize("num_ranks", range(1, 6))
def test_the_delay_of_pipemare_is_what_is_in_flight_over_what_a_step_takes(num_ranks: int, per_version: int) -> None:
    """τ = (2(p-1-k)+1)/n counts the microbatch's own share of its step, 1/n; staleness does not."""
    num_versions = 2 * num_ranks + 2
    schedule = pipemare(num_ranks, per_version * num_versions, microbatches_per_version=per_version)
    proof, uses = verify(schedule), weights_of(schedule).uses
    assert proof.weight_versions == (1,) * num_ranks
    for stage in range(num_ranks):
        delay = proof.peak_activations[stage]  # microbatches in flight: τ·n
        assert delay == 2 * (num_ranks - 1 - stage) + 1
        assert proof.staleness[stage] == -(-(delay - 1) // per_version)
        last = range((num_versions - 1) * per_version, num_versions * per_version)
        assert sum(uses[stage, microbatch].staleness for microbatch in last) == delay - 1
        assert all(uses[stage, microbatch].backward == microbatch // per_version for microbatch in last)


@pytest.mark.parametrize("replicas", [(1, 1), (2, 1), (1, 2), (3, 1), (3, 2), (2, 2, 1), (1, 3, 2), (4, 1, 1), (2, 3)])
def test_a_replicated_stage_keeps_a_version_for_each_of_its_ranks_microbatches_in_flight(
    replicas: tuple[int, ...],
) -> None:
    num_ranks = sum(replicas)
    proof = verify(pipedream(num_ranks, 12 * num_ranks * 2, replicas=replicas))
    expected, staleness = [], []
    for stage, count in enumerate(replicas):
        flight = -(-sum(replicas[stage:]) // count)
        expected += [flight] * count
        staleness.append(flight - 1)
    assert proof.weight_versions == proof.peak_activations == tuple(expected)
    assert proof.staleness == tuple(staleness)
    assert proof.peak_activations[0] == -(-num_ranks // replicas[0]), "ranks / replicas of the input stage"


def test_a_flush_has_one_version_and_no_staleness() -> None:
    proof = verify(gpipe(3, 4))
    assert (proof.weight_versions, proof.staleness) == ((1, 1, 1), (0, 0, 0))


# ------------------------------------------------------------------------------------------------ by numbers


def trained(num_stages: int, versions: list[list[tuple[int, ...]]]) -> list[int]:
    """Returns the weights after the recurrence in which step t applies microbatches at these versions of the stages.

    Args:
        num_stages: n.
        versions: per step, per microbatch that it applies, the version of every stage; microbatches count on.
    """
    history = [[first_weight(stage)] for stage in range(num_stages)]
    microbatch = 0
    for step in versions:
        found = []
        for used in step:
            found.append(gradients([history[stage][version] for stage, version in enumerate(used)], microbatch))
            microbatch += 1
        for stage in range(num_stages):
            history[stage].append(stepped(history[stage][-1], [grads[stage] for grads in found]))
    return [weights[-1] for weights in history]


@pytest.mark.parametrize(("num_ranks", "num_microbatches"), SIZES)
def test_training_by_pipedream_is_its_recurrence(num_ranks: int, num_microbatches: int) -> None:
    n = num_ranks
    straight = [[tuple(max(t - n + 1 + stage, 0) for stage in range(n))] for t in range(num_microbatches)]
    assert weights_after(pipedream(n, num_microbatches)) == trained(n, straight)
    synced = [[(max(t - n + 1, 0),) * n] for t in range(num_microbatches)]
    assert weights_after(pipedream(n, num_microbatches, vertical_sync=True)) == trained(n, synced)


@pytest.mark.parametrize("num_ranks", range(1, 5))
@pytest.mark.parametrize("num_versions", range(1, 5))
def test_training_by_2bw_is_its_recurrence(num_ranks: int, num_versions: int) -> None:
    for per_version in range(num_ranks, num_ranks + 3):
        steps = [[(max(t - 1, 0),) * num_ranks] * per_version for t in range(num_versions)]
        schedule = pipedream_2bw(num_ranks, per_version * num_versions, microbatches_per_version=per_version)
        assert weights_after(schedule) == trained(num_ranks, steps)


@given(schedule=asynchronous())
@settings(max_examples=50)
def test_the_versions_are_those_that_a_training_run_meets(schedule: Schedule) -> None:
    assert {key: tuple(use) for key, use in weights_of(schedule).uses.items()} == Training(schedule).run().met


@given(schedule=asynchronous(), data=st.data())
@settings(max_examples=50)
def test_two_swapped_ops_are_refused_exactly_if_no_training_run_follows_the_rule(
    schedule: Schedule, data: st.DataObject
) -> None:
    rows = [list(row) for row in schedule.ranks]
    row = data.draw(st.sampled_from(rows))
    first = data.draw(st.integers(0, len(row) - 2))
    second = data.draw(st.integers(first + 1, min(first + 4, len(row) - 1)))
    row[first], row[second] = row[second], row[first]
    swapped = with_ranks(schedule, rows)
    try:
        met = Training(swapped).run().met
    except Wrong:
        with pytest.raises(VerificationError):
            verify(swapped)
    else:
        verify(swapped)
        assert {key: tuple(use) for key, use in weights_of(swapped).uses.items()} == met


@given(schedule=asynchronous(), data=st.data())
@settings(max_examples=50)
def test_a_dropped_step_is_refused(schedule: Schedule, data: st.DataObject) -> None:
    """One alone may go: that of a rank without others, whose next step takes all its gradients on."""
    steps = [(rank, at) for rank, at, op in schedule.ops() if op.kind is OpKind.S]
    assume(len(steps) != 2 or schedule.num_ranks > 1)
    rank, at = data.draw(st.sampled_from(steps))
    rows = [list(row) for row in schedule.ranks]
    dropped = rows[rank].pop(at)
    with pytest.raises(VerificationError) as refused:
        verify(with_ranks(schedule, rows))
    told = (f"{dropped} is missing", "all steps of a schedule apply equally many", "its owners step together")
    assert any(text in str(refused.value) for text in told)


# --------------------------------------------------------------------------------------------------- versions


def held_by_hand(schedule: Schedule, rank: int, stage: int) -> int:
    """Returns the peak of versions that are newest or still to be used, op by op."""
    met = Training(schedule).run().met
    row = schedule.ranks[rank]
    peak = steps = 0
    for at, op in enumerate(row):
        steps += op.kind is OpKind.S and op.stage == stage
        later = {met[stage, other.microbatch][1] for other in row[at + 1 :] if other[:2] == (OpKind.B, stage)}
        peak = max(peak, len({version for version in later if version < steps} | {steps}))
    return peak


@given(schedule=asynchronous())
@settings(max_examples=50)
def test_a_version_is_held_while_it_is_the_newest_or_still_to_be_used(schedule: Schedule) -> None:
    proof = verify(schedule)
    for rank in range(schedule.num_ranks):
        (stage,) = schedule.placement.held(rank)
        assert proof.weight_versions[rank] == held_by_hand(schedule, rank, stage)


def test_a_split_backward_holds_its_version_until_its_weight_gradient() -> None:
    schedule = parse_grid("""
        split p=1 m=2 weights=stash placement=0
        rank 0: F0 F1 I0 W0 S0 I1 W1 S1
    """)
    assert weights_of(schedule).changes == ({Op(OpKind.S, 0, 0): 1, Op(OpKind.W, 0, 1): -1},)
    assert verify(schedule).weight_versions == (2,)


def test_chunks_of_a_rank_count_apart() -> None:
    schedule = parse_grid("""
        loop p=1 m=2 weights=stash placement=0,0
        rank 0: 0F0 1F0 0F1 1F1 1B0 1S0 0B0 0S0 1B1 1S1 0B1 0S1
    """)
    proof = verify(schedule)
    assert (proof.weight_versions, proof.staleness) == ((2,), (1, 1))


# --------------------------------------------------------------------------------------------------- refusals

REFUSED = {
    "a step inside a flush": (
        "flushed p=1 m=2 weights=flush placement=0\nrank 0: F0 B0 S0 F1 B1",
        "rank 0 position 2: 0S0 may not occur under weight rule flush",
    ),
    "a gradient that is never applied": (
        "left p=1 m=2 weights=stash placement=0\nrank 0: F0 B0 S0 F1 B1",
        "rank 0: 0S1 is missing; the gradient of 0B1 (position 4) is never applied",
    ),
    "a step before its backward": (
        "early p=1 m=2 weights=stash placement=0\nrank 0: F0 B0 S0 F1 S1 B1",
        "rank 0: 0S1 is missing; the gradient of 0B1 (position 5) is never applied",
    ),
    "a step of the next microbatch's gradient": (
        "early p=1 m=3 weights=stash placement=0\nrank 0: F0 B0 S0 F1 F2 S1 B1 B2 S2",
        "rank 0 position 5: 0S1 waits for 0B1 (rank 0 position 6)",
    ),
    "a step that names an older microbatch": (
        "older p=1 m=2 weights=stash placement=0\nrank 0: F0 F1 B0 B1 S0",
        "rank 0 position 4: 0S0 is not named after the last gradient it applies, that of 0B1 (position 3)",
    ),
    "a step that applies nothing": (
        "idle p=1 m=2 weights=latest placement=0\nrank 0: F0 F1 B0 B1 S1 S0",
        "rank 0 position 5: 0S0 applies nothing; no gradient of its stage was made since 0S1 (position 4)",
    ),
    "a step that applies more than others": (
        "uneven p=1 m=4 weights=stash placement=0\nrank 0: F0 B0 S0 F1 B1 F2 B2 S2 F3 B3 S3",
        "rank 0 position 7: 0S2 applies 2 microbatches (1 2), but rank 0 position 2: 0S0 applies 1 microbatch (0); "
        "all steps of a schedule apply equally many",
    ),
    "owners that step differently often": (
        "apart p=2 m=3 weights=stash placement=0/1\nrank 0: F0 B0 S0 F2 B2 S2\nrank 1: F1@1 B1@1 S1@1",
        "stage 0 is stepped 2 times on rank 0, 1 times on rank 1; its owners step together",
    ),
    "a version that does not exist yet": (
        "late p=2 m=3 weights=vertical_sync placement=0,1\n"
        "rank 0: F0 B0 S0 F1 B1 S1 F2 B2 S2\nrank 1: F0 B0 F1 S0 B1 S1 F2 B2 S2",
        "1F1 (rank 1 position 2) needs version 1 of stage 0, which 0F1 (rank 0 position 3) used; 1S0 makes it only at "
        "position 3",
    ),
    "a version that never exists": (
        "coarse p=3 m=4 weights=vertical_sync placement=0,1/0,2\n"
        "rank 0: F0 B0 S0 F1@1 B1@1 S1@1 F2 B2 S2 F3@1 B3@1 S3@1\nrank 1: F0 B0 S0 F2 B2 S2\n"
        "rank 2: F1@1 B1@1 S1@1 F3@1 B3@1 S3@1",
        "1F1@1 (rank 2 position 0) needs version 1 of stage 0, which 0F1@1 (rank 0 position 3) used; stage 1 has no "
        "version made of the same microbatches (0)",
    ),
    "a third version": (
        "short p=3 m=3 weights=double_buffered placement=0,1,2\n"
        "rank 0: F0 F1 F2 B0 S0 B1 S1 B2 S2\nrank 1: F0 F1 B0 S0 F2 B1 S1 B2 S2\nrank 2: F0 B0 S0 F1 B1 S1 F2 B2 S2",
        "0F2 (rank 0 position 2) is of step 2 and needs version 1; 0S0 makes it only at position 4, and older ones are "
        "not kept; let a step take at least as many microbatches as there are ranks",
    ),
    "stages that step with other microbatches": (
        "crossed p=2 m=4 weights=double_buffered placement=0,1\n"
        "rank 0: F0 F1 F2 F3 B0 B1 S1 B2 B3 S3\nrank 1: F0 F1 F2 F3 B0 B2 S2 B1 B3 S3",
        "rank 1 position 6: 1S2 applies 2 microbatches (0 2); stage 0 makes version 1 of others, and under "
        "double_buffered all stages step alike",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_schedule_whose_rule_cannot_hold_is_refused_with_its_place(case: str) -> None:
    grid, said = REFUSED[case]
    with pytest.raises(VerificationError) as refused:
        verify(parse_grid(grid))
    assert said in str(refused.value)


@pytest.mark.parametrize("build", [pipedream, pipemare])
def test_the_rule_holds_for_whatever_p_and_m(build: Callable[[int, int], Schedule]) -> None:
    for num_ranks, num_microbatches in SIZES:
        verify(build(num_ranks, num_microbatches))


def test_two_versions_do_from_one_microbatch_less_than_ranks_on_and_no_sooner() -> None:
    """The paper asks for p; the order itself needs p-1."""
    for num_ranks in range(3, 7):
        enough = as_2bw(num_ranks, per_version=num_ranks - 1)
        assert verify(enough).weight_versions == (2,) * num_ranks
        with pytest.raises(VerificationError, match="older ones are not kept"):
            verify(as_2bw(num_ranks, per_version=num_ranks - 2))


def as_2bw(num_ranks: int, per_version: int) -> Schedule:
    """Returns the order of 2BW with versions of fewer microbatches than ranks."""
    longer = pipedream_2bw(num_ranks, 4 * per_version * num_ranks)
    rows = []
    for ops in longer.ranks:
        kept = [op for op in ops if op.kind is not OpKind.S]
        rows.append([
            other
            for op in kept
            for other in ([op, op._replace(kind=OpKind.S)] if is_last(op, per_version) else [op])
        ])  # fmt: skip
    return with_ranks(longer, rows)


def is_last(op: Op, per_version: int) -> bool:
    return op.kind is OpKind.B and op.microbatch % per_version == per_version - 1


# ------------------------------------------------------------------------------------- steps of several owners


def test_a_step_waits_for_the_other_owners_and_a_cycle_through_it_is_shown() -> None:
    schedule = parse_grid("""
        knot p=3 m=4 weights=stash placement=0,2/1,2
        rank 0: F0 B0 S0 F2 B2 S2
        rank 1: F1@1 B1@1 S1@1 F3@1 B3@1 S3@1
        rank 2: F0 B0 S0 F2 B2 S2 F1@1 B1@1 S1@1 F3@1 B3@1 S3@1
    """)
    with pytest.raises(VerificationError) as refused:
        verify(schedule)
    program = lower(schedule)
    assert str(refused.value).splitlines()[0] == "knot deadlocks, in a cycle:"
    for rank, text in ((0, "0S0"), (1, "0B1@1"), (2, "1F2")):
        at = [str(entry) for entry in program.ranks[rank]].index(text)
        assert f"  rank {rank} position {at}: {text} waits for" in str(refused.value)
