"""What a Hugging Face model is beside its tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Origin:
    """Class and configuration of a model: enough to make it again on the meta device.

    Attributes:
        kind: a class of transformers, e.g. LlamaForCausalLM.
        config: its configuration.
    """

    kind: type[Any]
    config: Any
