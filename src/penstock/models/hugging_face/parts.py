"""The parts of a Hugging Face model in the order in which they run, and the units that they make."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Parts:
    """The parts of a model by their names in it.

        one list    ids ─ before ─ layers ─ after                                                the head is in `after`
        two lists   ids ─ before ─ layers ─ after ─┐                                             `encoder`, a Parts too
                    decoder's ids ─ before ─ layers ─ after       every layer reads what the encoder has made

    Attributes:
        base: the inner model that holds embedding and layers, e.g. "model"; "" where the model is that itself.
        before: what runs before the layers, e.g. "model.embed_tokens", and what never runs. They are one unit: the
            model works on their results in between.
        layers: the list of layers, e.g. "model.layers".
        after: what runs after them, e.g. "model.norm" and "lm_head".
        together: how many of the first of `after` are one unit, for the same reason.
        encoder: the parts of the encoder, where these are a decoder's.
        encoder_root: the module whose output the decoder reads, e.g. "model.encoder".
        read: arguments of layers, by place or name, that other parts have made, as far as following has shown.
    """

    base: str
    before: tuple[str, ...]
    layers: str
    after: tuple[str, ...]
    together: int = 1
    encoder: Parts | None = None
    encoder_root: str = ""
    read: frozenset[str] = frozenset()

    def units(self, model: nn.Module) -> dict[str, tuple[str, ...]]:
        """Returns the name of each unit -> its parts, in the order in which they run."""
        groups = [self.before, *((name,) for name in self.layer_names(model))]
        groups += [self.after[: self.together], *((name,) for name in self.after[self.together :])]
        earlier = {} if self.encoder is None else self.encoder.units(model)
        return earlier | {group[0]: group for group in groups if group}

    def order(self, model: nn.Module) -> list[str]:
        """Returns the names of all parts, layers one by one, as they run."""
        return [part for group in self.units(model).values() for part in group]

    def layer_names(self, model: nn.Module) -> list[str]:
        """Returns the names of the layers of this list."""
        return [f"{self.layers}.{index}" for index in range(len(model.get_submodule(self.layers)))]  # type: ignore[arg-type]

    def whole(self, model: nn.Module, units: Iterable[str]) -> list[str]:
        """Returns all parts of `units`."""
        groups = self.units(model)
        return [part for unit in units for part in groups[unit]]

    def lists(self) -> tuple[Parts, ...]:
        """Returns the parts by lists of layers: the encoder's, where there is one, and these."""
        return (self,) if self.encoder is None else (self.encoder, self)
