"""What fails inside a step keeps its type and traceback, says where, wakes every rank, and ends the pipeline."""

import traceback
from typing import Any

import pytest
import torch
from tests.runtime.runs import mse
from tests.runtime.zoo import WIDTH, batch
from torch import Tensor, nn

import penstock as ps
from penstock.errors import BatchError, RankFailedError
from penstock.runtime import register_weight_gradient
from penstock.runtime.split_backward import RULES, Operands, Rule


class Fuse(nn.Module):
    """Blows in its forward, or in its backward, at the n-th call in training."""

    def __init__(self, calls: int, *, backward: bool) -> None:
        super().__init__()
        self.left, self.backward = calls, backward

    def forward(self, x: Tensor) -> Tensor:
        if not self.backward:
            self.count()
        elif x.requires_grad:
            x = x * 1
            x.register_hook(self.count)
        return x

    def count(self, _: Any = None) -> None:
        self.left -= 1
        if self.left == 0:
            raise FloatingPointError("overflow in the fuse")


def failures(fuse: nn.Module, place: int, *, loss_fn: Any = mse, num_ranks: int = 3) -> list[list[Exception]]:
    """Returns for each rank what its second step raised, and what a third and other calls raise after that."""
    layers = [nn.Linear(WIDTH, WIDTH).double() for _ in range(num_ranks)]
    layers[place] = nn.Sequential(layers[place], fuse)
    model = nn.Sequential(*layers)

    def rank(transport: ps.LoopbackTransport) -> list[Exception]:
        pipe = ps.Pipeline(model, loss_fn, transport=transport, num_microbatches=4)
        pipe.forward(batch(1)[0])
        raised = []
        for call in (
            lambda: [pipe.step(*batch(8)) for _ in range(2)],
            lambda: pipe.step(*batch(8)),
            lambda: pipe.evaluate(*batch(8)),
            lambda: pipe.clip_grad_norm_(1.0),
            lambda: pipe.trace(),
        ):
            try:
                call()
            except Exception as error:
                raised.append(error)
        return raised

    return ps.run_ranks(rank, num_ranks, timeout_seconds=5)


# The forward before the steps is one call of the fuse; step one takes 4; microbatch 2 of step two is call 1+4+3.
FORWARD = (Fuse(8, backward=False), "1F2 (forward of stage 1 on microbatch 2)")
BACKWARD = (Fuse(7, backward=True), "1B2 (backward of stage 1 on microbatch 2)")


@pytest.mark.parametrize(("fuse", "where"), [FORWARD, BACKWARD], ids=["forward", "backward"])
def test_an_error_in_a_stage_says_where_and_reaches_every_rank(fuse: Fuse, where: str):
    parts = failures(fuse, 1)
    culprit = parts[1][0]
    assert type(culprit) is FloatingPointError
    assert "in count" in "".join(traceback.format_exception(culprit)), "the original traceback"
    assert culprit.__notes__ == [f"penstock: raised on rank 1, step 3, {where}"]
    for rank in (0, 2):
        error = parts[rank][0]
        assert isinstance(error, RankFailedError)
        assert f"rank 1 failed in step 3, {where}: FloatingPointError: overflow in the fuse" in str(error)
    assert "noticed on rank 0, step 3, " in parts[0][0].__notes__[0]  # in its program; rank 2 may have ended its own


HALVES = """
halves p=2 m=2 weights=flush placement=0,1
rank 0: F0 F1 I0 I1 W0 W1
rank 1: F0 I0 F1 I1 W0 W1
"""


def late(_: Tensor, __: object, ___: bool) -> Any:
    raise FloatingPointError("overflow in a weight gradient")


def test_an_error_in_either_half_of_a_backward_says_which() -> None:
    rule = Rule(
        lambda input, other: Operands(input, other, None),
        lambda call: call.input * call.weight,
        lambda grad, call: grad * call.weight,
        late,
    )
    register_weight_gradient(torch.mul, rule)

    class Scaled(nn.Module):
        def __init__(self, *, fails_in_w: bool) -> None:
            super().__init__()
            self.weight, self.fails_in_w = nn.Parameter(torch.ones(WIDTH, dtype=torch.float64)), fails_in_w
            self.fuse = Fuse(2, backward=True)

        def forward(self, x: Tensor) -> Tensor:
            return torch.mul(x, self.weight) if self.fails_in_w else self.fuse(x) * self.weight

    places = {True: "1W0 (weight gradient of stage 1 on microbatch 0)", False: "1I1 (input gradient of stage 1 on"}
    try:
        for fails_in_w, where in places.items():
            model = nn.Sequential(nn.Linear(WIDTH, WIDTH).double(), Scaled(fails_in_w=fails_in_w))
            own, other = told_by(model, schedule=ps.parse_grid(HALVES))
            assert type(own) is FloatingPointError
            assert own.__notes__[0].startswith(f"penstock: raised on rank 1, step 1, {where}")
            assert f"rank 1 failed in step 1, {where}" in str(other)
    finally:
        del RULES[torch.mul]


