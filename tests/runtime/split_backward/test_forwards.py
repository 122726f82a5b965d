"""A stage's forward is watched where its weights are, and everywhere as long as that is not known to suffice."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from penstock.runtime.split_backward import DeferredForward, DeferWeightGradients, Tape, accumulate
from penstock.runtime.stage_work import backward_in_one_thread


class Borrows(nn.Module):
    """A head that takes the embedding's weight, with a function."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.mix = nn.Embedding(10, 8), nn.Linear(8, 8)

    def forward(self, ids: Tensor) -> Tensor:
        return functional.linear(self.mix(self.embedding(ids)).tanh(), self.embedding.weight)


class Holds(nn.Module):
    """A block with a weight of its own around a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.inner = nn.Parameter(torch.randn(8, 8)), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x @ self.weight).relu()


class Checkpointed(nn.Module):
    """Runs another one once more in its backward."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.inner, x.requires_grad_() if x.is_floating_point() else x, use_reentrant=False)  # type: ignore[no-any-return]


def rows() -> Tensor:
    return torch.linspace(-1, 1, 40).reshape(5, 8)


def ids() -> Tensor:
    return torch.tensor([1, 3, 3, 9])


STAGES: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor], bool]] = {
    "linear layers": (lambda: nn.Sequential(nn.Linear(8, 6), nn.GELU(), nn.Linear(6, 8)), rows, False),
    "a weight of its own": (Holds, rows, False),
    "a borrowed weight": (Borrows, ids, True),
    "no weight to defer": (lambda: nn.Sequential(nn.LayerNorm(8), nn.Tanh()), rows, False),
    "attention": (lambda: nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), rows, False),
    "checkpointed": (lambda: Checkpointed(nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))), rows, False),
    "checkpointed, borrowed": (lambda: Checkpointed(Borrows()), ids, True),
}


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Tells what modes meet."""
    met: list[str] = []
    own = DeferWeightGradients.__torch_function__

    def noted(self: DeferWeightGradients, func: Callable[..., object], *rest: object) -> object:
        met.append(getattr(func, "__name__", str(func)))
        return own(self, func, *rest)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(DeferWeightGradients, "__torch_function__", noted)
        yield met


@pytest.mark.parametrize("name", STAGES)
def test_every_step_leaves_all_weights_for_w_and_gives_the_bits_of_the_full_backward(name: str):
    make, inputs, everywhere = STAGES[name]
    torch.manual_seed(0)
    stage = make()
    twin = copy.deepcopy(stage)
    tape = Tape()
    forward = DeferredForward(stage, tape)
    heavy = {each for each, parameter in stage.named_parameters() if parameter.dim() > 1}
    for _ in range(3):
        for module in (stage, twin):
            module.zero_grad()
        with forward:
            output = stage(inputs())
        tape.entries = entries = []
        with backward_in_one_thread(True), forward:
            torch.autograd.backward([get_gradient_edge(output)], [torch.ones_like(output)])
        tape.entries = None
        early = {each for each, parameter in stage.named_parameters() if parameter.grad is not None}
        assert not early & heavy
        accumulate(entries)
        twin(inputs()).sum().backward()
        for (each, parameter), other in zip(stage.named_parameters(), twin.parameters(), strict=True):
            assert torch.equal(parameter.grad, other.grad), each  # type: ignore[arg-type]
    assert forward._looks_everywhere == everywhere
    assert not [module for module in stage.modules() if "forward" in vars(module)]


def test_after_the_first_forward_no_call_of_torch_but_those_of_other_modules_meets_a_mode(
    monkeypatch: pytest.MonkeyPatch,
):
    """A mode costs each call some microseconds: narrow layers took twice as long."""
    stage = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.LayerNorm(8), Holds())
    forward = DeferredForward(stage, Tape())
    numbers = []
    for _ in range(3):
        with counted(monkeypatch) as met, forward:
            stage(rows())
        numbers.append(met)
    assert {"gelu", "layer_norm", "relu"} <= set(numbers[0])
    assert numbers[1] == numbers[2]
    assert not {"gelu", "layer_norm"} & set(numbers[1])


def test_a_forward_that_fails_leaves_the_modules_as_they_were():
    stage = nn.Sequential(nn.Linear(8, 8), nn.Linear(6, 6))
    forward = DeferredForward(stage, Tape())
    for _ in range(2):
        with pytest.raises(RuntimeError, match="shapes"), forward:
            stage(rows())
        assert not [module for module in stage if "forward" in vars(module)]


def test_a_copy_that_is_made_meanwhile_is_a_module_like_any():
    stage = nn.Sequential(nn.Linear(8, 8), Holds())
    with DeferredForward(stage, Tape()):
        twin = copy.deepcopy(stage)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(1)
    expected = copy.deepcopy(stage)
    expected.load_state_dict(twin.state_dict())
    assert torch.equal(twin(rows()), expected(rows()))
    twin(rows()).sum().backward()
    assert all(parameter.grad is not None for parameter in twin.parameters())
    assert all(parameter.grad is None for parameter in stage.parameters())


def test_where_torch_compile_or_somebody_else_has_a_hand_in_a_forward_it_is_left_alone():
    own = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    compiled = copy.deepcopy(own)
    compiled[0].compile(backend="eager")
    wrapped = nn.Sequential(torch.compile(own[0], backend="eager"), own[1])
    patched = copy.deepcopy(own)
    patched[1].forward = lambda x: nn.Linear.forward(patched[1], x)  # type: ignore[method-assign]
    for stage in (compiled, wrapped, patched):
        before = [vars(module).get("forward") for module in stage.modules()]
        forward = DeferredForward(stage, Tape())
        with forward:
            assert [vars(module).get("forward") for module in stage.modules()] == before
        assert forward._looks_everywhere
        assert [vars(module).get("forward") for module in stage.modules()] == before
