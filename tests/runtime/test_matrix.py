"""Every schedule × everything a user may want of it, over loopback, against the unsplit model in fp64.

By default a diagonal: every schedule and every case once. All cells: `pytest -m matrix`.
"""

from __future__ import annotations

import re

import pytest
from tests.runtime.matrix.cases import CASES
from tests.runtime.matrix.running import allowed, arguments_of, cells, over_loopback, schedule_of
from tests.runtime.runs import Counting

import penstock as ps
from penstock.errors import ScheduleError
from penstock.ir import Op, OpKind
from penstock.schedules.registry import SCHEDULES

SMALL = {"num_ranks": 2, "num_microbatches": 4}
SIZES = [(2, 4), (3, 5), (4, 8), (4, 2)]


def diagonal() -> list[tuple[str, str]]:
    """Returns every case once, each with the schedule that it is for and that waited longest for its turn."""
    waiting = list(SCHEDULES)
    found = []
    for number, case in CASES.items():
        name = next(name for name in waiting if schedule_of(name, case, **SMALL) is not None)
        waiting.remove(name)
        waiting.append(name)
        found.append((name, number))
    return found


def test_the_diagonal_has_every_schedule_and_every_case() -> None:
    found = diagonal()
    assert {name for name, _ in found} == set(SCHEDULES)
    assert [case for _, case in found] == list(CASES)


@pytest.mark.parametrize(("name", "case"), diagonal())
def test_the_diagonal_is_the_unsplit_model(name: str, case: str) -> None:
    error = over_loopback(name, case, **SMALL)
    assert error.size <= allowed(name, case, **SMALL), error


@pytest.mark.parametrize("name", [name for name in SCHEDULES if schedule_of(name, CASES["adapters"], **SMALL)])
def test_no_gradient_goes_where_nothing_is_trained(name: str) -> None:
    """Adapters on the last half of the stages: below the first of them nothing but forwards."""
    case = CASES["adapters"]
    schedule = schedule_of(name, case, **SMALL)
    assert schedule is not None
    model = case.model(schedule.num_stages)

    def rank(transport: ps.LoopbackTransport) -> int:
        counting = Counting(transport)
        pipe = ps.Pipeline(model, case.loss_fn, transport=counting, **arguments_of(case, schedule))
        for k in range(2):
            pipe.step(*case.data(pipe.num_microbatches, k, 0))
        return sum(channel.kind == OpKind.B for channel, _ in counting.sent)

    def travels(op: Op) -> bool:
        ranks = {schedule.placement.rank_of(stage, op.replica) for stage in (op.stage - 1, op.stage)}
        return op.kind == OpKind.F and op.stage > schedule.num_stages // 2 and len(ranks) == 2

    wanted = sum(travels(op) for _, _, op in schedule.ops())
    assert sum(ps.run_ranks(rank, SMALL["num_ranks"], timeout_seconds=30)) == 2 * wanted


@pytest.mark.matrix
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("num_ranks", "num_microbatches"), SIZES)
@pytest.mark.parametrize("case", CASES)
def test_every_cell_is_the_unsplit_model(case: str, num_ranks: int, num_microbatches: int) -> None:
    sizes = {"num_ranks": num_ranks, "num_microbatches": num_microbatches}
    wrong = {}
    for name in (name for name, other in cells(**sizes) if other == case):
        try:
            error = over_loopback(name, case, **sizes)
        except Exception as raised:  # the other cells of this row are of interest too
            wrong[name] = f"{type(raised).__name__}: {raised}"
        else:
            if not error.size <= allowed(name, case, **sizes):
                wrong[name] = str(error)
    assert not wrong, "\n".join(f"{name}: {what}" for name, what in wrong.items())


@pytest.mark.matrix
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", [name for name in SCHEDULES if name not in ("zb_auto", "zb_v_greedy")])
def test_sizes_are_proven_or_refused_with_sizes_that_work(name: str) -> None:
    """Any p and m: the program is verified, or one sentence gives an argument, its value and one that works, or that is
    refused for the other argument alone."""
    for num_ranks in range(1, 7):
        for num_microbatches in range(1, 9):
            sizes = {"num_ranks": num_ranks, "num_microbatches": num_microbatches}
            for _ in range(4):
                advice = _followed(name, sizes)
                if advice == sizes:
                    break
                sizes = advice
            assert _followed(name, sizes) == sizes


def _followed(name: str, sizes: dict[str, int]) -> dict[str, int]:
    """Returns the sizes if a schedule of them is proven, else those that its refusal names."""
    try:
        ps.verify(ps.lower(ps.named_schedule(name, **sizes)))
    except ScheduleError as error:
        told = re.findall(r"(num_ranks|num_microbatches)=(\d+)", str(error))
        assert told, f"{sizes}: {error}"
        assert str(sizes[told[0][0]]) == told[0][1], f"{sizes}: {error}"
        return sizes | {argument: int(value) for argument, value in told}
    return sizes