def test_an_error_in_an_optimizer_step_of_the_schedule_says_which() -> None:
    class Failing(torch.optim.SGD):
        steps = 0

        def step(self, closure: Any = None) -> None:
            self.steps += 1
            if self.steps == 3 and self.param_groups[0]["params"][0].shape[0] == 1:
                raise FloatingPointError("overflow in the optimizer")
            super().step(closure)

    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 1)).double()
    schedule = ps.pipedream(2, 4)
    own, other = told_by(model, schedule=schedule, optimizer=lambda parameters: Failing(parameters, lr=0.1))
    assert type(own) is FloatingPointError
    where = "1S2 (optimizer step of stage 1 on microbatch 2)"
    assert own.__notes__ == [f"penstock: raised on rank 1, step 1, {where}"]
    assert f"rank 1 failed in step 1, {where}: FloatingPointError: overflow in the optimizer" in str(other)


def told_by(model: nn.Sequential, **arguments: Any) -> tuple[Exception, Exception]:
    """Returns what the second of two ranks raised, and the first."""

    def rank(transport: ps.LoopbackTransport) -> Exception:
        pipe = ps.Pipeline(model, lambda output, _: output.square().mean(), transport=transport, **arguments)
        with pytest.raises((FloatingPointError, RankFailedError)) as caught:
            pipe.step(*batch(8))
        return caught.value

    first, second = ps.run_ranks(rank, 2, timeout_seconds=5)
    return second, first


def test_after_a_failed_step_every_call_is_refused_at_once():
    """Symptom: the step after a failure took messages of the failed one for its own, or hung. Cause: the pipeline went
    on as if nothing had happened."""
    for raised in failures(Fuse(8, backward=False), 1):
        assert len(raised) == 5
        for later in raised[1:]:
            assert isinstance(later, RankFailedError)
            assert "this pipeline ended when call 3 (step) failed: " in str(later)
            assert "start all ranks again" in str(later)


@pytest.mark.parametrize(
    ("loss_fn", "what"),
    [
        (lambda output, target: (output - target) ** 2, r"shape \(2, 6\)"),
        (lambda output, target: 3.0, "float"),
        (lambda output, target: None, "NoneType"),
    ],
    ids=["no scalar", "a number", "nothing"],
)
def test_a_loss_that_is_no_scalar_is_shown(loss_fn: Any, what: str):
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)).double()

    def rank(transport: ps.LoopbackTransport) -> None:
        ps.Pipeline(model, loss_fn, transport=transport, num_microbatches=4).step(*batch(8))

    with pytest.raises(BatchError, match=f"loss_fn returned {what}; return one number a microbatch"):
        ps.run_ranks(rank, 2, timeout_seconds=5)


def test_a_loss_of_shape_one_is_a_scalar_too():
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)).double()

    def rank(transport: ps.LoopbackTransport) -> Tensor:
        pipe = ps.Pipeline(model, lambda o, t: mse(o, t).reshape(1), transport=transport, num_microbatches=4)
        return pipe.step(*batch(8))

    first, second = ps.run_ranks(rank, 2, timeout_seconds=5)
    assert first.shape == ()
    assert torch.equal(first, second)


def test_the_error_of_the_rank_that_failed_is_what_run_ranks_raises():
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), Fuse(2, backward=False), nn.Linear(WIDTH, WIDTH)).double()

    def rank(transport: ps.LoopbackTransport) -> None:
        ps.Pipeline(model, mse, transport=transport, num_microbatches=4).step(*batch(8))

    with pytest.raises(FloatingPointError) as caught:
        ps.run_ranks(rank, 3, timeout_seconds=5)
    assert caught.value.__notes__[0].startswith("penstock: raised on rank 1, step 1, 1F1 ")
    assert caught.value.__notes__[1] == "raised on rank 1 of 3 over the loopback transport"
