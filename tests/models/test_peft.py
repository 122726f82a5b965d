"""LoRA by peft on a frozen trunk: the unsplit model's gradients, and no backward traffic below the lowest adapter."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from tests.runtime.runs import Counting
from torch import Tensor

import penstock as ps
from penstock.models.hugging_face import causal_lm_loss
from penstock.testing import check_against_reference

pytestmark = pytest.mark.filterwarnings("ignore")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    peft = pytest.importorskip("peft")
    from tests.models.tiny import LENGTH, VOCABULARY, tiny


def ids() -> Tensor:
    return torch.randint(3, VOCABULARY, (4, LENGTH), generator=torch.Generator().manual_seed(1))


def adapted(layers: list[int] | None = None) -> Any:
    """Returns a llama of four layers with adapters on these layers; None for all."""
    config = peft.LoraConfig(
        r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"], layers_to_transform=layers, task_type="CAUSAL_LM"
    )
    torch.manual_seed(0)
    model = peft.get_peft_model(tiny("llama"), config).double()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # zero at first, and then A has no gradient
            torch.nn.init.normal_(parameter, std=0.1)
    return model


@pytest.mark.parametrize("schedule", ["one_f_one_b", "zb_h1"])
def test_gradients_of_adapters_are_the_unsplit_models(schedule: str):
    check = check_against_reference(
        adapted(), causal_lm_loss, ids(), ids(), num_ranks=3, num_microbatches=2, schedule=schedule
    )
    assert check.worst < 1e-12, str(check)
    assert len(check.errors) == 4 * 2 * 2
    assert all(name.startswith("base_model.model.model.layers.") and ".lora_" in name for name in check.errors)


def gradient_numbers(model: Any) -> dict[int, int]:
    """Returns rank -> how many numbers its backward sends, over three stages of two layers, one, and one."""

    def rank(transport: ps.LoopbackTransport) -> tuple[int, int]:
        counting = Counting(transport)
        pipe = ps.Pipeline(
            copy.deepcopy(model), causal_lm_loss, transport=counting, num_microbatches=2, partition=[3, 1, 3]
        )
        pipe.step(ids(), ids())
        shapes = [shape for channel, shape in counting.sent if channel.source > channel.target]
        return transport.rank, sum(torch.Size(shape).numel() for shape in shapes)

    return dict(ps.run_ranks(rank, 3, timeout_seconds=60))


def test_no_gradient_travels_to_frozen_stages():
    assert gradient_numbers(adapted([3])) == {0: 0, 1: 0, 2: 0}
    hidden = 4 * LENGTH * 32
    assert gradient_numbers(adapted([2, 3])) == {0: 0, 1: 0, 2: hidden}
    assert gradient_numbers(adapted([0])) == {0: 0, 1: hidden, 2: hidden}
