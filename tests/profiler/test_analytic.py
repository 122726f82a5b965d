"""Times for a device that is not there: FLOPs and bytes counted, rates as stated."""

import pytest
import torch
from torch import nn
from torch.nn import functional

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


class Attention(nn.Module):
    """Four heads over positions; of keys and values two, where they are shared."""

    def __init__(self, mask: str, shared: bool) -> None:
        super().__init__()
        self.mask, self.shared = mask, shared
        self.to_heads = nn.Linear(64, 64 + 2 * (32 if shared else 64))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        positions, keys = inputs.shape[1], 32 if self.shared else 64
        parts = self.to_heads(inputs).split((64, keys, keys), dim=-1)
        heads = [part.unflatten(-1, (-1, 16)).transpose(1, 2) for part in parts]
        square = inputs.new_ones(positions, positions)
        mask = {"": None, "added": square, "chosen": square > 0}[self.mask]
        out = functional.scaled_dot_product_attention(
            *heads, attn_mask=mask, is_causal=mask is None, enable_gqa=self.shared
        )
        return out.transpose(1, 2).flatten(2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("mask", "shared"), [("", False), ("", True), ("added", False), ("chosen", True)])
def test_attention_is_fused_so_that_no_scores_are_kept(dtype: torch.dtype, mask: str, shared: bool) -> None:
    """Symptom: activations grew with the square of the positions, beyond any device. Cause: the meta device has no
    fused kernel and wrote the scores out."""
    kept = []
    for positions in (256, 512):
        with torch.device("meta"):
            model = nn.Sequential(*(Attention(mask, shared) for _ in range(3))).to(dtype)
            inputs = torch.zeros(2, positions, 64, dtype=dtype)
        layer = ps.profile(model, inputs, target_device="h100").layers[1]
        assert layer.output.bytes == inputs.nbytes
        # A mask is kept, as one bias for all heads.
        kept.append(layer.activation_bytes - (positions**2 * dtype.itemsize if mask else 0))
    scores = 2 * 4 * 512**2 * dtype.itemsize
    assert kept[1] <= 2.5 * kept[0]
    assert kept[1] < scores or dtype == torch.float32


class Asking(nn.Linear):
    """Asks of the numbers in its input what decoders ask of positions and masks."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if (inputs < 0).any() or not torch.all(inputs == inputs):
            raise ValueError("no plain batch")
        return super().forward(inputs)


def test_what_a_model_asks_of_numbers_is_answered_as_for_a_plain_batch() -> None:
    """Symptom: no Hugging Face decoder could be computed for a device. Cause: they ask whether positions are packed."""
    with torch.device("meta"):
        model = nn.Sequential(*(Asking(IN, IN) for _ in range(3)))
    assert profiled(model).layers[1].seconds.forward.seconds == pytest.approx(2 * ROWS * IN * IN / 0.5e6, rel=0.01)


@pytest.mark.models
@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen3", "gemma2"])
def test_decoders_are_computed_from_their_config(kind: str) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 128}
    config = transformers.AutoConfig.for_model(kind, **sizes)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    tokens = torch.zeros(1, 512, dtype=torch.int64)
    found = ps.profile(model, tokens, tokens, loss_fn=lambda out, _: out.sum(), target_device="h100")
    assert sum(layer.parameter_bytes for layer in found.layers) == sum(each.nbytes for each in model.parameters())


def test_attention_takes_its_flops() -> None:
    """Two products of 4 · positions² · width in the forward, five in the backward (Dao 2023, FlashAttention-2)."""
    with torch.device("meta"):
        model = nn.Sequential(*(Attention("", False) for _ in range(3))).to(torch.bfloat16)
        inputs = torch.zeros(1, 4096, 64, dtype=torch.bfloat16)
    middle = ps.profile(model, inputs, target_device=DEVICE).layers[1].seconds
    products, projection = 2 * 2 * 4096**2 * 64 / 0.5e6, 2 * 4096 * 64 * 192 / 0.5e6
    assert middle.forward.seconds == pytest.approx(products + projection, rel=0.01)
    assert middle.backward.seconds == pytest.approx(2.5 * products + 2 * projection, rel=0.01)


def test_unknown_devices_and_rates_are_refused() -> None:
    with pytest.raises(ps.UserError, match='Did you mean "h100"'):
        accelerator("h10")
    with pytest.raises(ps.UserError, match="above 0"):
        Accelerator("broken", 0, 1, 1, 1)
