"""Hooks on parameters fire once a step on the whole step's gradient, for every schedule, split backward included."""

import pytest
import torch
from tests.runtime.runs import mse
from tests.runtime.zoo import batch, made
from torch import Tensor, nn

import penstock as ps
from penstock.testing import reference_gradients

SCHEDULES = ("gpipe", "one_f_one_b", "zb_h1", "zb_v", "chimera")


def ranks(work, model: nn.Module, schedule: str) -> list:
    return ps.run_ranks(
        lambda transport: work(ps.Pipeline(model, mse, transport=transport, schedule=schedule, num_microbatches=4)), 2
    )


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_gradient_hook_sees_the_whole_steps_gradient_once_and_may_change_it(schedule: str):
    model, data = made("dense"), batch(8)
    _, grads = reference_gradients(model, mse, *data, num_microbatches=4)

    def work(pipe: ps.Pipeline) -> None:
        seen: dict[str, list[Tensor]] = {name: [] for name, _ in pipe.named_parameters()}
        for name, parameter in pipe.named_parameters():
            parameter.register_hook(lambda grad, into=seen[name]: into.append(grad.clone()))
            parameter.register_hook(lambda grad: grad * 3)
        for step in (1, 2):
            pipe.step(*data)
            for name, parameter in pipe.named_parameters():
                assert len(seen[name]) == step
                torch.testing.assert_close(seen[name][-1], grads[name], rtol=1e-12, atol=1e-14)
                torch.testing.assert_close(parameter.grad, 3 * step * grads[name], rtol=1e-12, atol=1e-14)

    ranks(work, model, schedule)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_an_optimizer_in_the_backward_steps_once_on_the_whole_gradient(schedule: str):
    model, data = made("dense"), batch(8)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    _, grads = reference_gradients(model, mse, *data, num_microbatches=4)

    def work(pipe: ps.Pipeline) -> None:
        calls: list[int] = []

        def step(parameter: nn.Parameter) -> None:
            calls.append(id(parameter))
            torch.optim.SGD([parameter], lr=0.1).step()
            parameter.grad = None

        for parameter in pipe.parameters():
            parameter.register_post_accumulate_grad_hook(step)
        pipe.step(*data)
        named = dict(pipe.named_parameters())
        assert sorted(calls) == sorted(map(id, named.values()))
        for name, parameter in named.items():
            assert parameter.grad is None
            torch.testing.assert_close(parameter, before[name] - 0.1 * grads[name], rtol=1e-12, atol=1e-14)

    ranks(work, model, schedule)


def test_a_removed_hook_does_not_fire_and_a_failed_step_keeps_hooks_and_gradients():
    model, data = made("dense"), batch(8)
    fail = False

    def loss(output: Tensor, target: Tensor) -> Tensor:
        if fail:
            raise ValueError("the loss is not finite")
        return mse(output, target)

    def work(transport: object) -> None:
        nonlocal fail
        pipe = ps.Pipeline(model, loss, transport=transport, num_microbatches=4)
        fired: list[str] = []
        parameter = next(pipe.parameters())
        parameter.register_hook(lambda grad: fired.append("kept"))
        handle = parameter.register_hook(lambda grad: fired.append("removed"))
        handle.remove()
        pipe.step(*data)
        assert fired == ["kept"]
        grad = parameter.grad.clone()
        fail = True
        with pytest.raises(ValueError, match="not finite"):
            pipe.step(*data)
        assert fired == ["kept"]
        assert torch.equal(parameter.grad, grad)
        (parameter * 2).sum().backward()
        assert fired == ["kept", "kept"]

    ps.run_ranks(work, 1)


@pytest.mark.parametrize("schedule", [ps.pipedream(2, 4), ps.pipedream_2bw(2, 8, microbatches_per_version=4)])
def test_where_the_schedule_steps_hooks_fire_once_a_step_of_the_optimizer(schedule: ps.Schedule):
    """Symptom: before the first step a hook fired for every microbatch. Cause: only later steps took hooks off."""
    model, data = made("dense"), batch(8)

    def work(transport: ps.LoopbackTransport) -> None:
        sgd = lambda parameters: torch.optim.SGD(parameters, lr=0.1)  # noqa: E731
        pipe = ps.Pipeline(model, mse, transport=transport, schedule=schedule, optimizer=sgd)
        fired: list[str] = []
        for name, parameter in pipe.named_parameters():
            parameter.register_hook(lambda grad, name=name: fired.append(name))
        steps = sum(op.kind.name == "S" and op.stage == 0 for _, _, op in schedule.ops())
        for call in (1, 2):
            pipe.step(*data)
            assert sorted(fired) == sorted(call * steps * [name for name, _ in pipe.named_parameters()])

    ps.run_ranks(work, 2)
