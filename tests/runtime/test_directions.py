"""Several copies of a stage in one pipeline: they start equal, their gradients are summed, and they stay equal."""

from __future__ import annotations

import copy
from random import Random
from typing import Any

import pytest
import torch
from tests.random_schedules import needs_of
from tests.runtime.runs import Poisoning, assert_close, grads_of, mse
from tests.runtime.zoo import WIDTH, batch, made
from torch import Tensor, nn

import penstock as ps
from penstock.errors import BatchError, ModelError
from penstock.ir import Op, OpKind, Placement, Schedule
from penstock.runtime.shared_weights.owners import reductions_of
from penstock.testing import reference_gradients, reference_step


def wide(num_layers: int = 4) -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(num_layers))).double()


def on_ranks(schedule: Schedule, model: Any, function: Any, **arguments: Any) -> list[Any]:
    """Returns what `function` returned of each rank's pipeline; every buffer to receive into is full of NaN."""

    def rank(transport: ps.LoopbackTransport) -> Any:
        pipe = ps.Pipeline(model, mse, transport=Poisoning(transport), schedule=schedule, **arguments)
        return function(pipe)

    return ps.run_ranks(rank, schedule.num_ranks, timeout_seconds=20)


def shuffled(placement: Placement, num_microbatches: int, seed: int) -> Schedule:
    """Returns one random order of all forwards and backwards; microbatches go to the rows in turn."""
    random, rows = Random(seed), placement.num_replicas
    ops = {
        Op(kind, s, i, i % rows)
        for kind in (OpKind.F, OpKind.B)
        for s in range(placement.num_stages)
        for i in range(num_microbatches)
    }
    needs, done = needs_of(ops), set()
    ranks: list[list[Op]] = [[] for _ in range(placement.num_ranks)]
    while len(done) < len(ops):
        op = random.choice(sorted(op for op in ops - done if done.issuperset(needs[op])))
        done.add(op)
        ranks[placement.rank_of(op.stage, op.replica)].append(op)
    return Schedule(f"shuffled {seed}", placement, num_microbatches, tuple(map(tuple, ranks)))


def check(schedule: Schedule, num_layers: int, steps: int = 2) -> None:
    """Asserts gradients of all copies after steps that add up: close to the unsplit model's, and the same bits."""
    model, data = wide(num_layers), batch(2 * schedule.num_microbatches)
    loss, grads = reference_gradients(model, mse, *data, num_microbatches=schedule.num_microbatches)
    expected = {name: steps * grad for name, grad in grads.items()}
    parts = on_ranks(schedule, model, lambda pipe: ([pipe.step(*data) for _ in range(steps)], grads_of(pipe)))
    merged: dict[str, Tensor] = {}
    for losses, found in parts:
        assert all(torch.equal(each, loss) for each in losses), "the loss has the unsplit model's bits on every rank"
        for name, grad in found.items():
            assert torch.equal(grad, merged.setdefault(name, grad)), f"copies of {name} differ"
    assert_close(merged, expected)


@pytest.mark.parametrize(("num_ranks", "num_replicas"), [(2, 2), (4, 2), (4, 4)])
def test_chimera_gives_the_unsplit_gradients_for_every_m(num_ranks: int, num_replicas: int) -> None:
    for num_microbatches in range(1, 10):
        check(ps.chimera(num_ranks, num_microbatches, num_replicas=num_replicas), num_ranks)


def test_chimera_on_eight_ranks() -> None:
    check(ps.chimera(8, 11, num_replicas=4), 8)


def test_owners_that_reduce_in_different_orders_do_not_hang() -> None:
    """Symptom it would have: ranks 0 and 3 each wait for the other's first sum, which is of another stage."""

    def order(schedule: Schedule, rank: int) -> list[int]:
        return list(reductions_of(ps.lower(schedule), rank).values())

    differ = [m for m in range(1, 12) if order(ps.chimera(4, m), 0) != order(ps.chimera(4, m), 3)]
    assert differ
    for num_microbatches in differ:
        check(ps.chimera(4, num_microbatches), 4, steps=3)


