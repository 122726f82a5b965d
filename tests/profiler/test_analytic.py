"""Times for a device that is not there: FLOPs and bytes counted, rates as stated."""

import pytest
import torch
from torch import nn

import penstock as ps
from penstock.profiler import Accelerator, accelerator

ROWS, IN, OUT = 64, 128, 256
DEVICE = Accelerator("slide rule", 1e6, 1e6, 1e9, 1 << 30, most=0.5, half_flops=0.0, launch_seconds=0.0, stream=1.0)
"""Half a million FLOPs a second, whatever the size: bytes never matter."""


def profiled(model: nn.Module, **options: object) -> ps.Profile:
    return ps.profile(model, torch.randn(ROWS, IN), target_device=DEVICE, **options)


def test_products_take_their_flops() -> None:
    linear, *_, last = profiled(nn.Sequential(nn.Linear(IN, IN), nn.Linear(IN, OUT), nn.Linear(OUT, OUT))).layers[1:]
    product = 2 * ROWS * IN * OUT / 0.5e6
    assert linear.seconds.forward.seconds == pytest.approx(product, rel=0.01)
    assert linear.seconds.input_grad.seconds == pytest.approx(product, rel=0.01)
    assert linear.seconds.weight_grad.seconds == pytest.approx(product, rel=0.01)
    assert linear.seconds.backward.seconds == pytest.approx(2 * product, rel=0.01)
    assert linear.seconds.recompute_backward.seconds == pytest.approx(3 * product, rel=0.01)
    assert last.parameter_bytes == (OUT + 1) * OUT * 4


def test_bytes_and_launches_take_time_where_nothing_is_multiplied() -> None:
    slow = Accelerator("shelf", 1e15, 1e15, 1e6, 1 << 30, launch_seconds=3.0, stream=0.5)
    relu = ps.profile(nn.Sequential(nn.ReLU(), nn.ReLU(), nn.ReLU()), torch.randn(1000), target_device=slow).layers[1]
    assert relu.seconds.forward.seconds == pytest.approx(3.0 + 2 * 4000 / 0.5e6)


def test_a_large_product_gets_more_of_the_peak() -> None:
    h100 = accelerator("h100")
    small, large = (h100.seconds(flops, 0, wide=False) / flops for flops in (1e8, 1e13))
    assert small > 5 * large
    assert large == pytest.approx(1 / (h100.flops_per_second * h100.most), rel=0.01)


def test_a_model_on_the_meta_device_is_enough() -> None:
    with torch.device("meta"):
        model = nn.Sequential(*(nn.Linear(IN, IN) for _ in range(4)))
    found = profiled(model)
    assert not found.measured
    assert found.device == "slide rule"
    assert [layer.kind for layer in found.layers] == [0, 1, 1, 2]
    assert ps.predict(found, ps.one_f_one_b(2, 4)).seconds > 0
    with pytest.raises(ps.UserError, match='target_device="h100"'):
        ps.profile(model, torch.randn(ROWS, IN))


def test_a_model_with_weights_stays_where_it_is() -> None:
    model = nn.Sequential(nn.Linear(IN, IN), nn.BatchNorm1d(IN))
    before = list(model.parameters())
    profiled(model)
    assert all(old is new for old, new in zip(before, model.parameters(), strict=True))
    assert model[1].running_mean.device.type == "cpu"


def test_unknown_devices_and_rates_are_refused() -> None:
    with pytest.raises(ps.UserError, match='Did you mean "h100"'):
        accelerator("h10")
    with pytest.raises(ps.UserError, match="above 0"):
        Accelerator("broken", 0, 1, 1, 1)
