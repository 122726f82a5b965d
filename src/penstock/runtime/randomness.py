"""Random numbers keyed by (seed, step, microbatch, layer), so that no layout or schedule changes them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch

from penstock.models.cut import LayerContext
from penstock.models.keyed_draws import default_generator_lock as _default_generator


def layer_seed(seed: int, *, step: int, microbatch: int, layer: int) -> int:
    """Returns the 63-bit seed of one layer's forward."""
    key = f"{seed}/{step}/{microbatch}/{layer}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little") >> 1


def keyed_layers(seed: int, *, step: int, microbatch: int) -> LayerContext:
    """Returns what to put around each layer's forward: torch's generator seeded for it, then put back."""

    @contextmanager
    def surrounding(layer: int) -> Iterator[None]:
        with _default_generator, torch.random.fork_rng():
            torch.manual_seed(layer_seed(seed, step=step, microbatch=microbatch, layer=layer))
            yield

    return surrounding


class RandomState(NamedTuple):
    """Where torch's default generators stand: the CPU's and those of the accelerators in use."""

    cpu: torch.Tensor
    cuda: list[torch.Tensor]


def random_state() -> RandomState:
    """Returns where the generators stand now."""
    return RandomState(torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [])


@contextmanager
def drawn_from(state: RandomState) -> Iterator[None]:
    """Draws from `state` on, and puts the generators back afterwards."""
    with _default_generator, torch.random.fork_rng():
        torch.set_rng_state(state.cpu)
        if state.cuda:
            torch.cuda.set_rng_state_all(state.cuda)
        yield
