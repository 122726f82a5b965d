"""Models on the meta device: a rank makes its own stages alone, and one seed gives every layout the same bits."""

from __future__ import annotations

import warnings
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import penstock as ps
from penstock.errors import HandshakeError, ModelError
from penstock.models import cut
from penstock.models.hugging_face import Directory, causal_lm_loss, meta_model
from penstock.partition import Partition

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from tests.models.tiny import LENGTH, VOCABULARY, tiny

pytestmark = pytest.mark.filterwarnings("ignore")

LAYOUTS: tuple[tuple[int, dict[str, Any]], ...] = (
    (3, {}),
    (2, {"schedule": "zb_v"}),
    (2, {"schedule": "interleaved_1f1b"}),
)


def ids(rows: int = 2) -> Tensor:
    return torch.randint(3, VOCABULARY, (rows, LENGTH), generator=torch.Generator().manual_seed(1))


def config(model_type: str, **changes: Any) -> Any:
    found = tiny(model_type, dtype=torch.float32).config
    for name, value in changes.items():
        setattr(found, name, value)
    return found


def pipeline(model: Any, transport: Any, **more: Any) -> ps.Pipeline:
    return ps.Pipeline(model, causal_lm_loss, transport=transport, num_microbatches=2, **{"seed": 5, **more})


def states(model: Any, p: int, *, trained: bool = False, **more: Any) -> dict[str, Tensor]:
    """Every tensor of the model over all ranks, and after a step every gradient too."""

    def rank(transport: Any) -> dict[str, Tensor]:
        pipe = pipeline(model, transport, **more)
        found = pipe.state_dict()
        if trained:
            pipe.step(ids(), ids())
            found |= {f"grad of {name}": each.grad for name, each in pipe.named_parameters() if each.grad is not None}
        return found

    return {name: value for own in ps.run_ranks(rank, p) for name, value in own.items()}


def same(split: dict[str, Tensor], whole: dict[str, Tensor]) -> None:
    assert split.keys() >= whole.keys()  # a tied gradient is there once more, under its other name
    for name, value in whole.items():
        assert torch.equal(split[name], value), name


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "gpt2", "mamba", "mixtral"])
def test_one_seed_gives_every_layout_the_same_bits(model_type: str):
    """Plain, tied, one whose outermost module draws for all inside it, one with numbers of its own kind, experts."""
    model = meta_model(config(model_type))
    whole = states(model, 1)
    for p, more in LAYOUTS:
        same(states(model, p, **more), whole)
    assert all(parameter.is_meta for parameter in model.parameters())
    other = states(model, 1, seed=6)
    assert any(not torch.equal(value, other[name]) for name, value in whole.items())


def test_dropout_is_the_same_in_every_layout():
    """Symptom: GPT-2 drew another one in each layout. Cause: it drops the sum of its embeddings, between its parts."""
    untied = {"tie_word_embeddings": False}  # the two gradients of a tied weight are added in another order
    model = meta_model(config("gpt2", resid_pdrop=0.3, embd_pdrop=0.3, attn_pdrop=0.3, **untied))
    whole = states(model, 1, trained=True)
    for p, more in LAYOUTS:
        same(states(model, p, trained=True, **more), whole)
    undropped = states(meta_model(config("gpt2", **untied)), 1, trained=True)
    name = "grad of transformer.wte.weight"
    assert not torch.equal(whole[name], undropped[name])


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "mamba", "apertus", "openai-gpt"])
def test_numbers_are_drawn_as_the_model_itself_draws_them(model_type: str):
    """Also where it leaves them to a constructor: the scales of an activation, a layer that is no nn.Linear."""
    usual = tiny(model_type, dtype=torch.float32).state_dict()
    for name, value in states(meta_model(config(model_type)), 1).items():
        own = usual[name]
        if own.numel() < 2 or own.std() == 0:
            assert torch.equal(value, own), name
        elif own.numel() >= 1000:
            assert abs(value.std() / own.std() - 1) < 0.2, name
            assert abs(value.mean() - own.mean()) < 0.2 * own.std(), name


def test_buffers_that_no_file_holds_are_computed_as_the_model_computes_them():
    usual = tiny("llama", dtype=torch.float32)
    loss = usual(input_ids=ids(), use_cache=False).logits
    state = usual.state_dict()

    def rank(transport: Any) -> Tensor:
        pipe = pipeline(meta_model(usual.config), transport)
        pipe.load_state_dict(state)
        return pipe.forward(ids(), broadcast=True)

    torch.testing.assert_close(ps.run_ranks(rank, 2)[0], loss, rtol=1e-6, atol=1e-7)


