"""Front-end for Hugging Face models: a stage runs the model's own forward, with the parts of other stages passed by.

    stage 0   ids ─ embed ─ layer 0 ─ layer 1 ─┤ stop at layer 2: hidden states leave
    stage 1   ids ─ (blank) ─ pass ─ pass ─ hidden states enter ─ layer 2 ─ layer 3 ─ norm ─ head

Masks, rotary embeddings, layer types and position ids are worked out by the model's own code on every stage, from the
ids and masks that travel beside the hidden states. No model has code of its own here; what a class needs beyond the
rules is data, in `classes`.
"""

from penstock.models.hugging_face.directory import Directory, from_directory
from penstock.models.hugging_face.files import meta_model
from penstock.models.hugging_face.front_end import from_hugging_face, is_hugging_face
from penstock.models.hugging_face.loss import causal_lm_loss, label_count, seq2seq_loss, token_count

__all__ = [
    "Directory",
    "causal_lm_loss",
    "from_directory",
    "from_hugging_face",
    "is_hugging_face",
    "label_count",
    "meta_model",
    "seq2seq_loss",
    "token_count",
]
