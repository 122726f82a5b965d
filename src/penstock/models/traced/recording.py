"""Recording: the model's forward runs once on stand-ins for tensors, and what it calls is noted as a graph.

Nothing is patched. The forward runs on twins of the modules, which share everything with them but this:

    opened module    its own forward, on the twins of its parts; parameters and buffers are stand-ins
    block            its forward notes one call

So other threads may use the model at the same time, and the model stays as it is.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode, is_tensor_method_or_property

from penstock.errors import ModelError

CONSTANT = "_constant_"
"""Names of tensors that the forward brings along, beside parameters and buffers, begin like this."""


class Recording(fx.Tracer):
    """One run of a model's forward as a graph.

    Args:
        model: it stays as it is.
        arguments: names of the forward's arguments that will be given; others keep their defaults.
        opened: names of the modules whose own forward is followed.
        training: the mode in which the forward runs.

    Attributes:
        graph: the calls in order.
        constants: name -> tensor that is part of the code.
        failed_in: where the forward failed, the innermost opened module that it was in.

    Raises:
        Exception: what the forward raises when it is run on stand-ins.
    """

    def __init__(self, model: nn.Module, arguments: Sequence[str], *, opened: frozenset[str], training: bool) -> None:
        super().__init__()
        self.graph = fx.Graph()
        self.root = nn.Module()
        self.constants: dict[str, Tensor] = {}
        self.failed_in: str | None = None
        self._opened, self._training = opened, training
        self._twins: dict[int, nn.Module] = {}

    def run(self, model: nn.Module, arguments: Sequence[str]) -> Recording:
        """Returns this recording with its graph."""
        twin = self._twin(model, "")
        given = {name: self.create_proxy("placeholder", name, (), {}) for name in arguments}
        with _NumbersToo(self):
            output = twin.forward(**given)
        self.create_node("output", "output", (self.create_arg(output),), {})
        return self

    def create_arg(self, a: Any) -> Any:
        """Returns `a` as a graph holds it; tensors that are part of the code are noted by name."""
        if isinstance(a, Tensor):
            name = next((name for name, known in self.constants.items() if known is a), None)
            if name is None:
                name = f"{CONSTANT}{len(self.constants)}"
                self.constants[name] = a
            return self.create_node("get_attr", name, (), {})
        if isinstance(a, torch.Size):
            return tuple(map(self.create_arg, a))
        return super().create_arg(a)

    def _twin(self, module: nn.Module, path: str) -> nn.Module:
        if id(module) in self._twins:  # the same module under a second name
            return self._twins[id(module)]
        twin: nn.Module = object.__new__(type(module))
        self._twins[id(module)] = twin
        twin.__dict__.update(vars(module))
        for table in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
            twin.__dict__[table] = OrderedDict()
        twin.__dict__["_compiled_call_impl"] = None
        twin.__dict__["training"] = self._training if path in self._opened else module.training
        prefix = f"{path}." if path else ""
        for table in ("_parameters", "_buffers"):
            twin.__dict__[table] = {
                name: tensor if tensor is None else _Lazy(self, f"{prefix}{name}")
                for name, tensor in getattr(module, table).items()
            }
        twin.__dict__["_parameters"] = _Fetched(twin.__dict__["_parameters"])
        twin.__dict__["_buffers"] = _Fetched(twin.__dict__["_buffers"])
        twin.__dict__["_modules"] = {
            name: child if child is None else self._twin(child, f"{prefix}{name}")
            for name, child in module._modules.items()
        }
        follow = path in self._opened
        twin.__dict__["forward"] = self._followed(module, twin, path) if follow else self._noted(path)
        return twin

    def _followed(self, module: nn.Module, twin: nn.Module, path: str) -> Callable[..., Any]:
        forward = type(module).forward

        def run(*args: Any, **kwargs: Any) -> Any:
            try:
                return forward(twin, *args, **kwargs)
            except Exception:
                self.failed_in = path if self.failed_in is None else self.failed_in
                raise

        return run

    def _noted(self, path: str) -> Callable[..., Any]:
        def note(*args: Any, **kwargs: Any) -> Any:
            return self.create_proxy("call_module", path, args, kwargs)

        return note


class _Lazy:
    """A parameter or buffer that no code has asked for yet."""

    def __init__(self, recording: Recording, path: str) -> None:
        self.recording, self.path = recording, path

    def proxy(self) -> fx.Proxy:
        """Returns a stand-in for it, fetched at this place of the graph."""
        return self.recording.create_proxy("get_attr", self.path, (), {})


class _Fetched(dict[str, Any]):
    """A module's table of tensors; who looks one up gets a stand-in."""

    def __getitem__(self, key: str) -> Any:
        value = super().__getitem__(key)
        return value.proxy() if isinstance(value, _Lazy) else value


class _NumbersToo(TorchFunctionMode):
    """Notes calls without a tensor too, such as `torch.arange(x.size(1))`."""

    def __init__(self, recording: Recording) -> None:
        super().__init__()
        self._recording = recording

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        met: list[bool] = []
        fx.node.map_aggregate((args, kwargs), lambda each: met.append(isinstance(each, fx.Proxy)))
        if not any(met):
            return func(*args, **kwargs)
        if is_tensor_method_or_property(func):
            return self._recording.create_proxy("call_method", func.__name__, args, kwargs)
        return self._recording.create_proxy("call_function", func, args, kwargs)


def record(
    model: nn.Module, arguments: Sequence[str], *, opened: frozenset[str], training: bool
) -> tuple[Recording, frozenset[str]]:
    """Returns the recording, and what was opened for it: a module whose forward cannot be followed stays a block.

    Raises:
        ModelError: the model's own forward cannot be followed; the message says what it does and what helps.
    """
    while True:
        recording = Recording(model, arguments, opened=opened, training=training)
        try:
            return recording.run(model, arguments), opened
        except Exception as error:
            if not recording.failed_in:
                raise ModelError(_told(model, error)) from error
            opened -= {recording.failed_in}


def _told(model: nn.Module, error: Exception) -> str:
    kind = type(model).__name__
    return (
        f"the forward of {kind} cannot be followed without numbers, so a {kind} cannot be cut into stages: "
        f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}; move what depends on values (an "
        "if on a tensor, a loop over one, an item that is set) into a module of its own, or give a list of modules"
    )
