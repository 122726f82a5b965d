"""What runs on a rank between two moments of its runtime: layers, whose code takes the place of the runtime's."""

from __future__ import annotations

import torch
from torch import nn


class OtherWork:
    """A narrow layer's forward and backward, so that the code of what follows is in no cache of the core."""

    def __init__(self) -> None:
        with torch.random.fork_rng():
            self._layer = nn.TransformerEncoderLayer(64, 4, 256, dropout=0.0, batch_first=True)
        self._inputs = torch.zeros(1, 32, 64)

    def forward(self) -> torch.Tensor:
        """Runs the layer's forward alone."""
        output: torch.Tensor = self._layer(self._inputs)
        return output

    def run(self) -> None:
        """Runs forward and backward: some milliseconds."""
        self.forward().sum().backward()
