"""From a profile to stages, a step and its memory: by hand, and beside what a run really holds."""

import copy
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from tests.profiler.ticking import by_hand
from torch import Tensor, nn

import penstock as ps
from penstock.ir.ops import ORDERED
from penstock.ir.program import Program
from penstock.lowering import lower
from penstock.profiler import cluster_of, layer_costs, prediction
from penstock.profiler.running import as_run
from penstock.profiler.storage import most_held
from penstock.profiler.values import MessageCosts
from penstock.runtime.split_backward import tape
from penstock.schedules import named_schedule
from penstock.train.config import ModelConfig
from penstock.train.gpt import build_gpt, lm_loss

MESSAGES = MessageCosts(1.0, 0.25, 3.0, 0.5, 7.0, 0.125)
"""A boundary of 8 bytes: 3 to send, 7 to take, 7 + 1 under way."""


def program(name: str, num_microbatches: int = 4) -> Program:
    return lower(named_schedule(name, num_ranks=2, num_microbatches=num_microbatches))


def test_layers_behind_another_take_what_they_save_there_less() -> None:
    costs = ps.predict(by_hand(), program("gpipe")).costs
    assert costs.forward == (19, 19)  # 1 + 9 + 9
    assert costs.backward == (37, 37)  # 1 + 19 + 19, less 4 + 4 on one microbatch of four


def test_split_backwards_take_their_own_forward_and_halves() -> None:
    apart = ps.predict(by_hand(), program("zb_h2")).costs
    assert max(apart.per_stage("forward", 2)) == 21
    assert apart.per_stage("input_grad", 2)[0] == 23  # 1 + 11 + 11
    assert apart.per_stage("weight_grad", 2)[0] == 15 - 2  # 1 + 7 + 7, less 4 + 4 on one microbatch of four


def test_an_i_with_its_w_right_behind_it_is_one_full_backward() -> None:
    given = program("zb_h1")
    behind = "".join(entry.kind.name for entry in given.ranks[0] if len(entry) == 4)
    assert "IW" in behind
    expected = ps.predict(by_hand(), given)
    ran = "".join(span.op.kind.name for span in expected.timeline.by_rank[0])
    assert ran == behind.replace("IW", "B")
    assert expected.costs.per_stage("backward", 2)[0] == 37


def test_overlapped_pairs_stay_pairs_where_a_w_is_gone() -> None:
    given = program("dualpipe_v", 8)
    ran = as_run(given)
    ops = [[entry for entry in entries if entry.kind in ORDERED] for entries in (given.ranks[0], ran.ranks[0])]
    assert len(ops[1]) < len(ops[0])
    pairs = [
        [row[start : start + 2] for start in each.schedule.overlapped[0]]
        for row, each in zip(ops, (given, ran), strict=True)
    ]
    assert pairs[0] == pairs[1] != []
    assert ps.predict(by_hand(), given).timeline.makespan > 0


def test_messages_take_time_of_both_ranks_and_of_the_link() -> None:
    expected = ps.predict(by_hand(messages=MESSAGES), program("gpipe", 1))
    assert expected.costs.forward == (19 + 3, 19 + 7)
    assert expected.costs.backward == (31 + 7, 31 + 3)
    # F0, under way, F1, B1, under way, B0: ends' parts in the ops, 8 on the link
    assert expected.timeline.makespan == 22 + 8 + 26 + 34 + 8 + 38


def test_boundaries_within_a_rank_take_nothing() -> None:
    parts = ps.predict(by_hand(messages=MESSAGES), program("zb_v")).parts
    assert parts.transfer[ps.OpKind.F] == (0, 7, 0, 7)


def test_the_step_has_what_lies_outside_its_program() -> None:
    assert ps.predict(by_hand(step_seconds=5.0), program("gpipe")).seconds == 5 + 6 * 19 - 19 + 5 * 37


