"""Front-ends: what can be cut into stages. A new kind of model is one front-end here."""

from penstock.models.cut import CutModel, Stage, Tie
from penstock.models.front_ends import FRONT_ENDS, cut
from penstock.models.layers import from_layers
from penstock.models.lazy import LayerSpec
from penstock.models.traced import from_module

__all__ = ["FRONT_ENDS", "CutModel", "LayerSpec", "Stage", "Tie", "cut", "from_layers", "from_module"]
