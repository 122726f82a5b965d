"""Ops are timed right: against layers whose time is counted in ticks."""

import pytest
import torch
from tests.profiler.ticking import Ticking, Ticks
from torch import nn

from penstock.models import CutModel, cut
from penstock.profiler import accelerator
from penstock.profiler import layers as measuring
from penstock.profiler.analytic import Counter
from penstock.profiler.kinds import placed_layers
from penstock.profiler.layers import Subject, measured_layers
from penstock.profiler.values import LayerProfile


def measured(
    model: CutModel, ticks: Ticks, monkeypatch: pytest.MonkeyPatch, *, recompute: bool = False
) -> tuple[LayerProfile, ...]:
    monkeypatch.setattr(measuring, "clock_of", lambda device: ticks)
    inputs = torch.randn(2, 4)
    subject = Subject(model, placed_layers(model, inputs), inputs, None, torch.device("cpu"), recompute)
    return measured_layers(subject, seconds=0.001)


def test_forward_and_backward_of_each_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = Ticks()
    model = cut(nn.Sequential(Ticking(ticks, 1, 2), Ticking(ticks, 3, 5), Ticking(ticks, 3, 5), Ticking(ticks, 7, 11)))
    layers = measured(model, ticks, monkeypatch)
    assert [layer.seconds.forward.seconds for layer in layers] == [1, 3, 3, 7]
    assert [layer.seconds.backward.seconds for layer in layers] == [2, 5, 5, 11]
    assert [layer.seconds.input_grad.seconds for layer in layers] == [2, 5, 5, 11]
    assert [layer.seconds.weight_grad.seconds for layer in layers] == [0, 0, 0, 0]
    assert [layer.saved.forward.seconds + layer.saved.backward.seconds for layer in layers] == [0, 0, 0, 0]
    assert layers[1].seconds.recompute_backward.repeats == 0


def test_a_backward_that_recomputes_runs_the_forward_too(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = Ticks()
    layers = measured(cut(nn.Sequential(*(Ticking(ticks, 3, 5) for _ in range(3)))), ticks, monkeypatch, recompute=True)
    assert layers[1].seconds.recompute_backward.seconds == 8
    assert layers[1].seconds.recompute_input_grad.seconds == 8


class Noisy(Ticking):
    """Takes a hundred times as long at its first and at some later calls."""

    def __init__(self, ticks: Ticks) -> None:
        super().__init__(ticks, 3, 5)
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.ahead = 300 if self.calls <= 12 or self.calls % 40 == 0 else 3
        return super().forward(x)


def test_what_is_slow_at_first_or_seldom_does_not_move_the_median(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = Ticks()
    model = cut(nn.Sequential(Ticking(ticks, 1, 1), Noisy(ticks), Ticking(ticks, 1, 1)))
    found = measured(model, ticks, monkeypatch)[1].seconds.forward
    assert found.seconds == found.low == 3


def test_of_large_layers_both_of_each_sort_of_neighbours_are_walked(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = []
    for held in (0, measuring._BEYOND_CACHES):
        monkeypatch.setattr(measuring, "_BEYOND_CACHES", held)
        model = cut(nn.Sequential(*(Ticking(Ticks(), 1, 1) for _ in range(9))))
        inputs = torch.randn(2, 4)
        subject = Subject(model, placed_layers(model, inputs), inputs, None, torch.device("cpu"), False)
        counts.append(measuring._walked(subject))
    assert counts == [[0, 1, 2, 7, 8], list(range(9))]


def test_f_i_and_w_of_a_linear_layer_are_its_three_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock counts FLOPs of matrix products, so that nothing else takes time."""
    with Counter(accelerator("h100")) as counter:
        monkeypatch.setattr(measuring, "clock_of", lambda device: lambda: counter.flops)
        # What runs again stops where all that the backward needs is there: here behind the product, as tanh keeps it.
        model = cut(nn.Sequential(*(nn.Sequential(nn.Linear(32, 32), nn.Tanh()) for _ in range(3))))
        inputs = torch.randn(8, 32)
        subject = Subject(model, placed_layers(model, inputs), inputs, None, torch.device("cpu"), True)
        layer = measured_layers(subject, seconds=0.001)[1].seconds
    product = 2 * 8 * 32 * 32
    assert {name: timing.seconds / product for name, timing in vars(layer).items()} == {
        "forward": 1,
        "backward": 2,
        "split_forward": 1,
        "input_grad": 1,
        "weight_grad": 1,
        "recompute_backward": 3,
        "recompute_input_grad": 2,
    }


class Prepares(nn.Module):
    """A stage that takes 100 ticks before its layers, however many they are."""

    def __init__(self, ticks: Ticks, layers: dict[str, nn.Module]) -> None:
        super().__init__()
        self.surrounding = None
        self._ticks = ticks
        self.layers = nn.Sequential(*layers.values())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self._ticks.now += 100
        return self.layers(x)


def test_what_a_stage_takes_once_its_first_layer_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = Ticks()
    layers = {str(index): Ticking(ticks, 3, 5) for index in range(5)}
    model = CutModel(layers, assemble=lambda held, first: Prepares(ticks, dict(held)))
    found = measured(model, ticks, monkeypatch)
    assert [layer.saved.forward.seconds for layer in found] == [0, 100, 100, 100, 100]
    assert {layer.saved.backward.seconds for layer in found} == {0}
    assert found[2].seconds.forward.seconds == 103


class Masks(nn.Module):
    """A stage that takes 100 ticks before its layers if any is a block, and 10 if none is."""

    def __init__(self, ticks: Ticks, layers: dict[str, nn.Module]) -> None:
        super().__init__()
        self.surrounding = None
        self._ticks, self._before = ticks, 100 if any(name.isdecimal() for name in layers) else 10
        self.layers = nn.Sequential(*layers.values())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self._ticks.now += self._before
        return self.layers(x)


def test_what_a_layer_saves_depends_on_the_one_before_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = Ticks()
    layers = {name: Ticking(ticks, 3, 5) for name in ("embed", "0", "1", "2", "head")}
    model = CutModel(layers, assemble=lambda held, first: Masks(ticks, dict(held)))
    found = measured(model, ticks, monkeypatch)
    assert [layer.seconds.forward.seconds for layer in found] == [13, 103, 103, 103, 13]
    assert [layer.saved.forward.seconds for layer in found] == [0, 10, 100, 100, 10]


def test_tied_parameters_count_once(monkeypatch: pytest.MonkeyPatch) -> None:
    first, last = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
    last.weight = first.weight
    model = cut(nn.Sequential(first, nn.ReLU(), last))
    layers = measured(model, Ticks(), monkeypatch)
    assert [layer.parameter_bytes for layer in layers] == [64, 0, 0]


def test_forwards_and_backwards_of_different_microbatches_take_turns() -> None:
    ran: list[str] = []
    layers = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)))
    for index, layer in enumerate(layers):
        layer.register_forward_hook(lambda *_, index=index: ran.append(f"F{index}"))  # type: ignore[misc]
        layer.register_full_backward_hook(lambda *_, index=index: ran.append(f"B{index}"))  # type: ignore[misc]
    inputs = torch.randn(2, 4, requires_grad=True)
    model = cut(layers)
    subject = Subject(model, placed_layers(model, inputs), inputs, None, torch.device("cpu"), False)
    ran.clear()
    measured_layers(subject, seconds=0.001)
    assert " ".join(ran[:18]) == "F0 F1 F2 F0 B2 F1 B1 F2 B0 F0 B2 F1 B1 F2 B0 B2 B1 B0"
