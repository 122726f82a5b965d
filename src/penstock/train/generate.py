"""Text from the model that is spread over the ranks."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from penstock.runtime import Pipeline
from penstock.train.config import VOCABULARY
from penstock.train.gpt import sample


def readable(text: bytes) -> str:
    """Returns bytes as text that can do a terminal no harm: what is not text or not printable is replaced."""
    decoded = text.decode("utf-8", errors="replace")
    return "".join(char if char.isprintable() or char in "\n\t" else "\N{REPLACEMENT CHARACTER}" for char in decoded)


def generate(pipe: Pipeline, prompt: bytes, *, num_bytes: int, context: int, seed: int) -> bytes:
    """Returns `prompt` and `num_bytes` that the model adds to it, on every rank. Every rank calls it.

    Arguments as for `generate_symbols`.
    """
    return bytes(generate_symbols(pipe, prompt, count=num_bytes, context=context, seed=seed, vocabulary=VOCABULARY))


def generate_symbols(
    pipe: Pipeline, prompt: Sequence[int], *, count: int, context: int, seed: int, vocabulary: int | None = None
) -> list[int]:
    """Returns `prompt` and `count` symbols that the model adds to it, on every rank. Every rank calls it.

    The window has a fixed length, so that boundaries keep their shapes: what is behind the last one is padding, which
    causal attention does not see.

    Args:
        pipe: gives logits (1, context, symbols).
        prompt: at least one symbol.
        count: how many to add.
        context: symbols that the model sees at once.
        seed: key of the draw.
        vocabulary: only symbols below this are drawn; None draws from all that the model knows.
    """
    text = list(prompt)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        seen = text[-context:]
        window = torch.zeros(1, context, dtype=torch.int64)
        window[0, : len(seen)] = torch.tensor(seen)
        logits = pipe.forward(window)
        drawn = b""
        if logits is not None:
            row = logits[:, len(seen) - 1, :vocabulary].cpu()
            drawn = int(sample(row, temperature=0.7, generator=generator)).to_bytes(8, "little")
        text.append(int.from_bytes(b"".join(pipe.exchange(drawn)), "little"))
    return text
