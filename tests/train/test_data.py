"""Batches depend on (seed, step) alone; held-out text is fixed and never trained on."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import DataError
from penstock.train.data import Corpus, batch, held_out_batches, read_corpus, split, unigram_entropy
from penstock.train.texts import Text


def counting_corpus(size: int) -> Corpus:
    """Text in which a byte tells its place modulo 251."""
    counting = (np.arange(size) % 251).astype(np.uint8)
    return Corpus(train=counting, held_out=counting[: size // 10], digest="")


def many_files(sizes: list[int]) -> list[Text]:
    return [Text(f"{index}.txt", bytes([index % 256]) * size) for index, size in enumerate(sizes)]


def test_a_batch_is_a_pure_function_of_seed_and_step() -> None:
    corpus = counting_corpus(4000)
    sizes = {"batch_size": 4, "context": 16}
    forwards = [batch(corpus, step=step, seed=1, **sizes) for step in range(130)]
    for step in reversed(range(130)):
        inputs, targets = batch(corpus, step=step, seed=1, **sizes)
        assert torch.equal(inputs, forwards[step][0])
        assert torch.equal(targets, forwards[step][1])
    assert not torch.equal(batch(corpus, step=0, seed=2, **sizes)[0], forwards[0][0])


def test_targets_are_the_following_bytes() -> None:
    inputs, targets = batch(counting_corpus(4000), step=3, seed=0, batch_size=8, context=16)
    assert inputs.shape == targets.shape == (8, 16)
    assert inputs.dtype == targets.dtype == torch.int64
    assert torch.equal((inputs + 1) % 251, targets)
    assert torch.equal(inputs[:, 1:], targets[:, :-1])


@given(st.integers(0, 5), st.integers(1, 7), st.integers(1, 9), st.integers(0, 40))
def test_windows_of_one_epoch_do_not_overlap(seed: int, batch_size: int, context: int, spare: int) -> None:
    size = (batch_size + 1) * context + spare
    # int64 so that a byte is its own place in the text
    corpus = Corpus(train=np.arange(size), held_out=np.arange(1), digest="")  # type: ignore[arg-type]
    steps = (size // context - 1) // batch_size
    seen = torch.cat(
        [
            batch(corpus, step=step, batch_size=batch_size, context=context, seed=seed)[0].flatten()
            for step in range(steps)
        ]
    )
    assert len(seen.unique()) == len(seen) == steps * batch_size * context


def test_epochs_differ_in_order() -> None:
    corpus = counting_corpus(4000)
    per_epoch = (4000 // 16 - 1) // 4
    first = batch(corpus, step=0, seed=0, batch_size=4, context=16)[0]
    second = batch(corpus, step=per_epoch, seed=0, batch_size=4, context=16)[0]
    assert not torch.equal(first, second)


def test_epochs_cut_the_text_at_different_places() -> None:
    corpus = Corpus(train=np.arange(400), held_out=np.arange(1), digest="")  # type: ignore[arg-type]
    per_epoch = (400 // 16 - 1) // 4
    firsts = [batch(corpus, step=per_epoch * epoch, seed=0, batch_size=4, context=16)[0] for epoch in range(9)]
    assert len({int(first[0, 0]) % 16 for first in firsts}) > 3


def test_a_text_too_small_for_a_batch_is_refused_with_the_size_that_is_enough() -> None:
    with pytest.raises(DataError, match="give at least 144 bytes"):
        batch(counting_corpus(143), step=0, seed=0, batch_size=8, context=16)
    batch(counting_corpus(144), step=0, seed=0, batch_size=8, context=16)


def test_whole_files_are_held_out_whatever_their_order() -> None:
    texts = many_files([100] * 50)
    corpus = split(texts, held_out=0.1)
    held_out, train = set(corpus.held_out.tolist()), set(corpus.train.tolist())
    assert held_out & train == {10}  # the newline between files, and file 10 on one side
    assert 400 <= len(corpus.held_out) <= 510
    backwards = split(texts[::-1], held_out=0.1)
    assert set(backwards.held_out.tolist()) == held_out


def test_of_a_single_file_the_tail_is_held_out() -> None:
    corpus = split([Text("a", bytes(range(100)))], held_out=0.2)
    assert corpus.train.tolist() == list(range(80))
    assert corpus.held_out.tolist() == list(range(80, 100))


def test_of_files_too_large_for_the_share_the_tail_is_held_out() -> None:
    corpus = split(many_files([1000, 1000, 3]), held_out=0.1)
    assert len(corpus.held_out) == 200


def test_the_digest_tells_texts_apart_and_knows_them_again() -> None:
    texts = many_files([50] * 20)
    assert split(texts, held_out=0.1).digest == split(texts, held_out=0.1).digest
    assert split(texts, held_out=0.1).digest != split(texts[:-1], held_out=0.1).digest
    assert split(texts, held_out=0.1).digest != split(texts, held_out=0.3).digest


def test_unigram_entropy_is_the_loss_of_the_train_frequencies() -> None:
    train = np.repeat(np.array([65, 66], dtype=np.uint8), [999_999, 999_999])
    corpus = Corpus(train=train, held_out=train[:100], digest="")
    assert unigram_entropy(corpus) == pytest.approx(math.log(2), abs=1e-3)


def test_unigram_entropy_of_an_unseen_byte_is_finite() -> None:
    corpus = Corpus(train=np.zeros(10, np.uint8), held_out=np.ones(3, np.uint8), digest="")
    assert unigram_entropy(corpus) == pytest.approx(math.log(266))


def test_held_out_windows_are_spread_evenly_and_fixed() -> None:
    corpus = counting_corpus(20_000)  # 2000 held-out bytes: 199 windows of 10
    batches = held_out_batches(corpus, batches=3, batch_size=4, context=10)
    assert [len(inputs) for inputs, _ in batches] == [4, 4, 4]
    starts = torch.cat([inputs[:, 0] for inputs, _ in batches])
    assert torch.equal(starts, torch.tensor([index * 199 // 12 * 10 % 251 for index in range(12)]))


def test_a_short_held_out_text_gives_all_its_windows_and_a_ragged_batch() -> None:
    batches = held_out_batches(counting_corpus(710), batches=5, batch_size=4, context=10)
    assert [len(inputs) for inputs, _ in batches] == [4, 3]
    with pytest.raises(DataError, match="fewer than one window of 11 bytes"):
        held_out_batches(counting_corpus(100), batches=1, batch_size=1, context=10)


def test_the_corpus_comes_from_the_users_paths_or_from_the_library(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("0123456789")
    assert bytes(read_corpus([str(tmp_path)], held_out=0.3).held_out) == b"789"
    library = read_corpus(held_out=0.05)
    assert 0.04 < len(library.held_out) / len(library.train) < 0.06
    assert 2.5 < unigram_entropy(library) < 3.6
