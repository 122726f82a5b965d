"""Before every call all ranks agree: same call, fitting data. Ranks that differ are named, and nobody hangs."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.runtime.runs import mse
from tests.runtime.zoo import batch, made

import penstock as ps
from penstock.errors import BatchError, HandshakeError
from penstock.runtime.agreement import signature_of


def told(act: Callable[[ps.Pipeline], Any], num_ranks: int = 3) -> list[str]:
    """Returns what each rank raised as `Type: text`, and checks that a step works for all of them afterwards."""
    model = made("dense")

    def rank(transport: ps.LoopbackTransport) -> str:
        pipe = ps.Pipeline(model, mse, transport=transport, num_microbatches=4)
        pipe.step(*batch(8))
        try:
            act(pipe)
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
        pipe.step(*batch(8))
        pipe.evaluate(*batch(8))
        return text

    return ps.run_ranks(rank, num_ranks, timeout_seconds=5)


OTHERS: dict[str, Callable[[ps.Pipeline], Any]] = {
    "evaluate": lambda pipe: pipe.evaluate(*batch(8)),
    "forward": lambda pipe: pipe.forward(batch(8)[0]),
    "forward(broadcast=True)": lambda pipe: pipe.forward(batch(8)[0], broadcast=True),
    "clip_grad_norm_": lambda pipe: pipe.clip_grad_norm_(1.0),
    "trace": lambda pipe: pipe.trace(),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_rank_that_calls_something_else_is_named(name: str):
    """Symptom for clip and trace: a crash over shapes, or numbers of another call. Cause: they did not agree first."""
    texts = told(lambda pipe: OTHERS[name](pipe) if pipe.rank == 1 else pipe.step(*batch(8)))
    expected = f"ranks called different things: rank 0 step (its call 2), rank 1 {name} (its call 2), rank 2 step"
    assert all(text.startswith(f"HandshakeError: {expected}") for text in texts)


def test_a_rank_that_made_a_call_more_is_named():
    def rank(transport: ps.LoopbackTransport) -> None:
        pipe = ps.Pipeline(made("dense"), mse, transport=transport, num_microbatches=4)
        pipe._calls += transport.rank
        with pytest.raises(HandshakeError, match=r"rank 0 step \(its call 1\), rank 1 step \(its call 2\)"):
            pipe.step(*batch(8))

    ps.run_ranks(rank, 2, timeout_seconds=5)


def pieces(rank: int, inputs: Any, targets: Any) -> tuple[Any, Any]:
    return inputs if rank == 0 else None, targets if rank == 2 else None


DATA: dict[str, tuple[Any, Any, str]] = {
    "inputs that do not divide": (batch(6)[0], batch(8)[1], "a batch of 6 samples does not divide"),
    "targets that do not divide": (batch(8)[0], batch(6)[1], "use a batch of 4 or 8, or num_microbatches=3"),
    "less than a sample each": (batch(3)[0], batch(3)[1], "use a batch of 4, or num_microbatches=3"),
    "no inputs": (None, batch(8)[1], "step got no inputs on the rank that holds the first stage"),
    "no targets": (batch(8)[0], None, "step got no targets on the rank that holds the last stage"),
    "different sizes": (batch(8)[0], batch(4)[1], "inputs on rank 0 hold 8 samples and targets on rank 2 hold 4"),
    "sizes mixed": ((batch(8)[0], batch(4)[0]), batch(8)[1], "mixes batch sizes {'inputs[0]': 8, 'inputs[1]': 4}"),
    "nothing to split": ({"a": 3}, batch(8)[1], "inputs holds no tensor"),
    "no dimension": (torch.ones(()), batch(8)[1], "without dimensions"),
    "of no known kind": ([batch(8)[0], {1}], batch(8)[1], "inputs[1] is a set, for which there is no rule"),
}


@pytest.mark.parametrize("case", DATA)
def test_data_that_does_not_fit_is_refused_by_every_rank(case: str):
    inputs, targets, expected = DATA[case]
    texts = told(lambda pipe: pipe.step(*pieces(pipe.rank, inputs, targets)))
    assert all(text.startswith("BatchError: ") and expected in text for text in texts), texts
    if case != "different sizes" and inputs is not targets:
        assert any("rank 0: " in text or "rank 2: " in text for text in texts), "the culprit is named to the others"


def test_ranks_that_need_no_data_may_pass_none_or_anything():
    model, (inputs, targets) = made("dense"), batch(8)
    answers = {0: (inputs, None), 1: (None, "unused"), 2: (object(), targets)}

    def rank(transport: ps.LoopbackTransport) -> torch.Tensor:
        pipe = ps.Pipeline(model, mse, transport=transport, num_microbatches=4)
        losses = [pipe.step(*answers[transport.rank]), pipe.evaluate(*answers[transport.rank])]
        return torch.stack(losses)

    first, *others = ps.run_ranks(rank, 3, timeout_seconds=5)
    assert all(torch.equal(first, other) for other in others)


def test_one_refused_call_leaves_gradients_alone():
    model = made("dense")

    def rank(transport: ps.LoopbackTransport) -> None:
        pipe = ps.Pipeline(model, mse, transport=transport, num_microbatches=4)
        pipe.step(*batch(8))
        before = [parameter.grad.clone() for parameter in pipe.parameters()]
        with pytest.raises(BatchError):
            pipe.step(*batch(6))
        assert pipe.steps_done == 1
        assert all(torch.equal(p.grad, grad) for p, grad in zip(pipe.parameters(), before, strict=True))

    ps.run_ranks(rank, 2, timeout_seconds=5)


def test_a_signature_tells_shapes_dtypes_structures_and_calls_apart():
    x = torch.zeros(2, 3)
    inputs = [[x], [x.long()], [x.T], [x, x], [(x,)], [{"a": x}], [(x, 1)], [(x, 2)], [x.clone().requires_grad_()], []]
    variants = [("step", [True], each) for each in inputs]
    variants += [("evaluate", [True], [x]), ("step", [False], [x]), ("step", [True, True], [x])]
    numbers = [signature_of(*variant) for variant in variants]
    assert len(set(numbers)) == len(numbers)
    assert signature_of("step", [True], [x]) == signature_of("step", [True], [x + 1])
