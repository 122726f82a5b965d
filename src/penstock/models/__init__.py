"""Front-ends: what can be cut into stages. A new kind of model is one front-end here."""

from penstock.models.cut import CutModel, Stage, cut
from penstock.models.layers import from_layers

__all__ = ["CutModel", "Stage", "cut", "from_layers"]
