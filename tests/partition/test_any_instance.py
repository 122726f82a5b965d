"""Whatever layers, devices, links and memory: never slower than even stages, and within the memory of each device."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given, settings

import penstock as ps
from penstock.errors import PartitionError
from penstock.partition import LayerCosts, Partition, best_partition

Instance = tuple[LayerCosts, ps.Schedule, ps.Cluster, bool]


@st.composite
def instances(draw: st.DrawFn) -> Instance:
    name = draw(st.sampled_from(("one_f_one_b", "gpipe", "zb_h1", "interleaved_1f1b", "zb_v", "eager_1f1b")))
    p = draw(st.integers(2, 3))
    schedule = ps.named_schedule(name, num_ranks=p, num_microbatches=draw(st.sampled_from((3, 6))))
    layers = schedule.num_stages + draw(st.integers(0, 8))

    def row(low: float, high: float) -> list[float]:
        return draw(st.lists(st.floats(low, high), min_size=layers, max_size=layers))

    costs = LayerCosts(
        row(0, 4),
        row(0, 4),
        row(0, 4),
        parameter_bytes=row(0.1, 4),
        optimizer_bytes=row(0, 2),
        activation_bytes=row(0, 4),
        deferred_bytes=row(0, 1),
        boundary_bytes=row(0, 1),
    )
    room = draw(st.lists(st.sampled_from((40.0, 80.0, 160.0, float("inf"))), min_size=p, max_size=p))
    speeds = draw(st.lists(st.sampled_from((0.5, 1.0, 2.0)), min_size=p, max_size=p))
    devices = tuple(ps.Device(*pair) for pair in zip(room, speeds, strict=True))
    link = ps.Link(draw(st.sampled_from((0.0, 0.5))), draw(st.sampled_from((1.0, 4.0, float("inf")))))
    return costs, schedule, ps.Cluster(devices, ((p, link),)), draw(st.booleans())


@settings(max_examples=15, deadline=None)
@given(instances())
def test_it_fits_and_is_never_slower_than_even_stages_that_fit(one: Instance) -> None:
    costs, schedule, cluster, recompute = one
    even = costs.stage_costs(Partition.uniform(costs.num_layers, schedule.num_stages))
    plain = ps.simulate(schedule, even, cluster)

    def fits(timeline: ps.Timeline) -> bool:
        devices = zip(timeline.peak_memory, cluster.devices, strict=True)
        return all(held <= device.memory_bytes * (1 + 1e-9) for held, device in devices)

    try:
        found = best_partition(costs, schedule, cluster=cluster, recompute=recompute)
    except PartitionError:
        assert not fits(plain), "even stages would have fitted"
        return
    timeline = ps.simulate(schedule, costs.stage_costs(found.partition, found.recompute), cluster)
    assert found.seconds == timeline.makespan
    assert fits(timeline)
    assert recompute or not any(found.recompute)
    if fits(plain):
        assert found.seconds <= plain.makespan * (1 + 1e-9)