class Bytes(TorchDispatchMode):
    """Adds up the bytes of all memory that is asked for on the CPU while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: dict[int, tuple[int, Any]] = {}

    @property
    def total(self) -> int:
        return sum(size for size, _ in self.storages.values())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, list | tuple) else [out]:
            if isinstance(value, Tensor) and not value.is_meta:
                storage = value.untyped_storage()
                self.storages[storage._cdata] = (storage.nbytes(), storage)  # kept, so that no address comes twice
        return out


def test_a_rank_asks_for_no_more_memory_than_its_own_stages_take():
    model = meta_model(config("llama", num_hidden_layers=8, hidden_size=128, intermediate_size=512, head_dim=32))
    whole = sum(parameter.nbytes for parameter in model.parameters())

    def rank(transport: Any) -> tuple[int, int]:
        with Bytes() as asked:
            pipe = pipeline(model, transport)
        return asked.total, sum(parameter.nbytes for parameter in pipe.parameters())

    found = ps.run_ranks(rank, 4)
    assert sum(own for _, own in found) == whole
    for total, own in found:
        assert own < 0.4 * whole
        assert own <= total < own + 0.01 * whole


def resident(key: str) -> int:
    """Bytes of this process that are (VmRSS) or once were (VmHWM) in memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def grown_by_reading(folder: Path) -> tuple[int, int]:
    """By how much a process of its own grows at most while it reads its stage, and the bytes of that stage."""
    torch.set_num_threads(1)
    layers = cut(Directory(folder))
    stage = layers.stage(Partition.of_sizes([2, 1, 1, 1, 1, 1, 1, 3]), 3)
    assert layers.fill is not None
    before = resident("VmRSS")
    layers.fill([stage], None)
    return resident("VmHWM") - before, sum(parameter.nbytes for parameter in stage.parameters())


def test_a_process_that_reads_one_stage_grows_by_one_stage(tmp_path: Path):
    large = {"num_hidden_layers": 8, "hidden_size": 384, "intermediate_size": 3072, "head_dim": 96}
    model = meta_model(config("llama", **large))
    model.config.save_pretrained(tmp_path)
    save_file(
        {name: torch.zeros(value.shape) for name, value in model.named_parameters()}, tmp_path / "model.safetensors"
    )
    whole = sum(parameter.nbytes for parameter in model.parameters())
    with get_context("fork").Pool(1) as pool:
        grown, own = pool.apply_async(grown_by_reading, [tmp_path]).get(timeout=60)
    assert 0.1 * whole < own < 0.2 * whole
    assert grown < 2.5 * own  # the tensors, and the pages of the file that they come from


def test_layers_and_sequentials_on_the_meta_device_reset_their_parameters():
    with torch.device("meta"):
        layers = [nn.Linear(4, 4), nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4)), nn.BatchNorm1d(4), nn.Linear(4, 4)]
    model = nn.Sequential(*layers)
    whole = states(model, 1)
    same(states(model, 2), whole)
    same(states(model, 4), whole)
    same(states(layers, 2), whole)
    assert whole["0.weight"].std() > 0.1
    assert not torch.equal(whole["0.weight"], whole["3.weight"])
    assert torch.equal(whole["2.running_var"], torch.ones(4))


def test_the_random_numbers_of_the_process_are_left_alone():
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    states(meta_model(config("llama")), 1)
    torch.manual_seed(3)
    model = meta_model(config("llama"))
    torch.manual_seed(3)
    states(model, 2)
    assert torch.equal(torch.rand(3), expected)


class Counted(nn.Module):
    """Has a parameter, and no code that would initialise it."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(2))


def test_what_cannot_be_drawn_is_named():
    def made(model: Any, **more: Any) -> str:
        with pytest.raises((ModelError, HandshakeError)) as caught:
            ps.run_ranks(lambda transport: pipeline(model, transport, **more), 2)
        return str(caught.value)

    assert "pass seed= to Pipeline, e.g. seed=0" in made(meta_model(config("llama")), seed=None)
    with torch.device("meta"):
        layers = [nn.Linear(2, 2), Counted()]
    assert "(_init_weights or reset_parameters) initialises 1.scale" in made(layers)
    mixed = meta_model(config("llama"))
    mixed.lm_head.weight = nn.Parameter(torch.ones(VOCABULARY, 32))
    assert "lm_head.weight of this LlamaForCausalLM has numbers" in made(mixed)
