"""A run that is saved in one layout and goes on in another is the run that was not interrupted, bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.checkpoint.runs import Setup, assert_same, eight, resumed, saved_then_unbroken
from torch import nn
from torch.optim import SGD, Adafactor, AdamW, Optimizer, lr_scheduler

import penstock as ps
from penstock.checkpoint import read_manifest
from penstock.errors import CheckpointError

Parameters = dict[str, nn.Parameter]


def adamw(parameters: Parameters) -> Sequence[Optimizer]:
    """Biases are not decayed, and the first layer learns slowly: ranks have different groups."""
    groups = [
        {"params": [p for n, p in parameters.items() if n.startswith("0.")], "lr": 1e-3},
        {"params": [p for n, p in parameters.items() if n.endswith("weight") and not n.startswith("0.")]},
        {
            "params": [p for n, p in parameters.items() if n.endswith("bias") and not n.startswith("0.")],
            "weight_decay": 0.0,
        },
    ]
    return [AdamW([group for group in groups if group["params"]], lr=1e-2, weight_decay=0.1, amsgrad=True)]


def momentum(parameters: Parameters) -> Sequence[Optimizer]:
    return [SGD(parameters.values(), lr=0.05, momentum=0.9)]


def adafactor(parameters: Parameters) -> Sequence[Optimizer]:
    return [Adafactor(parameters.values(), lr=0.01)]


def two(parameters: Parameters) -> Sequence[Optimizer]:
    """One optimizer for matrices and another for vectors."""
    return [
        SGD([p for p in parameters.values() if p.dim() > 1], lr=0.05, momentum=0.9),
        AdamW([p for p in parameters.values() if p.dim() == 1], lr=0.01),
    ]


OPTIMIZERS = {"adamw": adamw, "momentum": momentum, "adafactor": adafactor, "two": two}
SCHEDULERS: dict[str, Callable[[Optimizer], Any]] = {
    "lambda": lambda optimizer: lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step)),
    "one cycle": lambda optimizer: lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=9),
    "several": lambda optimizer: lr_scheduler.SequentialLR(
        optimizer,
        [lr_scheduler.LinearLR(optimizer, 0.1, total_iters=2), lr_scheduler.CosineAnnealingLR(optimizer, 8)],
        milestones=[2],
    ),
    "milestones": lambda optimizer: lr_scheduler.MultiStepLR(optimizer, [2, 4, 4], 0.1),
    "plateau": lambda optimizer: lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=0.5),
}
LAYOUTS: list[tuple[int, str, dict[str, Any]]] = [
    (2, "one_f_one_b", {}),
    (1, "naive", {"num_microbatches": 4}),
    (2, "zb_v", {}),
    (4, "gpipe", {"partition": [3, 1, 2, 2]}),
    (2, "interleaved_1f1b", {}),
]
"""Where a run goes on that p = 4, v = 2 has saved."""
SAVED_BY = Setup(num_ranks=4, schedule=ps.interleaved_1f1b(4, 4, num_chunks=2))


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: f"{layout[1]}-{layout[0]}")
def test_saved_by_four_ranks_of_two_chunks_and_resumed_anywhere(
    layout: tuple[int, str, dict[str, Any]], tmp_path: Path
) -> None:
    num_ranks, schedule, arguments = layout
    path, expected = saved_then_unbroken(tmp_path, SAVED_BY._replace(make=adamw))
    found = resumed(path, Setup(num_ranks, schedule, make=adamw, arguments=arguments))
    assert_same(found, expected)
    assert len(set(found.rates.values())) == 2


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_any_optimizer_goes_on_in_another_layout(optimizer: str, tmp_path: Path) -> None:
    make = OPTIMIZERS[optimizer]
    path, expected = saved_then_unbroken(tmp_path, Setup(1, make=make))
    assert_same(resumed(path, Setup(3, "zb_h1", make=make)), expected)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_any_scheduler_goes_on_in_another_layout(scheduler: str, tmp_path: Path) -> None:
    """Its base learning rates follow the parameter groups, of which ranks have different ones."""
    own = SCHEDULERS[scheduler]
    path, expected = saved_then_unbroken(tmp_path, Setup(1, make=adamw, schedulers=own))
    found = resumed(path, Setup(2, "one_f_one_b", make=adamw, schedulers=own))
    assert_same(found, expected)
    assert len(set(found.rates.values())) >= (1 if scheduler == "one cycle" else 2)


def test_copies_of_two_directions_are_saved_once_and_resumed_in_both(tmp_path: Path) -> None:
    """An optimizer of a copy has moments of its own, which are the owner's."""
    setup = Setup(2, "chimera", make=adamw)
    path, expected = saved_then_unbroken(tmp_path, setup)
    assert_same(resumed(path, setup), expected)


