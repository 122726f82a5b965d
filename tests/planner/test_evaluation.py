"""A candidate's step and memory are those that the simulator has; recomputation is the least that fits."""

from dataclasses import replace

import numpy as np
import pytest
from tests.planner.machines import candidate, costing, fleet

from penstock.costs import StageCosts
from penstock.partition import Partition
from penstock.planner import Fleet
from penstock.planner.candidates import Candidate
from penstock.planner.costing import Costing
from penstock.planner.evaluation import Evaluation, evaluate
from penstock.planner.orders import order_of
from penstock.planner.planning import Planned, _plan
from penstock.simulator import simulate

SHAPES = [
    candidate("one_f_one_b", pipeline=4, data=2),
    candidate("gpipe", pipeline=2, data=4, sharding=1),
    candidate("interleaved_1f1b", pipeline=4, chunks=2, data=2, sharding=2),
    candidate("breadth_first", pipeline=2, chunks=4, data=2, tensor=2),
    candidate("zb_h1", pipeline=4, size=2),
    candidate("zb_h2", pipeline=4, tensor=2),
    candidate("zb_v", pipeline=4, data=2, sharding=3),
    candidate("v_half", pipeline=4, chunks=2),
    candidate("v_min", pipeline=4, chunks=2),
]
SHAPES = [shape._replace(chunks=2) if shape.schedule.startswith(("zb_v", "v_")) else shape for shape in SHAPES]

ONE = candidate("one_f_one_b", pipeline=2, data=4)


def evaluated(machines: Fleet, shape: Candidate, rule: str = "as needed") -> tuple[Costing, Evaluation]:
    known = costing(machines)
    cuts = Partition.uniform(len(known.work.names), shape.num_stages).boundaries
    return known, evaluate(known, shape, cuts, rule)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.schedule)
def test_step_and_memory_are_those_that_simulate_has(shape: Candidate) -> None:
    known, found = evaluated(fleet(), shape)
    plan = _plan(known, found, 128)
    timeline = Planned((plan,), (), (), 1, 1, (found,), known).timeline()
    # There a chunk's reduction runs before its rank is done with the others, where it may have stood still.
    assert timeline.makespan == pytest.approx(found.seconds, rel=2e-2)
    if shape.chunks == 1:
        assert timeline.makespan == pytest.approx(found.seconds, rel=1e-12)
        assert timeline.bubble_fraction == pytest.approx(plan.forecast.bubble_fraction, abs=1e-9)
    assert np.array(timeline.peak_memory) == pytest.approx(np.array(found.memory), rel=0.03)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.schedule)
def test_parts_add_up_to_the_step(shape: Candidate) -> None:
    _, found = evaluated(fleet(), shape, "always")
    assert sum(found.parts) == pytest.approx(found.seconds, rel=1e-12)
    assert min(found.parts) >= 0
    assert found.parts.recompute > 0
    assert (found.parts.collectives > 0) == (shape.degrees.tensor > 1)


def test_each_rank_runs_again_the_fewest_layers_that_fit() -> None:
    shape = candidate("one_f_one_b", pipeline=4)
    _, free = evaluated(fleet(), shape)
    room = max(free.memory) * 0.93
    known, found = evaluated(fleet(memory_bytes=room), shape)
    assert not free.again
    assert found.again and found.lacking <= 0
    assert found.seconds > free.seconds
    order, tables = order_of("one_f_one_b", 4, 16, 1), known.classes(shape.degrees, 1, 0)
    for rank in range(4):
        own = [layer for layer in sorted(found.again) if found.cuts[rank] <= layer < found.cuts[rank + 1]]
        if own:
            saved = tables[0].layers.activation[own[0]] - tables[0].layers.again[own[0]]
            lived = order.moments[rank].live.max()
            assert found.memory[rank] + saved * lived > room, f"rank {rank} would not fit with one layer fewer"


def test_what_does_not_fit_says_so() -> None:
    _, found = evaluated(fleet(memory_bytes=1e6), candidate("one_f_one_b", pipeline=4))
    assert found.lacking == max(found.memory) - 1e6
    assert len(found.again) == 6, "all layers between the ends run again"
    _, never = evaluated(fleet(memory_bytes=1e6), candidate("one_f_one_b", pipeline=4), "never")
    assert not never.again


