"""What a Hugging Face model is called with: a microbatch as the arguments of its own forward."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from penstock.errors import BatchError
from penstock.models.hugging_face.pair import is_pair

UNCACHED = {"use_cache": False}
"""A training forward keeps no cache: it would tie layers of different stages together."""

_FOREIGN = ("labels", "past_key_values", "use_cache", "output_router_logits", "encoder_outputs")
_DECODED = ("decoder_input_ids", "decoder_inputs_embeds")


def call_of(model: Any, value: Any) -> dict[str, Any]:
    """Returns the arguments of the model's forward for a microbatch.

    Labels of an encoder-decoder become the ids that its decoder reads, by the model's own shift.

    Args:
        model: as its class has it, or a stage's copy of it.
        value: ids, or a dict of arguments.

    Raises:
        BatchError: an argument that a pipeline does not take, or a decoder without ids.
    """
    call = dict(value) if isinstance(value, Mapping) else {model.main_input_name: value}
    if is_pair(model):
        labels = call.pop("labels", None)
        if labels is not None and not any(name in call for name in _DECODED):
            call["decoder_input_ids"] = _shifted(model, labels)
        _check_decoded(model, call)
    for name in _FOREIGN:
        if call.get(name) is not None:
            raise BatchError(
                f"inputs hold {name}; a pipeline computes the loss by its loss_fn from targets and keeps no cache: "
                "give input_ids, attention_mask, position_ids"
            )
    return call


def _shifted(model: Any, labels: Tensor) -> Tensor:
    """Returns the ids that a decoder reads to give `labels`: the model's own, or those of its module's function."""
    if hasattr(model, "prepare_decoder_input_ids_from_labels"):
        ids: Tensor = model.prepare_decoder_input_ids_from_labels(labels=labels)
        return ids
    shift = getattr(sys.modules[type(model).__module__], "shift_tokens_right", None)
    if shift is None:
        raise BatchError(
            f"inputs hold labels, and {type(model).__name__} does not say which ids its decoder reads for them; give "
            "decoder_input_ids"
        )
    shifted: Tensor = shift(labels, model.config.pad_token_id, model.config.decoder_start_token_id)
    return shifted


def _check_decoded(model: Any, call: Mapping[str, Any]) -> None:
    """Refuses inputs of a model that generates without what its decoder reads."""
    if hasattr(model, "prepare_decoder_input_ids_from_labels") and not any(name in call for name in _DECODED):
        raise BatchError(
            f"inputs hold {', '.join(call)}, and the decoder of {type(model).__name__} has nothing to read; add "
            "decoder_input_ids, or labels, of which the model makes them"
        )
