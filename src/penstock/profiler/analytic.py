"""A profile without the device: what each kernel would take, by its FLOPs and bytes, from a run on the meta device."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry

from penstock.models import CutModel, Stage
from penstock.profiler.accelerators import Accelerator
from penstock.profiler.kinds import Placed, placed_layers, single
from penstock.profiler.layers import boundary_sizes
from penstock.profiler.measure import microbatch_size, sequence_of
from penstock.profiler.storage import kept_by
from penstock.profiler.values import LayerProfile, OpTimings, Profile, Timing
from penstock.profiler.workbench import Workbench, borrowed
from penstock.runtime.batch.microbatches import to_device
from penstock.runtime.stage_work import LossFunction, backward_in_one_thread

_META = torch.device("meta")


class LikeADevice(TorchFunctionMode):
    """Does what devices do and the meta device does not: fused attention, and questions that a model asks of numbers.

    Models ask whether all positions are one sequence, or any is padding. The answer is that of a plain batch.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Returns what `func` does, attention by its fused kernel."""
        if func is functional.scaled_dot_product_attention:
            return _fused(*args, **(kwargs or {}))
        if func in _ANSWERS and len(args) == 1 and not kwargs and args[0].is_meta:
            return torch.tensor(_ANSWERS[func], device="cpu")
        return func(*args, **(kwargs or {}))


_ANSWERS: dict[Any, bool] = {torch.all: True, Tensor.all: True, torch.any: False, Tensor.any: False}


def _fused(  # noqa: PLR0913  # the arguments of torch's own function
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Returns attention by the kernel that a device takes: flash for 16 bits without a mask, else memory-efficient."""
    if enable_gqa:
        groups = query.shape[-3] // key.shape[-3]
        key, value = (each.repeat_interleave(groups, -3) for each in (key, value))
    if attn_mask is None and query.dtype in (torch.float16, torch.bfloat16):
        flash = torch.ops.aten._scaled_dot_product_flash_attention
        out: Tensor = flash(query, key, value, dropout_p, is_causal, False, scale=scale)[0]
        return out
    if attn_mask is not None:
        bias = attn_mask if attn_mask.is_floating_point() else torch.zeros_like(attn_mask, dtype=query.dtype)
        attn_mask = bias.expand(*query.shape[:-1], key.shape[-2])
    efficient = torch.ops.aten._scaled_dot_product_efficient_attention
    out = efficient(query, key, value, attn_mask, True, dropout_p, is_causal, scale=scale)[0]
    return out


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
    with LikeADevice():
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
        device.name,
        False,
        microbatch_size(placed[0].given),
        tuple(layers),
        memory_bytes=device.memory_bytes,
        sequence=sequence_of(placed[0].given),
    )


def _layer(
    stage: Stage, placed: Placed, inputs: Any, loss: tuple[LossFunction, Any] | None, device: Accelerator
) -> LayerProfile:
    bench = Workbench(stage, placed.given, inputs=inputs, loss=loss)
    with borrowed(stage, _META), backward_in_one_thread(True), LikeADevice():
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
