"""A steady pattern repeated: the order found for a few microbatches becomes one for many.

    t1          t2
    F F F I F I W | F I W | F I W | F I F I W W I W W        rank 0
    . F F I F I W | F I W | F I W | F I I W W W              rank 1
      head          pattern ×n        tail

All ranks are cut at the same two moments. If between them each kind of op has run q times on every stage, then what
every rank has done at t2 is what it had done at t1, q microbatches on. So the pattern can run again from there, and
again: no rank waits for good, and none holds more than it did.
"""

from __future__ import annotations

import numpy as np

from penstock.optimize.policies import Found
from penstock.optimize.problem import Problem
from penstock.simulator.orders import Ints, run_words

_TRIED = 12
"""How many patterns are timed."""


def repeated(small: Problem, found: Found, large: Problem) -> Found | None:
    """Returns the best repetition of a pattern of `found`, which solves `small`; None where it has no pattern.

    Args:
        small: the problem with fewer microbatches.
        found: its solution.
        large: the same problem with more.
    """
    more = large.num_microbatches - small.num_microbatches
    best = None
    for before, after, turns in _patterns(small, found, more)[:_TRIED]:
        words, lengths = _joined(found, before, after, more // turns)
        value = time_of(large, words, lengths)
        if value is not None and (best is None or value < best.value):
            best = Found(words, lengths, value, f"{found.source}, pattern of {turns} repeated")
    return best


def time_of(problem: Problem, words: Ints, lengths: Ints) -> float | None:
    """Returns what these words take by the objective; None where ranks wait for one another for good."""
    starts = np.zeros(words.shape)
    ends = np.zeros((2, problem.num_stages, problem.num_microbatches))
    makespan, span = run_words(words, lengths, problem.seconds, problem.down, problem.up, starts, ends[0], ends[1])
    return None if makespan < 0 else makespan if problem.objective == "makespan" else span


def _patterns(small: Problem, found: Found, more: int) -> list[tuple[Ints, Ints, int]]:
    """Returns for each pattern where it begins and ends on every rank, and its microbatches; the promising first."""
    words, lengths = found.words, found.lengths
    starts = np.zeros(words.shape)
    ends = np.zeros((2, small.num_stages, small.num_microbatches))
    makespan, _ = run_words(words, lengths, small.seconds, small.down, small.up, starts, ends[0], ends[1])
    busiest = int(np.argmax([starts[rank, length - 1] - starts[rank, 0] for rank, length in enumerate(lengths)]))
    moments = np.unique(starts[busiest, : lengths[busiest]])
    seen: dict[bytes, list[tuple[float, Ints, int]]] = {}
    patterns = []
    for moment in moments:
        cut = np.array(
            [np.searchsorted(starts[rank, :length], moment - 1e-9 * makespan) for rank, length in enumerate(lengths)]
        )
        done = np.concatenate(
            [np.bincount(words[rank, :at], minlength=4 * small.num_stages) for rank, at in enumerate(cut)]
        )
        used = np.concatenate(
            [np.bincount(words[rank, :length], minlength=4 * small.num_stages) for rank, length in enumerate(lengths)]
        )
        counts = done[used > 0]
        for then, before, turns in seen.get((counts - counts[0]).tobytes(), ()):
            gone = int(counts[0]) - turns
            if gone > 0 and more % gone == 0:
                off_centre = abs((moment + then) / 2 - makespan / 2)
                patterns.append(((moment - then) / gone, off_centre, before, cut, gone))
        seen.setdefault((counts - counts[0]).tobytes(), []).append((float(moment), cut, int(counts[0])))
    patterns.sort(key=lambda pattern: (round(pattern[0] / makespan, 9), pattern[1]))
    return [(before, cut, gone) for _, _, before, cut, gone in patterns]


def _joined(found: Found, before: Ints, after: Ints, times: int) -> tuple[Ints, Ints]:
    """Returns the words with the letters from `before` to `after` repeated so many times more."""
    rows = [
        np.concatenate([word[:end], np.tile(word[begin:end], times), word[end:length]])
        for word, length, begin, end in zip(found.words, found.lengths, before, after, strict=True)
    ]
    lengths = np.array([len(row) for row in rows], np.int64)
    words = np.zeros((len(rows), int(lengths.max())), np.int64)
    for rank, row in enumerate(rows):
        words[rank, : len(row)] = row
    return words, lengths
