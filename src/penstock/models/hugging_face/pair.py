"""The parts of an encoder-decoder, in the order in which its forward comes to them."""

from __future__ import annotations

from typing import Any

from torch import nn

from penstock.errors import ModelError
from penstock.models.hugging_face.following import followed
from penstock.models.hugging_face.parts import Parts
from penstock.models.hugging_face.structure import one_list, parts_around, parts_in, path_to_layers


def is_pair(model: Any) -> bool:
    """Returns whether a model is an encoder and a decoder that reads what the encoder has made."""
    if not getattr(model.config, "is_encoder_decoder", False) or not hasattr(model, "get_encoder"):
        return False
    encoder, decoder = model.get_encoder(), model.get_decoder()
    return encoder is not decoder and model not in (encoder, decoder)


def pair_of(model: Any) -> Parts:
    """Returns the parts of an encoder-decoder: its decoder's, with its encoder's in them.

    Raises:
        ModelError: the forward fails, or comes to its parts in an order in which they cannot be cut.
    """
    name = type(model).__name__
    if getattr(model.config, "output_router_logits", False):
        raise ModelError(
            f"config.output_router_logits is set, and the routers of an encoder-decoder such as {name} are not "
            "gathered over stages; set it to False"
        )
    names = {id(module): path for path, module in model.named_modules()}
    root = names[id(model.get_encoder())]
    encoder, decoder = _unordered(model, root), _unordered(model, names[id(model.get_decoder())])
    around = parts_around(model, root, names[id(model.get_decoder())])
    layers = [*encoder.layer_names(model), *decoder.layer_names(model)]
    lists = (encoder.layers, decoder.layers)
    called, read = followed(model, [*layers, *encoder.before, *decoder.before, *around], layers=lists)
    if [part for part in called if part in set(layers)] != layers:
        raise ModelError(
            f"{name} cannot be cut into stages: it does not run each of {' and '.join(lists)} once, in order"
        )
    starts, ends = called.index(f"{encoder.layers}.0"), called.index(encoder.layer_names(model)[-1])
    begins, closes = called.index(f"{decoder.layers}.0"), called.index(layers[-1])

    def between(parts: tuple[str, ...] | list[str], first: int, last: int) -> tuple[str, ...]:
        return tuple(dict.fromkeys(part for part in called[first:last] if part in parts))

    others = [part for part in around if part not in _twins(model, encoder.before + decoder.before)]
    lost = between(others, starts, begins)
    if lost:
        raise ModelError(f"{name} cannot be cut into stages: {lost[0]} runs between its encoder and its decoder")
    early = between([*others, *encoder.before], 0, starts)
    late = between(encoder.before, ends, begins)
    before = between(decoder.before, ends, begins)
    after = between([*others, *decoder.before], closes, len(called))
    held = {*early, *late, *before, *after}
    first = Parts(
        encoder.base,
        early + _not_in(held, (*around, *encoder.before)),
        encoder.layers,
        late,
        together=max(len(late), 1),
    )
    before += _not_in(held, decoder.before)  # whose tables it may read without calling them
    return Parts(decoder.base, before, decoder.layers, after, encoder=first, encoder_root=root, read=read)


def _not_in(held: set[str], parts: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(part for part in parts if part not in held)


def _unordered(model: nn.Module, root: str) -> Parts:
    """Returns the parts of one of the two, all under `before`: in which order they run is not known yet."""
    stack = model.get_submodule(root)
    path = path_to_layers(stack)
    base = ".".join(filter(None, (root, path)))
    layers = one_list(model.get_submodule(base))
    inside = [f"{base}.{part}" for part in parts_in(model.get_submodule(base), layers)]
    beside = [f"{root}.{part}" for part in parts_around(stack, path)]
    return Parts(base, (*inside, *beside), f"{base}.{layers}", ())


def _twins(model: nn.Module, parts: tuple[str, ...]) -> set[str]:
    """Returns all names of the modules that `parts` name."""
    modules = {id(model.get_submodule(part)) for part in parts}
    return {name for name, module in model.named_modules(remove_duplicate=False) if id(module) in modules}
