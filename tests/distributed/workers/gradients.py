"""Everything a pipeline does over gloo, compared with the unsplit model; tells each claim and whether it held."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from joined import join, num_ranks, rank, tell
from tests.models.traced_models import batch_of, loss_of
from tests.models.traced_models import made as followed_model
from tests.runtime.runs import SCHEDULES, grads_of, mse
from tests.runtime.zoo import batch, made
from torch import nn

import penstock as ps
from penstock.errors import UserError
from penstock.ir.dependencies import Value
from penstock.ir.ops import OpKind, Transfer
from penstock.runtime.links import Links
from penstock.runtime.transport.distributed import DistributedTransport
from penstock.testing import reference_gradients, reference_step


def claim(text: str, held: object, **facts: object) -> None:
    tell(claim=text, held=bool(held), **facts)


def same(pipe: ps.Pipeline, oracle: nn.Module) -> bool:
    expected, found = grads_of(oracle), grads_of(pipe)
    return bool(found) and all(torch.equal(grad, expected[name]) for name, grad in found.items())


def gradients() -> None:
    for name, dtype in (("attention", torch.float32), ("mixed_dtypes", torch.float64), ("skips", torch.float64)):
        for schedule in SCHEDULES:
            model = made(name, dtype)
            oracle, data = copy.deepcopy(model), [batch(8, dtype, seed=seed) for seed in (1, 2)]
            pipe = ps.Pipeline(model, mse, schedule=schedule, num_microbatches=8, timeout_seconds=30)
            for step in data:
                expected = reference_step(oracle, mse, *step, num_microbatches=8)
                loss = pipe.step(*step)
            claim(f"{schedule} gives the bits of {name}", same(pipe, oracle) and torch.equal(loss, expected))
            pipe.close()


def followed() -> None:
    """Models that are no list of layers: skips over stages, a block that runs twice, dicts, several outputs."""
    targets = torch.linspace(0.2, 1, 4, dtype=torch.float64)
    for name in ("UNet", "Tied", "TwoTowers", "Wrapped") if num_ranks == 2 else ("UNet",):
        inputs = batch_of(name)
        loss, grads = reference_gradients(followed_model(name), loss_of, inputs, targets, num_microbatches=2, seed=3)
        for shared_memory in (True, False):
            transport = DistributedTransport(timeout_seconds=30, shared_memory=shared_memory)
            pipe = ps.Pipeline(followed_model(name), loss_of, transport=transport, num_microbatches=2, seed=3)
            found = pipe.step(inputs, targets)
            pipe.steps_done = 0  # the same random numbers again, with shapes that are known
            again = pipe.step(inputs, targets)
            own = {n: grad / 2 for n, grad in grads_of(pipe).items()}
            worst = max([float((own[n] - grads[n]).abs().max() / grads[n].abs().max()) for n in own], default=0.0)
            near = bool(own) and worst < 1e-12 and torch.equal(found, again) and abs(found / loss - 1) < 1e-12
            way = "shared memory" if shared_memory else "gloo"
            claim(f"{name} over {way} gives the unsplit gradients", near, worst=worst)
            pipe.close()


def boundaries() -> None:
    """Whatever may pass between stages: None, numbers, text, truth values, tensors that need no gradient."""
    for name in ("tuples", "plain_values", "no_gradient_needed", "passed_through"):
        model = made(name)
        oracle = copy.deepcopy(model)
        pipe = ps.Pipeline(model, mse, num_microbatches=4, timeout_seconds=30)
        for seed in (1, 2):
            expected = reference_step(oracle, mse, *batch(8, seed=seed), num_microbatches=4)
            loss = pipe.step(*batch(8, seed=seed))
        claim(f"boundaries of {name} travel", same_or_zero(pipe, oracle) and torch.equal(loss, expected))
        pipe.close()


def same_or_zero(pipe: ps.Pipeline, oracle: nn.Module) -> bool:
    """A gradient of zeros may stand where the unsplit model has none; a stage that passes on what it gets has none."""
    expected, found = grads_of(oracle), grads_of(pipe)
    return all(torch.equal(grad, expected.get(n, torch.zeros_like(grad))) for n, grad in found.items())


def the_rest() -> None:
    model, (inputs, targets) = made("dense"), batch(7)
    oracle = copy.deepcopy(model)
    pipe = ps.Pipeline(model, mse, num_microbatches=4, seed=1, timeout_seconds=30)
    with torch.no_grad():
        whole = torch.cat([oracle(piece) for piece in inputs.tensor_split(4)])
    for _ in range(2):
        loss = pipe.evaluate(inputs, targets)
        output = pipe.forward(inputs, broadcast=True)
    claim("evaluation of a ragged batch", abs(float(loss) - float(mse(whole, targets))) < 1e-12)
    claim("forward, broadcast", torch.equal(output, whole))
    pipe.step(*batch(8))
    reference_step(oracle, mse, *batch(8), num_microbatches=4)
    norm, expected = pipe.clip_grad_norm_(1e-3), nn.utils.clip_grad_norm_(oracle.parameters(), 1e-3)
    claim("the norm is the unsplit one", abs(float(norm) / float(expected) - 1) < 1e-12, bits=float(norm).hex())
    timeline = pipe.trace()[0]
    starts = [row[0].start for row in timeline.by_rank]
    claim("clocks agree on what came first", starts == sorted(starts) and min(starts) >= 0)
    claim("every op was measured", len(timeline.spans) == 2 * 4 * pipe.num_ranks)


def disagreements() -> None:
    pipe = ps.Pipeline(made("dense"), mse, num_microbatches=4, timeout_seconds=30)
    last = rank == pipe.num_ranks - 1
    short = batch(4)
    other = {
        "a rank that evaluates": lambda: pipe.evaluate(*batch(8)) if last else pipe.step(*batch(8)),
        "a rank that clips": lambda: pipe.clip_grad_norm_(1.0) if last else pipe.step(*batch(8)),
        "a rank that traces": lambda: pipe.trace() if last else pipe.step(*batch(8)),
        "a batch that does not divide": lambda: pipe.step(*batch(6)),
        "no inputs": lambda: pipe.step(None, batch(8)[1]),
        "targets of another size": lambda: pipe.step(batch(8)[0], short[1]),
    }
    for name, call in other.items():
        try:
            call()
            claim(name, False)
        except UserError as error:
            claim(name, True, error=f"{type(error).__name__}: {error}")
    for name, arguments in {
        "other microbatches": {"num_microbatches": 8 if last else 4},
        "no model here": {"num_microbatches": 4, "model": None if last else made("dense")},
    }.items():
        try:
            ps.Pipeline(arguments.pop("model", made("dense")), mse, timeout_seconds=30, **arguments)
            claim(name, False)
        except UserError as error:
            claim(name, True, error=f"{type(error).__name__}: {error}")
    claim("a step after all that", pipe.step(*batch(8)) > 0)


def two_pipelines() -> None:
    """A generator and a critic, with an optimizer each, in one loop."""
    models = [made("skips"), made("attention")]
    oracles = copy.deepcopy(models)
    pipes = [ps.Pipeline(model, mse, num_microbatches=4, timeout_seconds=30) for model in models]
    optimizers = [torch.optim.Adam(pipe.parameters(), lr=0.01) for pipe in pipes]
    unsplit = [torch.optim.Adam(oracle.parameters(), lr=0.01) for oracle in oracles]
    for turn in range(4):
        for which in (0, 1) if turn % 2 else (1, 0):
            pipes[which].step(*batch(8, seed=turn))
            reference_step(oracles[which], mse, *batch(8, seed=turn), num_microbatches=4)
            for optimizer in (optimizers[which], unsplit[which]):
                optimizer.step()
                optimizer.zero_grad()
    for pipe, oracle in zip(pipes, oracles, strict=True):
        expected = oracle.state_dict()
        claim(
            "two pipelines train as two models",
            all(torch.equal(value, expected[name]) for name, value in pipe.state_dict().items()),
        )


@contextmanager
def most_sending(kind: OpKind | None = None) -> Iterator[list[int]]:
    """Notes how many messages of a channel were kept at once; of outputs or gradients alone if so asked."""
    send, most = Links.send, [0]

    def noting(self: Links, transfer: Transfer, value: Value) -> None:
        send(self, transfer, value)
        most.extend(len(kept) for channel, kept in self._sending.items() if kind in (None, channel.kind))

    Links.send = noting
    yield most
    Links.send = send


def memory() -> None:
    """Gloo tells of no send that it is done; what has left is free all the same."""
    pipe = ps.Pipeline(made("attention"), mse, num_microbatches=32, timeout_seconds=30)
    with most_sending(OpKind.F) as most:
        pipe.step(*batch(32))
    claim("outputs kept while shapes are learned do not grow with m", max(most) <= pipe.num_ranks + 1, most=max(most))
    pipe.evaluate(*batch(32))
    for name, call in (("step", pipe.step), ("evaluate", pipe.evaluate)):
        with most_sending() as most:
            call(*batch(32))
        claim(f"sends kept in {name} do not grow with m", max(most) <= 2, most=max(most))


join()
gradients()
if num_ranks > 2:  # else some of them pass no rank
    boundaries()
followed()
the_rest()
disagreements()
two_pipelines()
memory()
