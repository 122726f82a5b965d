"""The engine knows no schedule by name: any order of F and B that is proven runs, with several stages a rank."""

from random import Random

import pytest
import torch
from tests.random_schedules import needs_of
from tests.runtime.runs import assert_close, mse, run
from tests.runtime.zoo import batch, made
from torch import nn

import penstock as ps
from penstock.ir import Op, OpKind, Placement, Schedule, WeightRule
from penstock.testing import reference_gradients

PLACEMENTS = {
    "looped v=2": Placement.looped(2, 2),
    "V": Placement.replicas((0, 1, 1, 0)),
    "back and forth": Placement.replicas((1, 0, 1, 1)),
    "looped v=2 on 3": Placement.looped(3, 2),
}


def shuffled(placement: Placement, num_microbatches: int, seed: int) -> Schedule:
    """Returns the ranks' parts of one random order of all forwards and backwards."""
    random = Random(seed)
    ops = {
        Op(kind, s, i)
        for kind in (OpKind.F, OpKind.B)
        for s in range(placement.num_stages)
        for i in range(num_microbatches)
    }
    needs, done = needs_of(ops), set()
    rows: list[list[Op]] = [[] for _ in range(placement.num_ranks)]
    while len(done) < len(ops):
        ready = sorted(op for op in ops - done if done.issuperset(needs[op]))
        op = random.choice(ready)
        done.add(op)
        rows[placement.rank_of(op.stage)].append(op)
    return Schedule(f"shuffled {seed}", placement, num_microbatches, tuple(map(tuple, rows)))


# The model of six layers everywhere, those of four where there are four stages.
CASES = [(placement, "dense") for placement in PLACEMENTS]
CASES += [(placement, name) for placement in ("looped v=2", "V") for name in ("skips", "mixed_dtypes")]


@pytest.mark.parametrize(("placement", "name"), CASES)
def test_any_order_on_any_placement_gives_the_unsplit_gradients(placement: str, name: str):
    """To 1e-12: microbatches are added up in another order."""
    table = PLACEMENTS[placement]
    model, data = made(name), batch(6)
    _, grads = reference_gradients(model, mse, *data, num_microbatches=3)
    for seed in range(4):
        schedule = shuffled(table, 3, seed)
        found = run(model, [data], num_ranks=table.num_ranks, schedule=schedule)
        assert_close(found.grads, grads)
        again = run(model, [data, data], num_ranks=table.num_ranks, schedule=schedule)
        assert_close(again.grads, {name: 2 * grad for name, grad in grads.items()})


def test_neighbours_on_one_rank_exchange_nothing():
    schedule = shuffled(Placement.replicas((0, 0, 1, 1)), 2, 0)
    found = run(made("skips"), [batch()], num_ranks=2, schedule=schedule)
    assert {(channel.source, channel.target) for sent in found.sent for channel, _ in sent} == {(0, 1), (1, 0)}


def refused(schedule: Schedule) -> list[str]:
    """Returns why a pipeline of 4 layers on 2 ranks refuses to train with `schedule`, from both ranks."""
    told = ["", ""]

    def rank(transport: ps.LoopbackTransport) -> None:
        try:
            ps.Pipeline(nn.Sequential(*(nn.Identity() for _ in range(4))), mse, transport=transport, schedule=schedule)
        except ps.UserError as error:
            told[transport.rank] = str(error)

    ps.run_ranks(rank, 2, timeout_seconds=5)
    return told


def test_activations_kept_by_any_rank_come_back_in_time():
    """Both ranks keep for one another; the last one offloads what its loss needs."""
    row0 = "F0 OFFLOAD0 F1 RELOAD0 B0 B1"
    row1 = "F0 OFFLOAD0 RELOAD0 B0 F1 OFFLOAD1 RELOAD1 B1"
    rows = tuple(
        tuple(Op(OpKind[word[:-1]], stage, int(word[-1])) for word in row.split())
        for stage, row in enumerate((row0, row1))
    )
    schedule = Schedule("kept apart", Placement.looped(2), 2, rows, keepers=(1, 0))
    for name in ("dense", "attention", "skips", "mixed_dtypes", "tuples"):
        model, data = made(name), batch(4)
        _, grads = reference_gradients(model, mse, *data, num_microbatches=2)
        for steps in (1, 3):
            found = run(model, [data] * steps, num_ranks=2, schedule=schedule)
            assert_close(found.grads, {name: steps * grad for name, grad in grads.items()})


def test_a_schedule_without_backwards_does_not_train():
    """Symptom: step() left no gradients and said nothing. Cause: nobody looked at the weight rule."""
    rows = tuple((Op(OpKind.F, stage, 0),) for stage in range(2))
    for text in refused(Schedule("only forward", Placement.looped(2), 1, rows, WeightRule.FROZEN)):
        assert "weight rule frozen" in text


def test_a_schedule_that_would_deadlock_is_refused_before_the_first_message():
    row0 = (Op(OpKind.B, 0, 0), Op(OpKind.F, 0, 0))
    row1 = (Op(OpKind.F, 1, 0), Op(OpKind.B, 1, 0))
    for text in refused(Schedule("backward first", Placement.looped(2), 1, (row0, row1))):
        assert "0B0" in text
    assert torch.is_grad_enabled()
