"""The gradient norm is that of the unsplit model, the same bits in every layout."""

import math

import pytest
import torch
from tests.runtime.runs import assert_close, grads_of, mse
from tests.runtime.zoo import batch, made
from torch import Tensor

import penstock as ps
from penstock.errors import BatchError
from penstock.testing import reference_step

NORMS = [1.0, 2.0, 3.0, math.inf]


def clipped(max_norm: float, norm_type: float, num_ranks: int, name: str = "dense") -> tuple[list[Tensor], dict]:
    model = made(name)

    def rank(transport: ps.LoopbackTransport) -> tuple[Tensor, dict[str, Tensor]]:
        pipe = ps.Pipeline(model, mse, transport=transport, num_microbatches=4)
        pipe.step(*batch())
        return pipe.clip_grad_norm_(max_norm, norm_type), grads_of(pipe)

    parts = ps.run_ranks(rank, num_ranks, timeout_seconds=20)
    return [norm for norm, _ in parts], {name: grad for _, grads in parts for name, grad in grads.items()}


@pytest.mark.parametrize("norm_type", NORMS)
@pytest.mark.parametrize("name", ["dense", "frozen_start"])
def test_norm_and_clipped_gradients_are_those_of_torch(norm_type: float, name: str):
    oracle = made(name)
    reference_step(oracle, mse, *batch(), num_microbatches=4)
    free = {key: grad.clone() for key, grad in grads_of(oracle).items()}
    expected = torch.nn.utils.clip_grad_norm_(oracle.parameters(), 1e-3, norm_type)
    norms, grads = clipped(1e-3, norm_type, 3, name)
    assert float(norms[0]) == pytest.approx(float(expected), rel=1e-12)
    assert_close(grads, grads_of(oracle))
    _, untouched = clipped(1e9, norm_type, 3, name)
    assert all(torch.equal(grad, free[key]) for key, grad in untouched.items())


@pytest.mark.parametrize("norm_type", NORMS)
def test_the_norm_has_the_same_bits_on_any_rank_of_any_number(norm_type: float):
    norms = [norm for num_ranks in (1, 2, 3, 4) for norm in clipped(1.0, norm_type, num_ranks)[0]]
    assert all(torch.equal(norm, norms[0]) for norm in norms)


def test_without_gradients_the_norm_is_zero_and_a_bad_limit_is_refused():
    def rank(transport: ps.LoopbackTransport) -> None:
        pipe = ps.Pipeline(made("dense"), mse, transport=transport, num_microbatches=4)
        assert pipe.clip_grad_norm_(1.0) == 0
        for bad in (0.0, -1.0, math.nan):
            with pytest.raises(BatchError, match="max_norm="):
                pipe.clip_grad_norm_(bad)

    ps.run_ranks(rank, 2, timeout_seconds=5)
