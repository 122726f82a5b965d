"""Hugging Face decoders, cut by their own plan, give the unsplit model's logits, loss and gradients."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import penstock as ps
from penstock.errors import BatchError, ModelError
from penstock.models.hugging_face import causal_lm_loss, token_count

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from tests.models.tiny import LENGTH, VOCABULARY, WITHOUT_PLAN, model_types, tiny

pytestmark = pytest.mark.filterwarnings("ignore")

FEW = (
    "llama", "qwen3", "gemma2", "gpt_neox", "phi3", "mixtral", "deepseek_v3", "gpt_oss", "qwen3_next", "olmo_hybrid",
    "minicpm3", "cohere2",
)  # fmt: skip
"""Plain, tied, soft-capped, parallel, sparse, latent attention, sinks, linear attention, hybrid, scaled logits."""


def ids(rows: int = 2) -> Tensor:
    return torch.randint(3, VOCABULARY, (rows, LENGTH), generator=torch.Generator().manual_seed(1))


Loss = tuple[Callable[..., Tensor], Callable[[Tensor], float]]
"""The loss of a microbatch and its weight."""

CAUSAL: Loss = (causal_lm_loss, token_count)


def unsplit(
    model: Any, inputs: dict[str, Tensor], labels: Tensor, loss_of: Loss = CAUSAL
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Returns logits, loss and gradients over single rows, weighted by their tokens."""
    loss_fn, count = loss_of
    twin, total = copy.deepcopy(model), count(labels)
    logits, loss = [], torch.zeros((), dtype=torch.float64)
    for row in range(len(labels)):
        call = {name: value[row : row + 1] for name, value in inputs.items()}
        out = twin(**call, use_cache=False).logits
        part = loss_fn(out, labels[row : row + 1]) * (count(labels[row : row + 1]) / total)
        part.backward()
        logits.append(out.detach())
        loss += part.detach()
    return torch.cat(logits), loss, {n: p.grad for n, p in twin.named_parameters() if p.grad is not None}


def check(
    model: Any,
    inputs: dict[str, Tensor],
    labels: Tensor,
    *,
    p: int,
    schedule: str = "one_f_one_b",
    loss_of: Loss = CAUSAL,
    **more: Any,
):
    logits, loss, grads = unsplit(model, inputs, labels, loss_of)
    model = copy.deepcopy(model)

    def rank(transport: ps.LoopbackTransport) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        pipe = ps.Pipeline(
            model,
            loss_of[0],
            transport=transport,
            schedule=schedule,
            num_microbatches=len(labels),
            weight_fn=loss_of[1],
            **more,
        )
        out = pipe.forward(inputs, broadcast=True)
        return out, pipe.step(inputs, labels), {n: q.grad for n, q in pipe.named_parameters() if q.grad is not None}

    found: dict[str, Tensor] = {}
    for out, each, own in ps.run_ranks(rank, p, timeout_seconds=60):
        torch.testing.assert_close(out, logits, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(each.double(), loss, rtol=1e-12, atol=0)
        found |= own
    assert found.keys() >= grads.keys()
    for name, grad in grads.items():
        error = (found[name] - grad).norm() / grad.norm().clamp(min=1e-300)
        assert error < 1e-12, f"{name}: {error}"


@pytest.mark.parametrize("model_type", FEW)
def test_logits_loss_and_gradients_are_the_unsplit_models(model_type: str):
    model = tiny(model_type)
    for p, schedule in ((2, "zb_h1"), (4, "one_f_one_b")):
        check(model, {"input_ids": ids()}, ids(), p=p, schedule=schedule)


@pytest.mark.parametrize("model_type", ["gpt2", "opt", "mamba", "olmoe"])
def test_a_model_without_a_plan_is_cut_where_its_own_forward_shows_its_parts(model_type: str):
    """OPT declares its final norm before its layers, which once put it on the wrong stage without a word."""
    model = tiny(model_type)
    check(model, {"input_ids": ids()}, ids(), p=2)
    check(model, {"input_ids": ids()}, ids(), p=4, schedule="zb_h1")


@pytest.mark.models
@pytest.mark.parametrize("model_type", sorted(set(WITHOUT_PLAN) - {"gpt2", "opt", "mamba", "olmoe"}))
def test_every_known_class_without_a_plan_holds(model_type: str):
    model = tiny(model_type)
    for p in (2, 4):
        check(model, {"input_ids": ids()}, ids(), p=p)


@pytest.mark.models
@pytest.mark.parametrize("model_type", sorted(set(model_types(planned=True)) - set(FEW)))
def test_every_class_with_a_plan_holds_or_is_refused_by_name(model_type: str):
    from penstock.models.hugging_face.classes import CANNOT

    model = tiny(model_type)
    if model_type in CANNOT:
        with pytest.raises(ModelError, match="cannot be cut into stages"):
            ps.run_ranks(lambda transport: ps.Pipeline(model, transport=transport, num_microbatches=1), 1)
        return
    for p in (2, 4):
        check(model, {"input_ids": ids()}, ids(), p=p)


def test_padding_positions_and_ignored_labels_follow_their_microbatch():
    mask = torch.ones(4, LENGTH, dtype=torch.long)
    mask[1, -3:], mask[3, -7:] = 0, 0  # on the right: a row that sees nothing at all is NaN in fp64, unsplit too
    labels = ids(4).masked_fill(mask == 0, -100)
    labels[2, 4:] = -100
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    for schedule in ("one_f_one_b", "zb_v"):
        inputs = {"input_ids": ids(4), "attention_mask": mask, "position_ids": positions}
        check(tiny("qwen3"), inputs, labels, p=2, schedule=schedule)


def test_packed_sequences_do_not_see_each_other():
    positions = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5, 6]]).expand(2, -1).contiguous()
    model = tiny("llama")
    logits = model(input_ids=ids(), position_ids=positions, use_cache=False).logits
    alone = model(input_ids=ids()[:, 5:], use_cache=False).logits
    torch.testing.assert_close(logits[:, 5:], alone)
    check(model, {"input_ids": ids(), "position_ids": positions}, ids(), p=2)


