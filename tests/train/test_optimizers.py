"""The learning rate follows its curve, drawn by hand, and only matrices are decayed."""

import pytest
import torch

from penstock.train.config import OptimizerConfig
from penstock.train.optimizers import build_optimizer, learning_rate, set_learning_rate

CURVE = OptimizerConfig(learning_rate=1.0, warmup_steps=4, floor=0.2)
PARAMETERS = (torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(2)))


@pytest.mark.parametrize(
    ("step", "rate"),
    [
        (0, 0.25),  # four equal steps up
        (1, 0.50),
        (3, 1.00),
        (4, 1.00),  # then a cosine from 1 to the floor over the eight that are left
        (6, 0.2 + 0.8 * 0.8535534),  # a quarter: (1 + cos 45°) / 2
        (8, 0.60),  # half
        (10, 0.2 + 0.8 * 0.1464466),
        (12, 0.20),
        (99, 0.20),  # past the end it stays
    ],
)
def test_the_curve_rises_linearly_and_falls_as_a_cosine(step: int, rate: float) -> None:
    assert learning_rate(CURVE, step=step, steps=12) == pytest.approx(rate)


def test_without_warm_up_it_starts_at_the_top() -> None:
    assert learning_rate(OptimizerConfig(learning_rate=0.5, warmup_steps=0), step=0, steps=1) == 0.5


def test_the_warm_up_does_not_depend_on_the_number_of_steps() -> None:
    assert learning_rate(CURVE, step=2, steps=3) == learning_rate(CURVE, step=2, steps=1000)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_matrices_are_decayed_and_vectors_are_not(name: str) -> None:
    config = OptimizerConfig(name=name, weight_decay=0.3)  # type: ignore[arg-type]
    groups = build_optimizer(config, PARAMETERS).param_groups
    assert [(group["params"][0].dim(), group["weight_decay"]) for group in groups] == [(2, 0.3), (1, 0.0)]


def test_a_rank_without_vectors_has_one_group_and_one_without_parameters_none() -> None:
    assert len(build_optimizer(OptimizerConfig(), PARAMETERS[:1]).param_groups) == 1


def test_names_and_betas_reach_the_optimizer() -> None:
    sgd = build_optimizer(OptimizerConfig(name="sgd", betas=(0.7, 0.9)), PARAMETERS)
    assert isinstance(sgd, torch.optim.SGD)
    assert sgd.param_groups[0]["momentum"] == 0.7
    adamw = build_optimizer(OptimizerConfig(betas=(0.7, 0.9)), PARAMETERS)
    assert isinstance(adamw, torch.optim.AdamW)
    assert adamw.param_groups[1]["betas"] == (0.7, 0.9)


def test_every_group_gets_the_rate() -> None:
    optimizer = build_optimizer(OptimizerConfig(), PARAMETERS)
    set_learning_rate(optimizer, 0.125)
    assert [group["lr"] for group in optimizer.param_groups] == [0.125, 0.125]