def test_buffers_go_on(tmp_path: Path) -> None:
    """Running statistics, and a count that is a whole number."""

    def normed(seed: int) -> nn.Sequential:
        model = eight(seed)
        return nn.Sequential(*model[:3], nn.BatchNorm1d(6).double(), *model[3:])

    path, expected = saved_then_unbroken(tmp_path, Setup(2, "gpipe", make=momentum, model=normed))
    assert_same(resumed(path, Setup(3, "one_f_one_b", make=momentum, model=normed)), expected)
    assert expected.weights["3.num_batches_tracked"] == 6 * 4


def test_dropout_goes_on_where_it_is_keyed(tmp_path: Path) -> None:
    def dropping(seed: int) -> nn.Sequential:
        model = eight(seed)
        return nn.Sequential(*(nn.Sequential(layer, nn.Dropout(0.3)) for layer in model))

    keyed = {"seed": 5}
    path, expected = saved_then_unbroken(tmp_path, Setup(4, "gpipe", make=adamw, model=dropping, arguments=keyed))
    assert_same(resumed(path, Setup(2, "one_f_one_b", make=adamw, model=dropping, arguments=keyed)), expected)


INSIDE = {
    "pipedream": (ps.pipedream(3, 12), {}),
    "vertical sync": (ps.pipedream(2, 12, vertical_sync=True), {}),
    "replicated": (ps.pipedream(3, 12, replicas=(2, 1)), {}),
    "2bw": (ps.pipedream_2bw(2, 12, microbatches_per_version=2), {}),
    "pipemare": (ps.pipemare(3, 12), {}),
    "pipemare with its correction": (ps.pipemare(3, 12), {"discrepancy_decay": 0.135}),
}


@pytest.mark.parametrize("name", INSIDE)
@pytest.mark.parametrize(
    "optimizer", [partial(AdamW, lr=0.01), partial(SGD, lr=0.05, momentum=0.9)], ids=["adamw", "sgd"]
)
def test_asynchronous_schedules_go_on_bit_for_bit(name: str, optimizer: Any, tmp_path: Path) -> None:
    """A call ends with every microbatch applied: one version of the weights, and the movement of PipeMare's weights."""
    schedule, more = INSIDE[name]

    def decay(inside: Optimizer, stage: int) -> lr_scheduler.LRScheduler:
        return lr_scheduler.ExponentialLR(inside, 0.99 - 0.01 * stage)

    setup = Setup(
        schedule.num_ranks,
        schedule,
        arguments={"optimizer": optimizer, "lr_scheduler": decay, **more},
        model=lambda seed: nn.Sequential(*eight(seed)[:6]),
    )
    path, expected = saved_then_unbroken(tmp_path, setup, before=1, after=2)
    assert expected.states
    assert_same(resumed(path, setup, before=1, after=2), expected)


