"""PipeMare's discrepancy correction: the backward guesses the weights that its forward has seen.

Under the rule `latest` a stage has made d steps between a microbatch's forward and its backward, and keeps no older
version. The backward then computes with w - d·δ, where δ is the average movement of the weights a step:
δ ← γ·δ + (1 - γ)·(w' - w) at every step w → w', with γ = D^(1/τ), so that what is τ steps old counts D (Yang et al.
2021, PipeMare, section 3.2, where D is about e^-2). d is counted in the program, and τ is the largest d of the stage.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


class Discrepancy:
    """The average movement of one stage's weights.

    Attributes:
        movement: δ of each parameter; what a checkpoint has to carry.
    """

    def __init__(self, masters: Sequence[nn.Parameter], *, decay: float, staleness: int) -> None:
        self._masters = masters
        self._gamma = decay ** (1 / staleness)
        self.movement = [torch.zeros_like(master, requires_grad=False) for master in masters]
        self._before: list[torch.Tensor] = []

    def before_step(self) -> None:
        """Notes the weights that are about to change."""
        self._before = [master.detach().clone() for master in self._masters]

    def after_step(self) -> None:
        """Takes what the step has changed into δ."""
        for movement, master, before in zip(self.movement, self._masters, self._before, strict=True):
            movement.mul_(self._gamma).add_(master.detach() - before, alpha=1 - self._gamma)
        self._before = []

    def before_backward(self, steps: int) -> None:
        """Puts the weights of `steps` steps ago, as far as δ knows, into the memory of the newest."""
        self._before = [master.detach().clone() for master in self._masters]
        for movement, master in zip(self.movement, self._masters, strict=True):
            master.data.add_(movement, alpha=-float(steps))

    def after_backward(self) -> None:
        """Puts the newest weights back, bit for bit."""
        for master, before in zip(self._masters, self._before, strict=True):
            master.data.copy_(before)
        self._before = []
