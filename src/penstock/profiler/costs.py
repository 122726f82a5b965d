"""From a profile to the values that partition, search and simulation take."""

from __future__ import annotations

import math

from penstock.cluster import Cluster, Device, Link
from penstock.errors import check_type
from penstock.partition import LayerCosts
from penstock.profiler.values import OpTimings, Profile


def layer_costs(profile: Profile, *, optimizer_bytes_per_parameter_byte: float = 2.0) -> LayerCosts:
    """Returns the layers' costs, each op's overhead left out; I and W together take what B takes.

    Args:
        profile: of the model.
        optimizer_bytes_per_parameter_byte: what the optimizer keeps; 2 for Adam's moments in the parameters' type.
    """
    check_type("profile", profile, Profile, example="what penstock.profile returns")
    layers, over = profile.layers, profile.overhead
    splits = [_split(layer.seconds, over) for layer in layers]
    return LayerCosts(
        forward=[max(0.0, layer.seconds.forward.seconds - over.forward.seconds) for layer in layers],
        input_grad=[each for each, _ in splits],
        weight_grad=[each for _, each in splits],
        parameter_bytes=[layer.parameter_bytes for layer in layers],
        gradient_bytes=[layer.gradient_bytes for layer in layers],
        optimizer_bytes=[layer.gradient_bytes * optimizer_bytes_per_parameter_byte for layer in layers],
        activation_bytes=[layer.activation_bytes + layer.keeps_input * layer.input_bytes for layer in layers],
        deferred_bytes=[
            layer.deferred_bytes
            + layer.defers_input * layer.input_bytes
            + layer.defers_output_grad * layer.output.grad_bytes
            for layer in layers
        ],
        boundary_bytes=[layer.output.bytes for layer in layers],
        recompute_bytes=[layer.input_bytes for layer in layers],
        names=[layer.name for layer in layers],
    )


def _split(seconds: OpTimings, over: OpTimings) -> tuple[float, float]:
    """Returns the parts of a full backward that I and W are."""
    whole = max(0.0, seconds.backward.seconds - over.backward.seconds)
    first = max(0.0, seconds.input_grad.seconds - over.input_grad.seconds)
    second = max(0.0, seconds.weight_grad.seconds - over.weight_grad.seconds)
    both = first + second
    return (whole * first / both, whole * second / both) if both else (whole, 0.0)


def cluster_of(profile: Profile, num_ranks: int) -> Cluster:
    """Returns `num_ranks` devices of the profile's kind and the links that were measured.

    Where as many ranks measured, each is as fast as it was then: two devices of one kind seldom are the same. What a
    message takes of the ranks themselves is in the costs of their ops (`stage_costs`).
    """
    memory = profile.memory_bytes or math.inf
    speeds = profile.speeds if len(profile.speeds) == num_ranks else (1.0,) * num_ranks
    levels = tuple(
        (
            level.ranks_per_group,
            Link(
                level.messages.latency_seconds,
                1 / level.messages.seconds_per_byte if level.messages.seconds_per_byte else math.inf,
            ),
        )
        for level in profile.links
    )
    devices = tuple(Device(memory, speed, profile.host.waking) for speed in speeds)
    return Cluster(devices, levels or ((num_ranks, Link()),))
