"""A profile without the device: what each kernel would take, by its FLOPs and bytes, from a run on the meta device."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry

from penstock.models import CutModel, Stage
from penstock.profiler.accelerators import Accelerator
from penstock.profiler.kinds import Placed, placed_layers, single
from penstock.profiler.layers import boundary_sizes
from penstock.profiler.measure import microbatch_size
from penstock.profiler.storage import kept_by
from penstock.profiler.values import LayerProfile, OpTimings, Profile, Timing
from penstock.profiler.workbench import Workbench, borrowed
from penstock.runtime.microbatches import to_device
from penstock.runtime.stage_work import LossFunction, backward_in_one_thread

_META = torch.device("meta")


class Counter(TorchDispatchMode):
    """Counts what every kernel called inside would take on a device.

    Attributes:
        seconds: that the device would take.
        flops: of products.
        largest_bytes: of the largest result of one kernel.
    """

    def __init__(self, device: Accelerator) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._device = device
        self.seconds = self.flops = 0.0
        self.largest_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs the kernel and counts it; one that only makes a view takes nothing."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func.is_view or func._overloadpacket in _FREE:
            return out
        formula = flop_registry.get(func._overloadpacket)
        flops = float(formula(*args, **kwargs, out_val=out)) if formula else 0.0
        made = [each for each in tree_iter(out) if isinstance(each, Tensor)]
        touched = [each for each in tree_iter((args, kwargs)) if isinstance(each, Tensor)] + made
        wide = any(each.dtype in (torch.float32, torch.float64) for each in made)
        self.flops += flops
        self.seconds += self._device.seconds(flops, sum(each.nbytes for each in touched), wide=wide)
        self.largest_bytes = max([self.largest_bytes, *(each.nbytes for each in made)])
        return out


_FREE = frozenset({torch.ops.aten.detach, torch.ops.aten.empty, torch.ops.aten.empty_like, torch.ops.aten.lift_fresh})


def computed_profile(
    model: CutModel, inputs: Any, loss: tuple[LossFunction, Any] | None, device: Accelerator
) -> Profile:
    """Returns the profile of `model` on `device`; arguments as for `penstock.profile`.

    Raises:
        ModelError: a layer whose forward needs numbers, which the meta device does not have.
    """
    inputs = to_device(inputs, _META)
    ends = (loss[0], to_device(loss[1], _META)) if loss else None
    placed = placed_layers(model, inputs, _META)
    found: dict[int, LayerProfile] = {}
    layers = []
    seen: set[int] = set()
    for index, (name, layer) in enumerate(model.layers.items()):
        kind = placed[index].kind
        if kind not in found:
            first, last = index == 0, index == model.num_layers - 1
            found[kind] = _layer(
                single(model, index), placed[index], inputs if first else None, ends if last else None, device
            )
        new = [parameter for parameter in layer.parameters() if id(parameter) not in seen]
        seen |= {id(parameter) for parameter in new}
        size = sum(parameter.nbytes for parameter in new)
        trained = sum(parameter.nbytes for parameter in new if parameter.requires_grad)
        layers.append(replace(found[kind], name=name, parameter_bytes=size, gradient_bytes=trained))
    return Profile(
        device.name, False, microbatch_size(placed[0].given), tuple(layers), memory_bytes=device.memory_bytes
    )


def _layer(
    stage: Stage, placed: Placed, inputs: Any, loss: tuple[LossFunction, Any] | None, device: Accelerator
) -> LayerProfile:
    bench = Workbench(stage, placed.given, inputs=inputs, loss=loss)
    with borrowed(stage, _META), backward_in_one_thread(True):
        with Counter(device) as forward:
            kept = bench.forward(split=True)
        starts = bench.starts(kept)
        with Counter(device) as input_grad:
            bench.work.input_grads(0, starts)
        with Counter(device) as weight_grad:
            bench.work.weight_grads(0)
        bench.clear()
        memory = kept_by(bench, _META)
    f, i, w = (_timing(each.seconds) for each in (forward, input_grad, weight_grad))
    both = _timing(i.seconds + w.seconds)
    sizes = boundary_sizes(placed.output)
    entering = sum(tensor.nbytes for tensor in placed.given.tensors)
    return LayerProfile(
        "",
        placed.kind,
        OpTimings(f, both, f, i, w, _timing(f.seconds + both.seconds), _timing(f.seconds + i.seconds)),
        activation_bytes=memory.activation_bytes,
        keeps_input=memory.keeps_input,
        keeps_output=memory.keeps_output,
        input_bytes=entering,
        deferred_bytes=memory.deferred_bytes,
        defers_input=memory.defers_input,
        defers_output_grad=memory.defers_output_grad,
        output=sizes,
        # What is freed inside cannot be seen without memory: the largest result of a kernel stands for it.
        forward_peak_bytes=memory.activation_bytes + sizes.bytes + forward.largest_bytes,
        backward_peak_bytes=entering + input_grad.largest_bytes,
        recompute_peak_bytes=memory.activation_bytes + entering + input_grad.largest_bytes,
    )


def _timing(seconds: float) -> Timing:
    return Timing(seconds, seconds, seconds)