def test_an_asynchronous_run_goes_on_with_other_ranks(tmp_path: Path) -> None:
    """Weights and moments are where they were saved; what follows is another schedule's."""

    def setup(p: int) -> Setup:
        inside = {"optimizer": partial(AdamW, lr=0.01)}
        return Setup(p, ps.pipedream(p, 12), arguments=inside, model=lambda seed: nn.Sequential(*eight(seed)[:6]))

    path, expected = saved_then_unbroken(tmp_path, setup(3), before=1, after=0)
    assert_same(resumed(path, setup(2), before=1, after=0), expected)


def tied(seed: int) -> nn.Sequential:
    """Layers 0, 5 and 7 have one weight."""
    model = eight(seed)
    model[5][0].weight = model[0][0].weight
    model[7][0].weight = model[0][0].weight
    return model


@pytest.mark.parametrize(
    ("p", "schedule"), [(2, "gpipe"), (1, "naive"), (4, "one_f_one_b"), (2, "zb_v"), (2, "chimera")]
)
def test_tied_parameters_are_saved_once_and_stay_one(p: int, schedule: str, tmp_path: Path) -> None:
    path, expected = saved_then_unbroken(tmp_path, Setup(4, "gpipe", make=momentum, model=tied))
    manifest = read_manifest(path)
    assert manifest.aliases == {"5.0.weight": "0.0.weight", "7.0.weight": "0.0.weight"}
    assert sum(name.endswith(".weight") and name.startswith("model/") for name in manifest.tensors()) == 6
    found = resumed(path, Setup(p, schedule, make=momentum, model=tied))
    assert found.losses == pytest.approx(expected.losses, rel=1e-12)  # the sum over a tie's holders is another's order
    for name, value in expected.weights.items():
        torch.testing.assert_close(found.weights[name], value, rtol=1e-11, atol=1e-13)
    assert torch.equal(found.weights["7.0.weight"], found.weights["0.0.weight"])


def test_what_was_tied_loads_where_it_is_not(tmp_path: Path) -> None:
    path, expected = saved_then_unbroken(tmp_path, Setup(4, "gpipe", model=tied), before=0, after=0)
    found = resumed(path, Setup(2, "gpipe"), before=0, after=0)
    assert_same(found, expected)


def test_what_does_not_fit_is_refused_with_what_would(tmp_path: Path) -> None:
    path, _ = saved_then_unbroken(tmp_path, Setup(2, "gpipe", make=momentum), after=0)

    def refused(setup: Setup) -> str:
        with pytest.raises(CheckpointError) as caught:
            resumed(path, setup, after=0)
        return str(caught.value)

    assert "was saved with the optimizer SGD and this is AdamW; resume with SGD" in refused(Setup(make=adamw))
    own = SCHEDULERS["lambda"]
    assert "no scheduler state; load without scheduler=" in refused(Setup(make=momentum, schedulers=own))
    wide = Setup(model=lambda _: nn.Sequential(*(nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(8))))
    assert "is float64 [6, 6] in" in refused(wide)
    longer = Setup(model=lambda seed: nn.Sequential(*eight(seed), nn.Sequential(nn.Linear(6, 6).double())))
    assert 'lacks 2 of 18 tensors: "model/8.0.weight"' in refused(longer)
    bare, _ = saved_then_unbroken(tmp_path / "bare", Setup(), after=0)
    with pytest.raises(CheckpointError, match="no optimizer settings for"):
        resumed(bare, Setup(make=momentum), after=0)

    def grouped_otherwise(parameters: Parameters) -> Sequence[Optimizer]:
        return [AdamW(parameters.values(), lr=0.1)]

    path, _ = saved_then_unbroken(tmp_path / "groups", Setup(make=adamw), after=0)
    assert "are in one parameter group and were saved with different settings" in refused(Setup(make=grouped_otherwise))
    doubled = Setup(make=lambda parameters: [*momentum(parameters), *momentum(parameters)])
    with pytest.raises(CheckpointError, match=r'"0\.0\.weight" is in two optimizers'):
        saved_then_unbroken(tmp_path / "doubled", doubled, before=0, after=0)
    foreign = Setup(make=lambda _: [SGD(nn.Linear(2, 2).parameters(), lr=0.1)])
    with pytest.raises(CheckpointError, match="2 of the optimizer's 2 parameters are not this pipeline's"):
        saved_then_unbroken(tmp_path / "foreign", foreign, before=0, after=0)