def test_zero_levels_share_state_among_copies() -> None:
    shapes = [candidate("one_f_one_b", pipeline=2, data=4, sharding=level) for level in range(4)]
    known = costing(fleet())
    fixed = [known.classes(shape.degrees, 1, shape.sharding)[0].fixed.sum() for shape in shapes]
    parameters = known.classes(shapes[0].degrees, 1, 0)[0].layers.parameter.sum() / 2
    assert fixed == pytest.approx([parameters * per for per in (18, 6 + 12 / 4, 2 + 16 / 4, 18 / 4)])


def test_gradients_are_exchanged_at_the_end_below_level_2_and_on_the_way_from_it() -> None:
    slow, shapes = fleet(hosts=8, devices=1), [ONE._replace(sharding=level) for level in range(4)]
    parts = [evaluated(slow, shape)[1].parts for shape in shapes]
    assert [part.sharding > 0 for part in parts] == [False, False, True, True]
    assert parts[0].ending > parts[1].ending > parts[2].ending > parts[3].ending


def test_what_travels_beside_the_compute_takes_its_time_off_the_end() -> None:
    known, shape = costing(fleet(hosts=8, devices=1)), ONE._replace(sharding=1)
    alone = replace(known, overlap=False)
    (hidden,), (bare,) = (one.classes(shape.degrees, 1, 1) for one in (known, alone))
    (ring, *_) = known.layout(shape.degrees).rings
    layers = bare.layers
    exchanged = ring.seconds(layers.gradient) + ring.seconds(layers.parameter)
    assert bare.ending - hidden.ending == pytest.approx(np.minimum(exchanged, layers.seconds.sum(axis=0)), rel=0.5)
    assert (hidden.ending <= bare.ending).all()
    updates = 2 * (layers.parameter + layers.gradient + layers.optimizer) / 4 / 1e11
    assert bare.ending == pytest.approx(exchanged + updates)


def test_a_tied_head_on_the_rank_of_the_embedding_takes_no_memory_of_its_own() -> None:
    known = costing(fleet())
    shape = candidate("zb_v", pipeline=2, chunks=2)
    apart = known.work._replace(tied=False)
    assert known.work.tied
    cuts = (0, 2, 4, 6, 8)
    tied, untied = (evaluate(replace(known, work=work), shape, cuts, "never") for work in (known.work, apart))
    head = known.classes(shape.degrees, 1, 0)[0].fixed[-1]
    assert untied.memory[0] - tied.memory[0] == pytest.approx(head)
    assert untied.memory[1] == tied.memory[1]


@pytest.mark.parametrize(("kept", "waiting"), [(5, 3), (1, 9)])
def test_the_moments_of_an_order_are_its_peaks(kept: int, waiting: int) -> None:
    order = order_of("zb_h1", 4, 8, 1)
    simulated = simulate(order.schedule, StageCosts(activation_bytes=kept, deferred_bytes=waiting)).peak_memory
    sizes = np.full(4, float(kept)), np.full(4, float(waiting))
    assert [one.most(*sizes) for one in order.moments] == list(simulated)


def test_the_memory_of_a_rank_by_hand() -> None:
    # Rank 1 of four under 1F1B: layers 2 and 3, three microbatches in flight, two buffers each for what comes in and
    # for the gradient that comes back, and none on the far sides of the model.
    known, found = evaluated(fleet(), candidate("one_f_one_b", pipeline=4), "never")
    layers = known.classes(found.candidate.degrees, 1, 0)[0].layers
    state = (layers.parameter + layers.gradient + layers.optimizer)[2:4].sum()
    assert found.memory[1] == pytest.approx(state + 3 * layers.activation[2:4].sum() + 4 * layers.boundary[1])
    state = (layers.parameter + layers.gradient + layers.optimizer)[:2].sum()
    assert found.memory[0] == pytest.approx(state + 4 * layers.activation[:2].sum() + 2 * layers.boundary[1])
