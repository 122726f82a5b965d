"""The routers' auxiliary loss of sparse models, over stages.

    stage 0   layer 0 ─ layer 1 ─┤ hidden states, [router logits 0, 1]
    stage 1                        layer 2 ─ layer 3 ─ norm ─ head, and the model's own formula over [0, 1, 2, 3]

The model declares which modules give router logits, and how they become a loss; nothing of that is repeated here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from penstock.errors import ModelError

ROUTERS = "router_logits"
"""The key of a boundary under which router logits travel, those of the first layer first."""

_FACTORS = ("router_aux_loss_coef", "aux_loss_coef")
"""Names that models have for the auxiliary loss's factor."""


class Routers:
    """The router logits that one stage has seen of the microbatch under way.

    Args:
        model: whose `config.output_router_logits` is set.
        inner: the stage's copy of its inner model, which is to give the logits of all layers.
        units: the parts that this stage runs.

    Raises:
        ModelError: the model does not declare where its router logits are, or how much they count.
    """

    def __init__(self, model: Any, inner: Any, units: Mapping[str, nn.Module]) -> None:
        self._factor = _factor_of(model)
        self._seen: list[Tensor] = []
        self._running = False
        for kind, index, place in _declared(model, inner):
            for unit, part in units.items():
                for name, module in part.named_modules(prefix=unit):
                    if isinstance(module, kind) and (place is None or place in name):
                        module.register_forward_hook(partial(self._note, index))
        inner.__dict__["forward"] = partial(_with_logits, self, inner)

    def begin(self, entering: Sequence[Tensor]) -> None:
        """Starts a microbatch with the logits of earlier stages."""
        self._seen, self._running = list(entering), True

    def end(self) -> None:
        """Ends it; what runs later, such as a recomputed forward, is not counted."""
        self._seen, self._running = [], False

    @property
    def seen(self) -> list[Tensor]:
        """The logits of all layers so far."""
        return list(self._seen)

    def result(self, output: Any) -> dict[str, Tensor]:
        """Returns what the last stage gives: logits, and the auxiliary loss times its factor.

        Raises:
            ModelError: the model gives no auxiliary loss.
        """
        return result_of(output, self._factor)

    def _note(self, index: int, module: nn.Module, args: Any, output: Any) -> None:
        if self._running:
            self._seen.append(output[index] if isinstance(output, tuple | list) else output)


def wants_routers(model: Any) -> bool:
    """Returns whether the auxiliary loss is part of what `model` gives."""
    return bool(getattr(model.config, "output_router_logits", False))


def unsplit_result(model: Any, output: Any) -> dict[str, Tensor]:
    """Returns of the unsplit model's output what the last stage of a pipeline gives."""
    return result_of(output, _factor_of(model))


def result_of(output: Any, factor: float) -> dict[str, Tensor]:
    """Returns logits and the auxiliary loss times `factor`.

    Raises:
        ModelError: there is no auxiliary loss.
    """
    loss = getattr(output, "aux_loss", None)
    if not isinstance(loss, Tensor):
        raise ModelError(
            f"config.output_router_logits is set, and {type(output).__name__} has no aux_loss; set it to False"
        )
    return {"logits": output.logits, "aux_loss": loss * factor}


def _with_logits(routers: Routers, inner: Any, *args: Any, **kwargs: Any) -> Any:
    """Runs the inner model's own forward, and gives its output the router logits of all stages."""
    output = type(inner).forward(inner, *args, **(kwargs | {"output_router_logits": False}))
    output[ROUTERS] = tuple(routers.seen)
    return output


def _factor_of(model: Any) -> float:
    for holder in (model, model.config):
        for name in _FACTORS:
            factor = getattr(holder, name, None)
            if isinstance(factor, int | float):
                return factor
    raise ModelError(
        f"config.output_router_logits is set, and {type(model).__name__} has no router_aux_loss_coef that says how "
        "much the auxiliary loss counts; set output_router_logits to False"
    )


def _declared(model: Any, inner: Any) -> Iterable[tuple[type[nn.Module], int, str | None]]:
    """Returns what gives router logits: class of the module, place in its output, a part of its name."""
    found = (getattr(inner, "_can_record_outputs", None) or {}).get(ROUTERS)
    for each in found if isinstance(found, list) else [found]:
        kind = each if isinstance(each, type) else getattr(each, "target_class", None)
        if kind is None:
            raise ModelError(
                f"config.output_router_logits is set, and {type(model).__name__} does not declare which of its modules "
                "give router logits; set it to False"
            )
        yield kind, getattr(each, "index", 1), getattr(each, "layer_name", None)
