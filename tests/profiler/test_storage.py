"""Bytes that a microbatch keeps, against what the layers are known to keep."""

import pytest
import torch
from torch import nn

from penstock.models import cut
from penstock.profiler.kinds import placed_layers, single
from penstock.profiler.storage import Kept, kept_by, most_held
from penstock.profiler.workbench import Workbench, borrowed

CPU = torch.device("cpu")
ROWS, WIDTH = 8, 16
TENSOR = ROWS * WIDTH * 4


def kept(*layers: nn.Module, device: torch.device = CPU) -> Kept:
    """What the layers keep together as a stage between a first and a last layer."""
    model = cut(nn.Sequential(nn.Linear(WIDTH, WIDTH), *layers, nn.Linear(WIDTH, WIDTH)))
    placed = placed_layers(model, torch.randn(ROWS, WIDTH))
    stage = single(model, 1, len(layers))
    with borrowed(stage, device):
        return kept_by(Workbench(stage, placed[1].given), device)


def test_a_linear_layer_keeps_its_input_alone() -> None:
    found = kept(nn.Linear(WIDTH, WIDTH))
    assert (found.activation_bytes, found.keeps_input, found.keeps_output) == (0, True, False)
    assert (found.deferred_bytes, found.defers_input, found.defers_output_grad) == (0, True, True)


def test_a_relu_keeps_its_output() -> None:
    found = kept(nn.ReLU())
    assert (found.activation_bytes, found.keeps_input, found.keeps_output) == (0, False, True)
    assert (found.deferred_bytes, found.defers_input) == (0, False)


def test_a_stage_keeps_what_passes_inside_once() -> None:
    found = kept(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH))
    assert found.activation_bytes == TENSOR  # the ReLU's output, which is the second product's input
    assert found.deferred_bytes == 2 * TENSOR  # that, and the gradient of the first product's output


def test_the_batch_is_the_callers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Symptom: the last layer kept as much as the whole batch. Cause: a loss saves its targets, a view of the batch."""
    model = cut(nn.Sequential(nn.Linear(WIDTH, WIDTH)))
    inputs, targets = torch.randn(64, WIDTH)[:ROWS], torch.randn(64, WIDTH)[:ROWS]
    placed = placed_layers(model, inputs)
    bench = Workbench(single(model, 0), placed[0].given, inputs=inputs, loss=(nn.functional.mse_loss, targets))
    assert kept_by(bench, CPU).activation_bytes <= 2 * TENSOR


def test_memory_on_the_meta_device_is_told_apart() -> None:
    model = cut(nn.Sequential(*(nn.Linear(WIDTH, WIDTH, device="meta") for _ in range(3))))
    placed = placed_layers(model, torch.randn(ROWS, WIDTH, device="meta"), torch.device("meta"))
    bench = Workbench(single(model, 1), placed[1].given)
    found = kept_by(bench, torch.device("meta"))
    assert (found.activation_bytes, found.keeps_input, found.defers_input) == (0, True, True)


def test_the_most_held_is_a_peak_not_a_sum() -> None:
    with most_held(CPU) as peak:
        for _ in range(3):
            torch.empty(1000)
        held = torch.empty(500)
        torch.empty(1000)
    assert peak() == 6000
    del held