def test_a_group_without_parameters_goes_on_where_it_is(tmp_path: Path) -> None:
    """Symptom: NoneType times float in the next step of the scheduler. Cause: a rank without biases has an empty group
    for them, of which nothing was saved."""

    def bare(seed: int) -> nn.Sequential:
        model = eight(seed)
        for layer in model[4:]:
            layer[0].register_parameter("bias", None)
        return model

    def decayed_apart(parameters: Parameters) -> Sequence[Optimizer]:
        groups = [
            {"params": [p for p in parameters.values() if p.dim() > 1]},
            {"params": [p for p in parameters.values() if p.dim() == 1], "weight_decay": 0.0, "lr": 1e-3},
        ]
        return [AdamW(groups, lr=1e-2, weight_decay=0.1)]

    def setup(p: int, scheduler: str) -> Setup:
        return Setup(p, "gpipe", make=decayed_apart, schedulers=SCHEDULERS[scheduler], model=bare)

    for scheduler in ("lambda", "several", "plateau"):
        path, expected = saved_then_unbroken(tmp_path / scheduler, setup(2, scheduler), before=1, after=2)
        for p in (1, 2, 4):
            assert_same(resumed(path, setup(p, scheduler), before=1, after=2), expected)


def test_names_are_the_models_own_whatever_is_compiled(tmp_path: Path) -> None:
    """Symptom: a run without torch.compile could not open what one with it had saved. Cause: `_orig_mod` in names."""

    def compiled(seed: int) -> nn.Sequential:
        return nn.Sequential(*(torch.compile(layer, backend="eager") for layer in tied(seed)))

    kinds = {"compiled": compiled, "plain": tied}
    for one, other in (("compiled", "plain"), ("plain", "compiled")):
        setup = Setup(2, "gpipe", make=momentum, model=kinds[one])
        path, expected = saved_then_unbroken(tmp_path / one, setup, before=0, after=0)
        assert all("_orig_mod" not in name for name in read_manifest(path).tensors())
        assert read_manifest(path).aliases == {"5.0.weight": "0.0.weight", "7.0.weight": "0.0.weight"}
        found = resumed(path, setup._replace(num_ranks=4, model=kinds[other]), before=0, after=0)
        plain = {name.replace("_orig_mod.", ""): value for name, value in expected.weights.items()}
        assert {name.replace("_orig_mod.", "") for name in found.weights} == plain.keys()
        for name, value in found.weights.items():
            assert torch.equal(value, plain[name.replace("_orig_mod.", "")]), name


def test_a_larger_models_checkpoint_is_refused_not_loaded_in_part(tmp_path: Path) -> None:
    """Symptom: a model of six layers took the first six of eight. Cause: each rank asked for its own names alone."""
    path, _ = saved_then_unbroken(tmp_path, Setup(2, "gpipe"), before=0, after=0)
    shorter = Setup(3, "gpipe", model=lambda seed: nn.Sequential(*eight(seed)[:6]))
    with pytest.raises(CheckpointError, match=r'has no place for 4 of them: "6\.0\.bias", "6\.0\.weight"'):
        resumed(path, shorter, before=0, after=0)
    untied, _ = saved_then_unbroken(tmp_path / "untied", Setup(2, "gpipe"), before=0, after=0)
    with pytest.raises(CheckpointError, match=r'no place for 2 of them: "5\.0\.weight", "7\.0\.weight"'):
        resumed(untied, Setup(2, "gpipe", model=tied), before=0, after=0)
