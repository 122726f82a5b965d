"""Text from a model over several ranks is the same on all of them and harmless on a terminal."""

from __future__ import annotations

import pytest
import torch

from penstock.runtime import Pipeline
from penstock.runtime.transport.loopback import LoopbackTransport, run_ranks
from penstock.train.config import ModelConfig
from penstock.train.generate import generate, readable
from penstock.train.gpt import build_gpt, sample

MODEL = ModelConfig(layers=2, width=8, heads=2, context=6)


def test_two_ranks_make_the_text_that_the_unsplit_model_makes() -> None:
    def rank(transport: LoopbackTransport) -> bytes:
        pipe = Pipeline(build_gpt(MODEL, seed=5), None, transport=transport, schedule="gpipe", num_microbatches=2)
        return generate(pipe, b"ab", num_bytes=9, context=MODEL.context, seed=3)

    texts = run_ranks(rank, 2)
    model, generator = build_gpt(MODEL, seed=5).eval(), torch.Generator().manual_seed(3)
    expected = list(b"ab")
    for _ in range(9):  # the window grows to the context, then it slides; there is no padding here
        with torch.no_grad():
            logits = model(torch.tensor([expected[-MODEL.context :]]))
        expected += sample(logits[:, -1], temperature=0.7, generator=generator).tolist()
    assert texts == [bytes(expected)] * 2


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (b"def f():\n\treturn 1\n", "def f():\n\treturn 1\n"),
        ("naïve".encode(), "naïve"),
        (b"\xff\x80", "\ufffd\ufffd"),
        (b"\x1b[2J\r\x07", "\ufffd[2J\ufffd\ufffd"),  # would clear the screen and ring
    ],
)
def test_what_is_no_text_is_replaced(text: bytes, shown: str) -> None:
    assert readable(text) == shown