def test_recomputed_layers_keep_their_input_and_run_again() -> None:
    plain = ps.predict(by_hand(), program("gpipe")).costs
    again = ps.predict(by_hand(), program("gpipe"), recompute=(True,) * 4).costs
    assert again.backward == tuple(seconds + 20 for seconds in plain.per_stage("backward", 2))
    assert plain.activation_bytes == (108, 108)  # 50 + 50, and what passes between the two
    assert again.activation_bytes == (8, 8)
    with pytest.raises(ps.UserError, match="2 choices for 4 layers"):
        ps.predict(by_hand(), program("gpipe"), recompute=(True, False))


def test_gradients_wait_to_be_added_up_to_what_the_runtime_gathers() -> None:
    assert prediction.GATHERED_BYTES == 4 * tape._GATHERED_NUMBERS


def test_layer_costs_split_the_full_backward_as_its_halves_are() -> None:
    costs = layer_costs(by_hand())
    assert costs.forward == (9,) * 4
    assert costs.input_grad == pytest.approx((19 * 11 / 18,) * 4)
    assert costs.weight_grad == pytest.approx((19 * 7 / 18,) * 4)


def test_the_cluster_has_the_links_that_were_measured() -> None:
    link = cluster_of(by_hand(messages=MESSAGES), 2).link(0, 1)
    assert (link.latency_seconds, link.bytes_per_second) == (7, 8)


Loss = Callable[[Tensor, Tensor], Tensor]


def uneven() -> tuple[nn.Module, Tensor, Tensor, Loss]:
    torch.manual_seed(0)
    widths = (64, 256, 128, 512, 64, 384, 256, 64)
    layers = [layer for pair in pairwise(widths) for layer in (nn.Linear(*pair), nn.ReLU())]
    return nn.Sequential(*layers), torch.randn(256, 64), torch.randn(256, 64), nn.functional.mse_loss


def decoder() -> tuple[nn.Module, Tensor, Tensor, Loss]:
    tokens = torch.randint(0, 256, (8, 64))
    model = build_gpt(ModelConfig(layers=3, width=32, heads=2, context=64), seed=0)
    return model, tokens, tokens, lm_loss


SCHEDULES = ("gpipe", "one_f_one_b", "zb_h1", "zb_h2", "zb_v", "chimera")
_STEPS = 3


def held(pipe: ps.Pipeline, inputs: Tensor, targets: Tensor) -> list[float]:
    """Bytes that a rank holds at most, of several steps: what another thread frees is not seen, and counts on."""
    found = []
    for step in range(1 + _STEPS):
        for parameter in pipe.parameters():
            parameter.grad = None
        with most_held(torch.device("cpu")) as peak:
            pipe.step(inputs, targets)
        rings = sum(buffer.nbytes for buffer in pipe._links._rings.values())
        if step:  # the first learns the shapes
            found.append(peak() + rings + sum(p.nbytes for p in pipe.parameters()))
    return found


@pytest.mark.parametrize("make", [uneven, pytest.param(decoder, marks=pytest.mark.slow)])
def test_peak_memory_is_within_a_tenth_of_what_a_run_holds(
    make: Callable[[], tuple[nn.Module, Tensor, Tensor, Loss]],
) -> None:
    model, inputs, targets, loss = make()
    size = len(inputs) // 8
    profile = ps.profile(model, inputs[:size], targets[:size], loss_fn=loss, seconds=0.01, recompute=False)

    def rank(transport: ps.LoopbackTransport, schedule: str) -> tuple[Program, list[float]]:
        pipe = ps.Pipeline(copy.deepcopy(model), loss, transport=transport, schedule=schedule, num_microbatches=8)
        return pipe.plan.proof.program, held(pipe, inputs, targets)

    for name in SCHEDULES:
        ranks = ps.run_ranks(lambda transport, name=name: rank(transport, name), 2, timeout_seconds=60)
        expected = ps.predict(profile, ranks[0][0]).peak_bytes
        for number, (_, steps) in enumerate(ranks):
            nearest = min(steps, key=lambda bytes_held, wanted=expected[number]: abs(bytes_held - wanted))
            assert expected[number] == pytest.approx(nearest, rel=0.1), (name, number)
