"""Why a plan wins, and why others do not fit, in words."""

from __future__ import annotations

from collections.abc import Sequence

from penstock.cluster import Link
from penstock.planner.candidates import RecomputeRule
from penstock.planner.costing import Costing, fixed_bytes
from penstock.planner.evaluation import Evaluation, Parts
from penstock.planner.plan import Plan
from penstock.units import size_text

_WORDS = {
    "multiplication": "multiplying matrices",
    "collectives": "the collectives of the tensor degree",
    "recompute": "running forwards again",
    "sharding": "waiting for shared parameters and gradients",
    "waiting": "the bubble",
    "ending": "exchanging gradients and updating",
}
"""Part of a step -> what a person calls it."""
_EQUAL = 1e-9
"""Steps that differ by this share of them are equal but for rounding."""
_NOTABLE = 0.1
"""A part is told where it makes up this share of all that differs."""


def why(plan: Plan, others: Sequence[Plan]) -> str:
    """Returns why `plan` stands before the next best of `others`, and before the next of other degrees."""
    if not others:
        return "no slower plan was kept to compare with"
    degrees = (plan.data, plan.tensor, plan.pipeline)
    unlike = next((other for other in others if (other.data, other.tensor, other.pipeline) != degrees), None)
    told = [_faster(plan, other) for other in dict.fromkeys((others[0], unlike or others[0]), None)]
    return "; and ".join(told)


def _faster(plan: Plan, other: Plan) -> str:
    gained = other.forecast.step_seconds - plan.forecast.step_seconds
    if gained <= _EQUAL * plan.forecast.step_seconds:
        saved = max(other.forecast.memory_bytes) - max(plan.forecast.memory_bytes)
        return f"as fast as {other.name}" + (f", in {size_text(saved)} less memory" if saved > 0 else "")
    mine, theirs = plan.forecast.seconds, other.forecast.seconds
    differs = {name: theirs[name] - mine[name] for name in Parts._fields}
    notable = sum(map(abs, differs.values())) * _NOTABLE
    told = [
        f"{_WORDS[name]} {abs(seconds):.3g} s {'less' if seconds > 0 else 'more'}"
        for name, seconds in sorted(differs.items(), key=lambda item: -item[1])
        if abs(seconds) >= notable and abs(seconds) > 0
    ]
    share = gained / plan.forecast.step_seconds
    return f"{gained:.3g} s ({share:.1%}) faster than {other.name}: {', '.join(told) or 'equal in every part'}"


def too_large(plan: Evaluation, rule: RecomputeRule) -> str:
    """Returns which rank lacks how many bytes."""
    lacks = [held - limit for held, limit in zip(plan.memory, plan.limits, strict=True)]
    rank = lacks.index(max(lacks))
    one = plan.candidate
    again = {"as needed": ", all its layers run again", "always": ", all layers run again", "never": ""}[rule]
    return (
        f"rank {rank} takes {size_text(plan.memory[rank])} and has {size_text(plan.limits[rank])}: it lacks "
        f"{lacks[rank]:.0f} bytes, even with {one.schedule}, ZeRO {one.sharding} over {one.degrees.data} copies, "
        f"microbatches of {one.size}{again}"
    )


def layer_too_large(costing: Costing, degrees: list[int], most_sharding: int) -> str | None:
    """Returns which layer fits no device at the lowest of these tensor degrees, and at which degree one would.

    None where each layer fits some device.
    """
    lowest = min(degrees)
    layer, held = _largest_layer(costing, lowest, most_sharding)
    room = max(kind.usable_bytes for kind in costing.fleet.kinds)
    if held <= room:
        return None
    width, name = costing.work.tensor_width, costing.work.names[layer]
    higher = (degree for degree in range(lowest + 1, width + 1) if width % degree == 0)
    fitting = next((one for one in higher if _largest_layer(costing, one, most_sharding)[1] <= room), None)
    way = "no tensor degree makes it fit: use devices with more memory or shorter sequences"
    if fitting is not None:
        way = f"tensor degree {fitting} would fit"
    return (
        f"{name} alone is too large for a device at tensor degree {lowest}: with one sequence it takes "
        f"{size_text(held)} and a device has {size_text(room)}; {way}"
    )


def _largest_layer(costing: Costing, tensor: int, sharding: int) -> tuple[int, float]:
    """Returns the layer that takes most, and its bytes, alone on a device with one sequence in flight."""
    copies = max(costing.fleet.num_devices // tensor, 1)
    copies = next(count for count in range(copies, 0, -1) if costing.global_batch % count == 0)
    layers = costing.table(1, tensor, 0, Link())
    held = fixed_bytes(layers, sharding=sharding, copies=copies) + layers.activation + 2 * layers.boundary
    if copies > 1 and sharding >= 2:
        # What is shared otherwise is there whole while the layer computes.
        held = held + layers.gradient + (layers.parameter if sharding == 3 else 0)
    layer = int(held.argmax())
    return layer, float(held[layer])