PLACEMENTS = {
    "down and up": ((0, 1), (1, 0)),
    "three ways": ((0, 1, 2), (1, 2, 0), (2, 1, 0)),
    "replicated first stage": ((0, 2), (1, 2)),
    "replicated last stage": ((0, 1), (0, 2)),
    "loops that meet": ((0, 1, 0, 1), (1, 0, 1, 0)),
    "V and its mirror": ((0, 1, 1, 0), (1, 0, 0, 1)),
    "one rank holds all": ((0, 0), (1, 0)),
}


@pytest.mark.parametrize("name", PLACEMENTS)
def test_any_order_on_any_rows_gives_the_unsplit_gradients(name: str) -> None:
    placement = Placement.replicas(*PLACEMENTS[name])
    for seed in range(4):
        check(shuffled(placement, 5, seed), placement.num_stages)


def test_gradients_from_before_the_pipeline_count_once_on_every_copy() -> None:
    """Symptom: copies drifted apart. Cause: the copy of a stage had no gradient where the user's module had one."""
    model, data = wide(), batch(8)
    reference_step(model, mse, *data, num_microbatches=4)
    before = {name: grad.clone() for name, grad in grads_of(model).items()}
    for found in on_ranks(ps.chimera(4, 4), model, lambda pipe: (pipe.step(*data), grads_of(pipe))[1]):
        for name, grad in found.items():
            torch.testing.assert_close(grad, 2 * before[name], rtol=1e-12, atol=1e-14)


def test_a_direction_without_microbatches_still_sums() -> None:
    check(ps.chimera(4, 1), 4)


def test_training_keeps_the_copies_equal_to_the_last_bit() -> None:
    model, schedule = wide(), ps.chimera(4, 6)
    oracle = copy.deepcopy(model)
    reference = torch.optim.AdamW(oracle.parameters(), lr=0.01)
    for turn in range(5):
        reference_step(oracle, mse, *batch(12, seed=turn), num_microbatches=6)
        nn.utils.clip_grad_norm_(oracle.parameters(), 0.01)
        reference.step()
        reference.zero_grad()

    def train(pipe: ps.Pipeline) -> tuple[dict[str, Tensor], list[float], dict[str, Tensor]]:
        optimizer = torch.optim.AdamW(pipe.parameters(), lr=0.01)
        norms = []
        for turn in range(5):
            pipe.step(*batch(12, seed=turn))
            norms.append(float(pipe.clip_grad_norm_(0.01)))
            optimizer.step()
            optimizer.zero_grad()
        return pipe.state_dict(), norms, {name: value.detach() for name, value in pipe.named_parameters()}

    parts = on_ranks(schedule, model, train)
    owned = [name for state, _, _ in parts for name in state]
    assert sorted(owned) == sorted(oracle.state_dict()), "every name on one rank"
    assert len({tuple(norms) for _, norms, _ in parts}) == 1
    state = {name: value for own, _, _ in parts for name, value in own.items()}
    for _, _, held in parts:
        assert len(held) == 4  # a stage of each direction, weight and bias
        assert all(torch.equal(value, state[name]) for name, value in held.items())
    for name, value in oracle.state_dict().items():
        torch.testing.assert_close(state[name], value, rtol=1e-9, atol=1e-12)


def test_the_norm_counts_a_parameter_once() -> None:
    model, data = wide(), batch(8)
    _, grads = reference_gradients(model, mse, *data, num_microbatches=4)
    expected = torch.linalg.vector_norm(torch.cat([grad.flatten() for grad in grads.values()]))

    def norm(pipe: ps.Pipeline) -> float:
        pipe.step(*data)
        return float(pipe.clip_grad_norm_(1e9))

    for found in on_ranks(ps.chimera(4, 4), model, norm):
        assert found == pytest.approx(float(expected), rel=1e-13)


