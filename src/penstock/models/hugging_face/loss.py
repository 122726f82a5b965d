"""The losses of language models as a pipeline takes them: per microbatch, weighted by tokens."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.nn import functional

IGNORED = -100
"""The label of a position that counts for nothing, as in transformers."""

Output = torch.Tensor | Mapping[str, torch.Tensor]
"""Logits, or a dict of them and of an "aux_loss" to be added, as sparse models give it."""


def causal_lm_loss(output: Output, labels: torch.Tensor) -> torch.Tensor:
    """Returns the mean cross entropy of the next token, over the labels that are not ignored.

    With `weight_fn=token_count` a pipeline's loss is the mean over all tokens of the batch, however the ignored ones
    are spread over microbatches.

    Args:
        output: logits (batch, length, vocabulary); or a dict of them and of an "aux_loss" to be added, as sparse models
            give it whose `config.output_router_logits` is set.
        labels: (batch, length), the ids themselves; position t is predicted from those before it. -100 is ignored.
    """
    logits = output if isinstance(output, torch.Tensor) else output["logits"]
    loss = _mean(logits[:, :-1], labels[:, 1:])
    return loss if isinstance(output, torch.Tensor) else loss + output["aux_loss"]


def seq2seq_loss(output: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Returns the mean cross entropy of an encoder-decoder, over the labels that are not ignored.

    With `weight_fn=label_count` a pipeline's loss is the mean over all labels of the batch.

    Args:
        output: logits (batch, length, vocabulary).
        labels: (batch, length), what the decoder is to give at each position: it reads them shifted. -100 is ignored.
    """
    return _mean(output, labels)


def token_count(labels: torch.Tensor) -> float:
    """Returns how many labels of a microbatch count in `causal_lm_loss`: its weight."""
    return label_count(labels[:, 1:])


def label_count(labels: torch.Tensor) -> float:
    """Returns how many labels of a microbatch count in `seq2seq_loss`: its weight."""
    return float((labels != IGNORED).sum())


def _mean(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    rows = logits.flatten(0, 1)
    total = functional.cross_entropy(
        rows.float() if rows.dtype in _SHORT else rows, labels.flatten(), ignore_index=IGNORED, reduction="sum"
    )
    return total / (labels != IGNORED).sum().clamp(min=1)


_SHORT = (torch.bfloat16, torch.float16)
