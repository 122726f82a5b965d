"""Byte-level corpora, and batches as a pure function of (seed, step).

    train bytes   |-- window 0 --|-- window 1 --|-- window 2 --| …     windows of `context` bytes,
                  ^ the epoch's offset                                 targets one byte further
    epoch e       a permutation of the windows and an offset, keyed by (seed, e)
    step t        windows [t·batch, (t+1)·batch) of its epoch; a remainder smaller than a batch is left out

So a resumed run needs nothing but the number of the step.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from penstock.errors import DataError
from penstock.train.texts import Text, library_texts, user_files

Bytes = npt.NDArray[np.uint8]
Symbols = npt.NDArray[np.uint8] | npt.NDArray[np.int32]
"""Bytes, or the numbers of tokens."""
Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class Corpus:
    """Text to train on and text to judge by."""

    train: Symbols
    """What to train on."""
    held_out: Symbols
    """What training never sees."""
    digest: str
    """SHA-256 of the bytes of both: a resumed run compares it."""
    unit: str = "byte"
    """What one symbol is."""


def read_corpus(paths: Sequence[str] = (), *, held_out: float) -> Corpus:
    """Returns the corpus of the user's `paths`, or of the standard library where there are none.

    Args:
        held_out: Share of the bytes kept for evaluation, between 0 and 1.
    """
    return split(user_files(paths) if paths else library_texts(), held_out=held_out)


def split(texts: Sequence[Text], *, held_out: float) -> Corpus:
    """Returns whole files held out where they make up the share, else the tail of the text.

    Files are taken in the order of their name's hash while they fit the share: the choice depends on names
    and sizes alone, not on the machine. One file, or few large ones, give no such choice: then the tail is
    held out.
    """
    wanted = int(held_out * sum(len(text.content) for text in texts))
    chosen: set[int] = set()
    room = wanted
    for index in sorted(range(len(texts)), key=lambda index: hashlib.sha256(texts[index].name.encode()).digest()):
        if len(texts[index].content) <= room:
            chosen.add(index)
            room -= len(texts[index].content)
    if room > wanted / 2:
        whole = _join(texts)
        return _corpus(whole[: len(whole) - wanted], whole[len(whole) - wanted :])
    kept = [text for index, text in enumerate(texts) if index not in chosen]
    return _corpus(_join(kept), _join([texts[index] for index in sorted(chosen)]))


def unigram_entropy(corpus: Corpus) -> float:
    """Returns nats per symbol of the held-out text under the *train* text's frequencies.

    It is the loss of a model that knows how often each symbol occurs and nothing else. Every count is one
    higher than seen, so that one new to the held-out text costs much, not infinitely much.
    """
    symbols = max(256, int(corpus.train.max(initial=0)) + 1, int(corpus.held_out.max(initial=0)) + 1)
    train = np.bincount(corpus.train, minlength=symbols) + 1.0
    held_out = np.bincount(corpus.held_out, minlength=symbols)
    return float(-(held_out * np.log(train / train.sum())).sum() / held_out.sum())


def batch(corpus: Corpus, *, step: int, batch_size: int, context: int, seed: int) -> Batch:
    """Returns step `step`'s inputs and targets, int64 (batch_size, context); steps count from 0.

    Raises:
        DataError: The text has fewer windows than a batch.
    """
    windows = len(corpus.train) // context - 1
    if windows < batch_size:
        raise DataError(
            f"{len(corpus.train)} {corpus.unit}s of training text hold {max(windows, 0)} windows of "
            f"context={context}, fewer than batch_size={batch_size}; "
            f"give at least {(batch_size + 1) * context} {corpus.unit}s, or lower either number"
        )
    epoch, position = divmod(step, windows // batch_size)
    order, offset = _epoch(seed, epoch, windows, context)
    starts = offset + order[position * batch_size : (position + 1) * batch_size] * context
    return _windows(corpus.train, starts, context)


def held_out_batches(corpus: Corpus, *, batches: int, batch_size: int, context: int) -> list[Batch]:
    """Returns up to `batches` batches of fixed windows spread evenly over the held-out text.

    A text with fewer windows gives all it has, and the last batch may be smaller than `batch_size`.

    Raises:
        DataError: The held-out text is shorter than one window.
    """
    windows = (len(corpus.held_out) - 1) // context
    if windows < 1:
        raise DataError(
            f"{len(corpus.held_out)} {corpus.unit}s of held-out text are fewer than one window of {context + 1} "
            f"{corpus.unit}s; raise data.held_out, give more text, or lower model.context"
        )
    count = min(batches * batch_size, windows)
    starts = np.arange(count) * windows // count * context
    return [
        _windows(corpus.held_out, starts[first : first + batch_size], context) for first in range(0, count, batch_size)
    ]


def _corpus(train: Bytes, held_out: Bytes) -> Corpus:
    digest = hashlib.sha256(len(train).to_bytes(8, "big"))
    digest.update(train.data)
    digest.update(held_out.data)
    return Corpus(train, held_out, digest.hexdigest())


def _join(texts: Sequence[Text]) -> Bytes:
    return np.frombuffer(b"\n".join(text.content for text in texts), dtype=np.uint8)


@lru_cache(maxsize=2)
def _epoch(seed: int, epoch: int, windows: int, context: int) -> tuple[npt.NDArray[np.int64], int]:
    """Returns the epoch's order of windows and the byte at which its first window may start."""
    random = np.random.Generator(np.random.Philox(key=[seed, epoch]))
    return random.permutation(windows), int(random.integers(context))


def _windows(text: Symbols, starts: npt.NDArray[np.int64], context: int) -> Batch:
    cut = torch.from_numpy(text[starts[:, None] + np.arange(context + 1)].astype(np.int64))
    return cut[:, :-1].contiguous(), cut[:, 1:].contiguous()
