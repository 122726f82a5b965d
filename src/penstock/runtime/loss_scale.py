"""Dynamic loss scale for fp16: a step is skipped on all ranks or on none."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from penstock.errors import BatchError

if TYPE_CHECKING:
    from penstock.runtime.pipeline import Pipeline


class LossScaler:
    """Scales losses so that fp16 gradients do not vanish, less after a step whose gradients overflowed.

        loss = pipe.step(inputs, targets, loss_scale=scaler.scale)
        if scaler.unscale_(pipe):
            optimizer.step()
        optimizer.zero_grad()

    Every rank makes one with the same arguments, and the same calls.

    Args:
        initial: the first scale.
        growth: factor after `interval` finite steps in a row.
        backoff: factor after a step that was not finite.
        interval: as above.

    Attributes:
        scale: what the next step's losses are multiplied by; the same on every rank.

    Raises:
        BatchError: a scale or factor that cannot work.
    """

    def __init__(
        self, *, initial: float = 65536.0, growth: float = 2.0, backoff: float = 0.5, interval: int = 2000
    ) -> None:
        if not (0 < initial < math.inf and growth >= 1 and 0 < backoff < 1 and interval >= 1):
            raise BatchError(
                f"initial={initial}, growth={growth}, backoff={backoff}, interval={interval}; use a scale above 0, "
                "growth of at least 1, backoff between 0 and 1 and an interval of at least 1"
            )
        self.scale = initial
        self._growth, self._backoff, self._interval = growth, backoff, interval
        self._finite_steps = 0

    def unscale_(self, pipe: Pipeline) -> bool:
        """Divides gradients by the scale; returns whether those of all ranks are finite. Every rank calls it.

        Where they are not, gradients are left as they are, to be thrown away, and the scale goes down.
        """
        grads = [parameter.grad for parameter in pipe.parameters() if parameter.grad is not None]
        worst = torch.stack([norm.float() for norm in torch._foreach_norm(grads, math.inf)]).max() if grads else None
        own = worst is None or bool(torch.isfinite(worst))
        if not all(payload == b"1" for payload in pipe.exchange(b"1" if own else b"0")):
            self.scale *= self._backoff
            self._finite_steps = 0
            return False
        if grads:
            torch._foreach_mul_(grads, 1 / self.scale)
        self._finite_steps += 1
        if self._finite_steps == self._interval:
            self.scale *= self._growth
            self._finite_steps = 0
        return True

    def state_dict(self) -> dict[str, float]:
        """Returns the scale and how many finite steps in a row there were."""
        return {"scale": self.scale, "finite_steps": self._finite_steps}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Goes on from `state`."""
        self.scale, self._finite_steps = state["scale"], int(state["finite_steps"])
