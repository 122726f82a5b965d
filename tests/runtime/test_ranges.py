"""torch.profiler shows every instruction by kind, stage and microbatch."""

from collections import Counter

from tests.runtime.runs import mse
from tests.runtime.zoo import batch, made
from torch.profiler import ProfilerActivity, profile

import penstock as ps
from penstock.runtime.ranges import range_name


def test_every_instruction_has_its_range_while_a_profiler_records_and_none_otherwise() -> None:
    def rank(transport: ps.LoopbackTransport) -> Counter[str]:
        pipe = ps.Pipeline(
            made("dense"), mse, transport=transport, schedule=ps.zb_v(1, 2), num_microbatches=2, partition=[3, 3]
        )
        pipe.step(*batch(4))
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            pipe.step(*batch(4))
        pipe.step(*batch(4))
        names = [event.name for event in profiled.events() if event.name.startswith("penstock ")]
        assert set(names) == {range_name(entry) for entry in pipe.plan.proof.program.ranks[0]}
        inside = {event.name: {child.name for child in event.cpu_children} for event in profiled.events()}
        assert "aten::linear" in inside["penstock F stage 1 microbatch 0"]
        return Counter(names)

    (found,) = ps.run_ranks(rank, 1)
    assert found["penstock F stage 0 microbatch 1"] == 1
    assert found["penstock W stage 1 microbatch 1"] == 1
    assert sum(found.values()) == 12


def test_a_message_is_named_with_its_other_end() -> None:
    program = ps.lower(ps.gpipe(2, 1))
    assert list(map(range_name, program.ranks[1])) == [
        "penstock RECV_F stage 1 microbatch 0 from rank 0",
        "penstock F stage 1 microbatch 0",
        "penstock B stage 1 microbatch 0",
        "penstock SEND_B stage 1 microbatch 0 to rank 0",
    ]