def test_any_cut_is_right_even_an_embedding_or_a_head_alone():
    model = tiny("minicpm3")
    for sizes in ([1, 6], [6, 1], [2, 5], [5, 2]):
        check(model, {"input_ids": ids()}, ids(), p=2, partition=sizes)
    check(model, {"input_ids": ids()}, ids(), p=7, partition=[1] * 7)


def test_recomputation_and_keyed_dropout_work_inside_the_models_own_layers():
    model = tiny("llama")
    for layer in model.model.layers:
        layer.mlp.act_fn = torch.nn.Sequential(torch.nn.SiLU(), torch.nn.Dropout(0.2))

    def grads(p: int, **more: Any) -> dict[str, Tensor]:
        twin = copy.deepcopy(model)

        def rank(transport: ps.LoopbackTransport) -> dict[str, Tensor]:
            pipe = ps.Pipeline(twin, causal_lm_loss, transport=transport, num_microbatches=2, seed=3, **more)
            pipe.step(ids(), ids())
            return {name: parameter.grad for name, parameter in pipe.named_parameters()}

        return {n: g for found in ps.run_ranks(rank, p, timeout_seconds=60) for n, g in found.items()}

    expected = grads(1)
    for found in (grads(3), grads(2, schedule="zb_v"), grads(2, recompute=[r"model\.layers\.\d+"])):
        assert found.keys() == expected.keys()
        for name, grad in expected.items():
            assert torch.equal(found[name], grad), name


def test_names_are_the_models_own_and_cover_it():
    model = tiny("gemma2")

    def rank(transport: ps.LoopbackTransport) -> list[str]:
        return list(ps.Pipeline(copy.deepcopy(model), transport=transport, num_microbatches=1).state_dict())

    names = [name for found in ps.run_ranks(rank, 3, timeout_seconds=60) for name in found]
    assert sorted(names) == sorted(model.state_dict())


def test_arguments_that_a_pipeline_cannot_take_are_named():
    model = tiny("llama")

    def rank(transport: ps.LoopbackTransport) -> None:
        pipe = ps.Pipeline(model, causal_lm_loss, transport=transport, num_microbatches=2)
        with pytest.raises(BatchError, match="inputs hold labels; a pipeline computes the loss by its loss_fn"):
            pipe.step({"input_ids": ids(), "labels": ids()}, ids())

    ps.run_ranks(rank, 1, timeout_seconds=60)
