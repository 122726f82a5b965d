"""The routers' auxiliary loss of sparse models is the model's own, over all layers, however they are cut."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor

import penstock as ps
from penstock.errors import BatchError, ModelError
from penstock.models import cut
from penstock.models.hugging_face import causal_lm_loss, token_count
from penstock.testing import check_against_reference

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from tests.models.tiny import LENGTH, VOCABULARY, tiny

pytestmark = pytest.mark.filterwarnings("ignore")


def batch() -> tuple[dict[str, Tensor], Tensor]:
    ids = torch.randint(3, VOCABULARY, (4, LENGTH), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 8:] = 0
    return {"input_ids": ids, "attention_mask": mask}, ids.masked_fill(mask == 0, -100)


@pytest.mark.parametrize(
    ("model_type", "p", "m", "schedule"),
    [("mixtral", 2, 1, "one_f_one_b"), ("qwen3_moe", 3, 2, "zb_h1"), ("gpt_oss", 2, 4, "zb_v")],
)
def test_loss_and_gradients_with_the_auxiliary_loss_are_the_unsplit_models(
    model_type: str, p: int, m: int, schedule: str
):
    model = tiny(model_type)
    model.config.output_router_logits = True
    model.router_aux_loss_coef = 0.5  # so that it shows
    inputs, labels = batch()
    check = check_against_reference(
        model,
        causal_lm_loss,
        inputs,
        labels,
        num_ranks=p,
        num_microbatches=m,
        schedule=schedule,
        weight_fn=token_count,
    )
    assert check.worst < 1e-12, str(check)
    with_it = causal_lm_loss(cut(model).unsplit(inputs), labels)
    own = model(**inputs, labels=labels, use_cache=False)
    torch.testing.assert_close(with_it, own.loss.double(), rtol=1e-6, atol=0)  # transformers' own is in fp32
    torch.testing.assert_close(own.aux_loss.double() * 0.5, cut(model).unsplit(inputs)["aux_loss"].double())


def test_several_microbatches_give_the_mean_of_their_losses():
    model = tiny("mixtral")
    model.config.output_router_logits = True
    inputs, labels = batch()
    rows = [({k: v[i : i + 1] for k, v in inputs.items()}, labels[i : i + 1]) for i in range(4)]
    losses = [causal_lm_loss(cut(model).unsplit(row), label).detach() for row, label in rows]

    def rank(transport: ps.LoopbackTransport) -> Tensor:
        return ps.Pipeline(model, causal_lm_loss, transport=transport, num_microbatches=4).step(inputs, labels)

    found = ps.run_ranks(rank, 3, timeout_seconds=60)[0]
    torch.testing.assert_close(found, torch.stack(losses).double().mean(), rtol=1e-12, atol=0)


def test_recomputed_layers_count_once():
    model = tiny("mixtral")
    model.config.output_router_logits = True
    inputs, labels = batch()

    def step(**arguments: object) -> tuple[Tensor, dict[str, Tensor]]:
        model.zero_grad()

        def rank(transport: ps.LoopbackTransport) -> tuple[Tensor, dict[str, Tensor]]:
            pipe = ps.Pipeline(model, causal_lm_loss, transport=transport, num_microbatches=2, **arguments)
            loss = pipe.step(inputs, labels)
            return loss, {name: value.grad.clone() for name, value in pipe.named_parameters()}

        parts = ps.run_ranks(rank, 2, timeout_seconds=60)
        return parts[0][0], {name: grad for _, own in parts for name, grad in own.items()}

    loss, grads = step()
    again, recomputed = step(recompute=[r"model\.layers\.\d+"])
    assert torch.equal(loss, again)
    for name, grad in grads.items():
        torch.testing.assert_close(recomputed[name], grad, rtol=1e-12, atol=1e-15)


def test_a_model_without_router_logits_is_told():
    model = tiny("llama")
    model.config.output_router_logits = True
    with pytest.raises(ModelError, match="LlamaForCausalLM has no router_aux_loss_coef"):
        cut(model).stage(ps.Partition.uniform(6, 1), 0)
    model.router_aux_loss_coef = 0.1
    with pytest.raises(ModelError, match="LlamaForCausalLM does not declare which of its modules give router logits"):
        cut(model).stage(ps.Partition.uniform(6, 1), 0)
    model.config.output_router_logits = False
    with pytest.raises(BatchError, match="inputs hold output_router_logits"):
        cut(model).stage(ps.Partition.uniform(6, 1), 0)({"input_ids": batch()[1], "output_router_logits": True})
