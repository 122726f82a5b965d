"""What a training step was expected to take, against what it takes, and why the two differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from penstock.profiler import Causes, Profile, causes, predict, profile
from penstock.runtime import DistributedTransport, Pipeline, Transport
from penstock.train.config import VOCABULARY, Config, ModelConfig
from penstock.train.gpt import build_gpt, lm_loss
from penstock.units import time_unit

_BLOCKS = 2
"""Blocks that are measured; the others cost the same."""


def profile_gpt(
    config: Config,
    *,
    transport: Transport | None = None,
    target_device: str | None = None,
    seconds: float = 2.0,
    recompute: bool = True,
) -> Profile:
    """Returns the profile of the configured model on one microbatch; arguments as for `penstock.profile`.

    Of the blocks, which are all alike, no more are made than are measured.
    """
    sizes = config.model
    small: ModelConfig = replace(sizes, layers=min(sizes.layers, _BLOCKS))
    device = "meta" if target_device else _device_of(config)
    with torch.random.fork_rng():
        model = build_gpt(small, seed=config.run.seed, dtype=getattr(torch, config.run.dtype)).to(device)
        batch = max(1, config.run.batch_size // config.pipeline.microbatches)
        tokens = torch.randint(0, VOCABULARY, (batch, sizes.context))
    found = profile(
        model,
        tokens,
        tokens,
        loss_fn=lm_loss,
        transport=transport,
        target_device=target_device,
        seconds=seconds,
        recompute=recompute,
    )
    embed, block, *_, head = found.layers
    blocks = [replace(block, name=f"block_{index}") for index in range(sizes.layers)]
    return replace(found, layers=(embed, *blocks, head))


def _device_of(config: Config) -> torch.device:
    return torch.device(config.run.device if config.run.device == "cpu" else "cuda")


def prediction_text(config: Config, pipe: Pipeline, step_seconds: Sequence[float], *, seconds: float = 1.0) -> str:
    """Returns predicted against measured in words, on every rank; every rank calls it between two steps.

    Args:
        config: of the run.
        pipe: has run as many steps as there are `step_seconds`.
        step_seconds: of the last steps, from call to return on this rank.
        seconds: how long to measure the layers.
    """
    transport = DistributedTransport()
    try:
        again = set(config.pipeline.recompute)
        found = profile_gpt(config, transport=transport, seconds=seconds, recompute=bool(again))
    finally:
        transport.close()
    program, plan = pipe.plan.proof.program, pipe.plan
    choices = [layer in again for layer in range(found.num_layers)]
    expected = predict(found, program, partition=plan.partition, recompute=choices)
    return causes_text(causes(expected, program, pipe.trace(len(step_seconds)), step_seconds=step_seconds))


def causes_text(found: Causes) -> str:
    """Returns what a step was expected to take, what it takes, and how much each cause accounts for."""
    unit = time_unit(found.measured)
    change = found.measured / found.predicted - 1 if found.predicted else 0.0
    named = {
        "compute": found.compute,
        "transfer": found.transfer,
        "waiting": found.waiting,
        "host": found.host,
    }
    parts = ", ".join(f"{name} {seconds * unit.per_base:+.3g}" for name, seconds in named.items())
    return (
        f"step: {unit.text(found.predicted)} predicted, {unit.text(found.measured)} measured ({change:+.1%}); "
        f"of the difference, in {unit.name}: {parts}"
    )
