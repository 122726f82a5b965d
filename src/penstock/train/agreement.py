"""All ranks train by the same configuration on the same text, or none trains at all.

Under torchrun every host gets its command line and reads its files by itself. Inputs come from the first stage's
host and targets from the last's: with other text there they would not belong together, and nothing would fail.
"""

from __future__ import annotations

import json
from dataclasses import fields

from penstock.errors import HandshakeError
from penstock.runtime import Pipeline
from penstock.train.config import Config

OWN = ("run.output", "run.port", "data.paths", "model.hf")
"""What may differ: the same text and model may lie elsewhere, and rank 0 alone names the output."""


def check_alike(pipe: Pipeline, config: Config, *, data_digest: str, model_digest: str = "") -> None:
    """Returns if all ranks hold the same configuration and text. Every rank calls it.

    Raises:
        HandshakeError: on every rank; names the first rank that differs from rank 0, with both values.
    """
    own = _settings(config) | {"SHA-256 of the text": data_digest, "SHA-256 of model.hf's config.json": model_digest}
    first, *others = [json.loads(facts) for facts in pipe.exchange(json.dumps(own).encode())]
    for rank, facts in enumerate(others, start=1):
        for key in own:
            if facts.get(key) != first.get(key):
                raise HandshakeError(
                    f"rank {rank} has {key}={facts.get(key)} and rank 0 has {first.get(key)}; "
                    "start all ranks with the same configuration and the same text"
                )


def _settings(config: Config) -> dict[str, object]:
    """Returns every field's value in words by its path, without those that may differ."""
    return {
        f"{section.name}.{item.name}": str(getattr(getattr(config, section.name), item.name))
        for section in fields(config)
        for item in fields(getattr(config, section.name))
        if f"{section.name}.{item.name}" not in OWN
    }
