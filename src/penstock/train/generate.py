"""Text from the model that is spread over the ranks."""

from __future__ import annotations

import torch

from penstock.runtime import Pipeline
from penstock.train.gpt import sample


def readable(text: bytes) -> str:
    """Returns bytes as text that can do a terminal no harm: what is not text or not printable is replaced."""
    decoded = text.decode("utf-8", errors="replace")
    return "".join(char if char.isprintable() or char in "\n\t" else "\N{REPLACEMENT CHARACTER}" for char in decoded)


def generate(pipe: Pipeline, prompt: bytes, *, num_bytes: int, context: int, seed: int) -> bytes:
    """Returns `prompt` and `num_bytes` that the model adds to it, on every rank. Every rank calls it.

    The window has a fixed length, so that boundaries keep their shapes: bytes behind the last one are padding,
    which causal attention does not see.

    Args:
        prompt: at least one byte.
        num_bytes: how many to add.
        context: bytes that the model sees at once.
        seed: key of the draw.
    """
    text = bytearray(prompt)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(num_bytes):
        seen = text[-context:]
        window = torch.zeros(1, context, dtype=torch.int64)
        window[0, : len(seen)] = torch.tensor(list(seen))
        logits = pipe.forward(window)
        drawn = b""
        if logits is not None:
            drawn = bytes(sample(logits[:, len(seen) - 1].cpu(), temperature=0.7, generator=generator).tolist())
        text += b"".join(pipe.exchange(drawn))
    return bytes(text)
