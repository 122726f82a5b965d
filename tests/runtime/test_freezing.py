"""Parameters may be frozen and thawed between steps, as in a GAN or in gradual unfreezing."""

import copy

import torch
from tests.runtime.runs import assert_same, grads_of, mse
from tests.runtime.zoo import batch, made

import penstock as ps
from penstock.testing import reference_step


def test_freezing_between_steps_changes_the_boundary_and_not_the_result():
    """Symptom: ModelError "the output of stage 0 changed". Cause: shapes were known per shape of the inputs alone."""
    model, data = made("dense"), batch()
    twin, oracle = copy.deepcopy(model), copy.deepcopy(model)
    for frozen in (False, True, False, True):
        oracle[:4].requires_grad_(not frozen)
        reference_step(oracle, mse, *data, num_microbatches=4)

    def rank(transport: ps.LoopbackTransport) -> dict[str, torch.Tensor]:
        pipe = ps.Pipeline(twin, mse, transport=transport, num_microbatches=4)
        mine = dict(pipe.named_parameters())
        for frozen in (False, True, False, True):
            for name, parameter in mine.items():
                parameter.requires_grad_(not frozen or int(name.split(".")[0]) > 3)
            pipe.step(*data)
        return grads_of(pipe)

    parts = ps.run_ranks(rank, 3, timeout_seconds=20)
    assert_same({name: grad for part in parts for name, grad in part.items()}, grads_of(oracle))
