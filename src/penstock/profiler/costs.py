"""From a profile to the values that partition, search and simulation take."""

from __future__ import annotations

import math

from penstock.cluster import Cluster, Device, Link
from penstock.errors import check_type
from penstock.partition import LayerCosts
from penstock.profiler.values import LayerProfile, Profile


def layer_costs(profile: Profile, *, optimizer_bytes_per_parameter_byte: float = 2.0) -> LayerCosts:
    """Returns the layers' costs, as each is behind the one before; I and W together take what B takes.

    Args:
        profile: of the model.
        optimizer_bytes_per_parameter_byte: what the optimizer keeps; 2 for Adam's moments in the parameters' type.
    """
    check_type("profile", profile, Profile, example="what penstock.profile returns")
    layers = profile.layers
    splits = [_split(layer) for layer in layers]
    return LayerCosts(
        forward=[layer.behind("forward") for layer in layers],
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


def _split(layer: LayerProfile) -> tuple[float, float]:
    """Returns the parts of a full backward that I and W are."""
    whole, first, second = map(layer.behind, ("backward", "input_grad", "weight_grad"))
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
