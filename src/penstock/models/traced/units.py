"""From a recorded graph to units: the code of each, what it takes and what it gives.

nodes     x ─ conv1 ─ relu ─ conv2 ─ add ─ fc            conv1, conv2, fc have state
units     [x  conv1   relu] [conv2   add] [fc]           each begins where least is alive
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import fx, nn

from penstock.errors import ModelError
from penstock.models.traced.recording import Recording

STATIC = ("dtype", "device")
"""Attributes of tensors that cannot travel: a boundary has their text."""


@dataclass(frozen=True)
class UnitCode:
    """What one unit does in one mode.

    Attributes:
        run: (stage, values that it takes) -> a tuple of the values that it gives; of the last unit, the output.
        takes: their names.
        gives: likewise.
        reads: names of modules, parameters and buffers that its code uses.
    """

    run: Callable[..., Any]
    takes: tuple[str, ...]
    gives: tuple[str, ...]
    reads: frozenset[str]


@dataclass(frozen=True)
class Program:
    """All units in one mode.

    Attributes:
        units: their code, in order.
        alive: before each unit and after the last: names of the values that are needed from there on.
        kinds: name of a value -> "dtype" or "device", where it is one.
    """

    units: tuple[UnitCode, ...]
    alive: tuple[tuple[str, ...], ...]
    kinds: Mapping[str, str]


def anchors_of(recording: Recording, model: nn.Module) -> list[fx.Node]:
    """Returns the calls of modules with parameters or buffers: one a unit."""
    return [node for node in recording.graph.nodes if node.op == "call_module" and _has_state(model, str(node.target))]


def names_of(anchors: Sequence[fx.Node]) -> list[str]:
    """Returns the units' names: the module's, and for its second call on `name#2`."""
    counts: dict[str, int] = {}
    names = []
    for node in anchors:
        target = str(node.target)
        counts[target] = counts.get(target, 0) + 1
        names.append(target if counts[target] == 1 else f"{target}#{counts[target]}")
    return names


def program_of(recording: Recording, model: nn.Module, names: Sequence[str]) -> Program:
    """Returns the code of the units `names`; a unit that this mode does not call is empty.

    Raises:
        ModelError: this mode calls modules that are in no unit, or in another order.
    """
    anchors = anchors_of(recording, model)
    called = names_of(anchors)
    if [name for name in names if name in called] != called:
        foreign = next((name for name in called if name not in names), called[0])
        raise ModelError(
            f"{type(model).__name__} runs {foreign} in eval mode alone, or in another order there than in training; "
            "eval mode may leave modules out, else a stage must run the same in both"
        )
    nodes = [node for node in recording.graph.nodes if node.op not in ("placeholder", "output", "get_attr")]
    starts = dict(zip(called, _starts(nodes, anchors), strict=True))
    bounds = [len(nodes)]
    for name in reversed(names):  # one that this mode leaves out is empty
        bounds.insert(0, starts.get(name, bounds[0]))
    slices = [nodes[first:last] for first, last in pairwise(bounds)]
    return _program(recording, model, slices)


def _starts(nodes: Sequence[fx.Node], anchors: Sequence[fx.Node]) -> list[int]:
    """Returns for each anchor where its unit begins: between the anchor before and itself, where least is alive."""
    place = {node: at for at, node in enumerate(nodes)}
    last_use = {node: max((place.get(user, len(nodes)) for user in node.users), default=-1) for node in nodes}
    alive = [sum(last_use[node] >= at for node in nodes[:at]) for at in range(len(nodes) + 1)]
    starts = [0]
    for before, anchor in pairwise(anchors):
        between = range(place[before] + 1, place[anchor] + 1)
        starts.append(min(reversed(between), key=lambda at: alive[at]))
    return starts


def _program(recording: Recording, model: nn.Module, slices: Sequence[Sequence[fx.Node]]) -> Program:
    output = next(node for node in recording.graph.nodes if node.op == "output")
    inputs = [node for node in recording.graph.nodes if node.op == "placeholder"]
    alive: list[list[fx.Node]] = [_used(output)]
    for nodes in reversed(slices):
        needed = dict.fromkeys(alive[0])
        for node in reversed(nodes):
            needed.pop(node, None)
            needed |= dict.fromkeys(_used(node))
        order = {node: at for at, node in enumerate(recording.graph.nodes)}
        alive.insert(0, sorted(needed, key=order.__getitem__))
    alive[0] = inputs
    root = _root(recording, model)
    codes = []
    for index, nodes in enumerate(slices):
        last = index == len(slices) - 1
        gives = [] if last else [node for node in alive[index + 1] if node in set(nodes)]
        codes.append(_code(root, nodes, gives, output=output if last else None))
    kinds = {node.name: str(node.args[1]) for node in recording.graph.nodes if _is_static(node)}
    rows = [tuple(node.name for node in row) for row in alive]
    rows[-1] = ()
    return Program(tuple(codes), tuple(rows), kinds)


def _code(root: nn.Module, nodes: Sequence[fx.Node], gives: Sequence[fx.Node], *, output: fx.Node | None) -> UnitCode:
    """Returns a unit's code; parameters and buffers are fetched where they are used."""
    graph = fx.Graph()
    inside = set(nodes)
    wanted = [each for node in (*nodes, *([output] if output else [])) for each in node.all_input_nodes]
    takes = list(dict.fromkeys(each for each in wanted if each not in inside and each.op != "get_attr"))
    made = {node: graph.placeholder(node.name) for node in takes}
    reads: set[str] = set()

    def here(node: fx.Node) -> fx.Node:
        if node.op == "get_attr":
            reads.add(str(node.target))
            return graph.get_attr(str(node.target))
        return made[node]

    for node in nodes:
        made[node] = graph.node_copy(node, here)
        if node.op == "call_module":
            reads.add(str(node.target))
    result = fx.node.map_arg(output.args[0], here) if output else tuple(made[node] for node in gives)
    graph.output(result)
    run = type(fx.GraphModule(root, graph)).forward
    return UnitCode(run, tuple(n.name for n in takes), tuple(n.name for n in gives), frozenset(reads))


def _used(node: fx.Node) -> list[fx.Node]:
    return [each for each in node.all_input_nodes if each.op != "get_attr"]


def _is_static(node: fx.Node) -> bool:
    return node.op == "call_function" and node.target is getattr and node.args[1] in STATIC


def _root(recording: Recording, model: nn.Module) -> nn.Module:
    """Returns a module under which the model's names and the constants are found."""
    root = nn.Module()
    root.__dict__.update({table: dict(getattr(model, table)) for table in ("_modules", "_parameters", "_buffers")})
    for name, value in recording.constants.items():
        root.__dict__[name] = value
    return root


def _has_state(model: nn.Module, path: str) -> bool:
    module = model.get_submodule(path)
    return next(module.parameters(), None) is not None or next(module.buffers(), None) is not None
