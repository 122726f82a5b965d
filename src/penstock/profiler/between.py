"""What runs on a rank between two moments of its runtime: layers, which leave nothing else in the core's caches."""

from __future__ import annotations

import torch
from torch import nn

BEYOND_CACHES = 4 << 20
"""Bytes that leave nothing else in the caches of a core."""


class OtherWork:
    """A layer's forward and backward and a pass through memory, so that code and data of what follows are cold.

    Attributes:
        layer: on its own it is as long as the work of a narrow layer.
    """

    def __init__(self) -> None:
        with torch.random.fork_rng():
            self.layer = nn.TransformerEncoderLayer(64, 4, 256, dropout=0.0, batch_first=True)
        self._inputs = torch.zeros(1, 32, 64)

    def forward(self) -> torch.Tensor:
        """Runs the layer's forward alone."""
        output: torch.Tensor = self.layer(self._inputs)
        return output

    def run(self) -> None:
        """Runs all of it: some milliseconds."""
        self.forward().sum().backward()