def test_copies_take_the_first_owners_weights_at_the_start_and_when_loading() -> None:
    """Each rank builds the model with its own random numbers, as processes without a seed do."""
    whole = wide().state_dict()

    def rank(transport: ps.LoopbackTransport) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
        generator = torch.Generator().manual_seed(transport.rank)
        model = wide()
        for parameter in model.parameters():
            parameter.data.normal_(generator=generator)
        pipe = ps.Pipeline(model, mse, transport=transport, schedule=ps.chimera(4, 4))
        start = {name: value.detach().clone() for name, value in pipe.named_parameters()}
        own = {name: value.clone() for name, value in pipe.state_dict().items()}
        pipe.load_state_dict({name: whole[name] for name in own})
        return own, start, {name: value.detach() for name, value in pipe.named_parameters()}

    parts = ps.run_ranks(rank, 4, timeout_seconds=20)
    owned = {name: value for own, _, _ in parts for name, value in own.items()}
    for _, start, loaded in parts:
        assert all(torch.equal(value, owned[name]) for name, value in start.items())
        assert all(torch.equal(value, whole[name]) for name, value in loaded.items())


def test_a_state_that_does_not_fit_is_told_to_every_rank() -> None:
    def load(pipe: ps.Pipeline) -> str:
        with pytest.raises((ModelError, ps.UserError), match="the state has no 0"):
            pipe.load_state_dict({name: value for name, value in wide().state_dict().items() if name[0] != "0"})
        return ""

    on_ranks(ps.chimera(4, 4), wide(), load)


def test_data_is_wanted_where_any_direction_begins_or_ends() -> None:
    model, (inputs, targets) = wide(), batch(8)

    def lacking(pipe: ps.Pipeline) -> tuple[bool, bool, float]:
        with pytest.raises(BatchError, match=r"got no inputs .* whose has_first_stage is true"):
            pipe.step(inputs if pipe.rank == 0 else None, targets)
        with pytest.raises(BatchError, match=r"got no targets .* whose has_last_stage is true"):
            pipe.step(inputs, targets if pipe.rank == 0 else None)
        with pytest.raises(BatchError, match="8 samples on rank 0 and 4 samples on rank 3"):
            pipe.step(inputs[: 8 if pipe.rank == 0 else 4], targets)
        ends = pipe.has_first_stage, pipe.has_last_stage
        return *ends, float(pipe.step(inputs if ends[0] else None, targets if ends[1] else None))

    parts = on_ranks(ps.chimera(4, 4), model, lacking)
    assert [part[:2] for part in parts] == [(True, True), (False, False), (False, False), (True, True)]


def test_evaluation_runs_on_the_first_direction_and_leaves_no_trace() -> None:
    model, (inputs, targets) = wide(), batch(7)
    expected = float(mse(model(inputs), targets).detach())

    def evaluate(pipe: ps.Pipeline) -> tuple[float, Tensor, bool]:
        loss = float(pipe.evaluate(inputs if pipe.rank == 0 else None, targets if pipe.rank == 3 else None))
        output = pipe.forward(inputs if pipe.rank == 0 else None, broadcast=True)
        pipe.step(*batch(8))
        before = {name: grad.clone() for name, grad in grads_of(pipe).items()}
        pipe.evaluate(inputs, targets)
        return loss, output, all(torch.equal(grad, before[name]) for name, grad in grads_of(pipe).items())

    for loss, output, same in on_ranks(ps.chimera(4, 4), model, evaluate):
        assert loss == pytest.approx(expected, rel=1e-13)
        torch.testing.assert_close(output, model(inputs).detach(), rtol=1e-12, atol=1e-14)
        assert same


def test_keyed_dropout_is_the_same_in_every_direction() -> None:
    model, data = made("dropout"), batch(8)
    _, grads = reference_gradients(model, mse, *data, num_microbatches=4, seed=5)
    parts = on_ranks(ps.chimera(4, 4), model, lambda pipe: (pipe.step(*data), grads_of(pipe))[1], seed=5)
    assert_close({name: grad for found in parts for name, grad in found.items()}, grads)


def test_a_model_that_cannot_be_shared_is_copied_only_where_threads_share_it() -> None:
    model = wide(2)
    modules = on_ranks(ps.chimera(2, 2), model, lambda pipe: [id(p) for p in pipe.parameters()])
    mine = {id(parameter) for parameter in model.parameters()}
    assert [len(mine.intersection(found)) for found in modules] == [2, 2], "each keeps the stage that it owns"
    assert not set(modules[0]) & set(modules[1])
