"""Overlapped pairs: the engine runs their ops one after the other, which is as right, with both sends behind them."""

from dataclasses import replace

import torch
from tests.runtime.runs import assert_same, mse, run
from tests.runtime.zoo import batch, made

from penstock import Schedule, lower, one_f_one_b
from penstock.testing import reference_gradients


def paired(num_ranks: int, num_microbatches: int) -> Schedule:
    """Returns 1F1B in which every F and B of the steady phase are a pair, but on the last rank, where B needs F."""
    schedule = one_f_one_b(num_ranks, num_microbatches)
    ahead = [min(num_ranks - 1 - rank, num_microbatches) for rank in range(num_ranks)]
    pairs = [tuple(range(first, 2 * num_microbatches - first, 2)) for first in ahead[:-1]]
    return replace(schedule, name="paired", overlapped=(*pairs, ()))


def test_pairs_give_the_unsplit_models_bits() -> None:
    model, data = made("dense"), batch(8)
    loss, grads = reference_gradients(model, mse, *data, num_microbatches=4)
    for num_ranks in (2, 3, 4):
        schedule = paired(num_ranks, 4)
        assert any(lower(schedule).pairs)
        found = run(model, [data], num_ranks=num_ranks, schedule=schedule)
        assert_same(found.grads, grads)
        assert all(torch.equal(losses[0], loss) for losses in found.losses)


def test_pairs_give_the_same_bits_once_shapes_are_known() -> None:
    """From the second step on receives are posted where the program says, before the pair."""
    model, data = made("dense"), [batch(8), batch(8, seed=2)]
    plain = run(model, data, num_ranks=3, schedule="one_f_one_b", num_microbatches=4)
    found = run(model, data, num_ranks=3, schedule=paired(3, 4))
    assert_same(found.grads, plain.grads)
