"""The loss of causal language models as a pipeline takes it: per microbatch, weighted by tokens."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.nn import functional

IGNORED = -100
"""The label of a position that counts for nothing, as in transformers."""


def causal_lm_loss(output: torch.Tensor | Mapping[str, torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
    """Returns the mean cross entropy of the next token, over the labels that are not ignored.

    With `weight_fn=token_count` a pipeline's loss is the mean over all tokens of the batch, however the ignored ones
    are spread over microbatches.

    Args:
        output: logits (batch, length, vocabulary); or a dict of them and of an "aux_loss" to be added, as sparse models
            give it whose `config.output_router_logits` is set.
        labels: (batch, length), the ids themselves; position t is predicted from those before it. -100 is ignored.
    """
    logits = output if isinstance(output, torch.Tensor) else output["logits"]
    targets = labels[:, 1:]
    total = functional.cross_entropy(
        logits[:, :-1].flatten(0, 1).float() if logits.dtype in _SHORT else logits[:, :-1].flatten(0, 1),
        targets.flatten(),
        ignore_index=IGNORED,
        reduction="sum",
    )
    loss = total / (targets != IGNORED).sum().clamp(min=1)
    return loss if isinstance(output, torch.Tensor) else loss + output["aux_loss"]


def token_count(labels: torch.Tensor) -> float:
    """Returns how many labels of a microbatch count in `causal_lm_loss`: its weight."""
    return float((labels[:, 1:] != IGNORED).sum())


_SHORT = (torch.bfloat16, torch.float16)
