"""`penstock check`: the user's own model, unsplit and split, on the same batch."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module, util
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.console import Console

from penstock.cli.options import parse
from penstock.errors import UserError, nearest, told

if TYPE_CHECKING:
    from penstock.testing import ReferenceCheck


@dataclass(frozen=True)
class Check:
    """Run a model unsplit and split on the same batch; say how far each parameter's gradient is off.

    The function takes nothing and returns (model, loss_fn, inputs, targets), as Pipeline and step take them, and where
    it needs them a dict with weight_fn or batch_rules. All ranks are threads of this process.
    """

    model: Annotated[str, tyro.conf.arg(metavar="MODULE:FUNCTION", help_behavior_hint="")]
    """Where the function is: my_package.models:small, or train.py:small."""
    ranks: Annotated[int, tyro.conf.arg(aliases=["-p"])] = 2
    """Number of ranks p."""
    microbatches: Annotated[int, tyro.conf.arg(aliases=["-m"])] = 2
    """Number of microbatches m; the batch divides into them."""
    schedule: str = "one_f_one_b"
    """The schedule: a name, or a file with one."""
    partition: Annotated[tuple[str, ...], tyro.conf.arg(metavar="STAGES")] = ()
    """Layers of each stage, names of the layers where stages begin, or auto; left out, equal numbers of layers."""
    seed: Annotated[int | None, tyro.conf.arg(metavar="INT", constructor=int, help_behavior_hint="")] = None
    """Key of random numbers; needed for a model with dropout."""
    fp64: bool = False
    """Compute in fp64."""
    tolerance: Annotated[float | None, tyro.conf.arg(metavar="FLOAT", constructor=float, help_behavior_hint="")] = None
    """The largest relative error that is right; left out, 1e-12 in fp64 and 1e-5 else."""


def run(argv: list[str]) -> int:
    """Checks the model that `argv` names; returns 0 where the pipeline is right, else 1."""
    options = parse(Check, argv, command="check")
    if options.tolerance is not None and not 0 <= options.tolerance < math.inf:
        raise UserError(f"--tolerance {options.tolerance}; give a relative error, not negative, e.g. --tolerance 1e-6")
    check = _checked(options)
    tolerance = options.tolerance if options.tolerance is not None else 1e-12 if options.fp64 else 1e-5
    right = check.worst <= tolerance
    console = Console()
    console.print(str(check), highlight=False, soft_wrap=True, markup=False)
    verdict = "right" if right else "WRONG"
    line = f"{verdict}: the worst error is {check.worst:.1e}, and up to {tolerance:.0e} is right"
    if not right and options.seed is None:
        line += "; if the model draws random numbers, as dropout does, give --seed, e.g. --seed 0"
    console.print(line, highlight=False, soft_wrap=True, markup=False)
    return 0 if right else 1


_PARTS = (4, 5)
_RULES = ("weight_fn", "batch_rules")
"""Arguments of a Pipeline that say what a batch means."""


def _checked(options: Check) -> ReferenceCheck:
    """Returns the comparison, made in fp64 if so asked: what the function builds and draws is so from the start."""
    import torch  # which --help need not wait for

    from penstock.testing import check_against_reference

    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64 if options.fp64 else usual)
    try:
        (model, loss_fn, inputs, targets), rules = _parts(options)
        return check_against_reference(
            model,
            loss_fn,
            inputs,
            targets,
            num_ranks=options.ranks,
            num_microbatches=options.microbatches,
            schedule=options.schedule,
            partition=_partition(options.partition),
            weight_fn=rules.get("weight_fn"),
            seed=options.seed,
            batch_rules=rules.get("batch_rules"),
        )
    finally:
        torch.set_default_dtype(usual)


def _parts(options: Check) -> tuple[Sequence[Any], Mapping[str, Any]]:
    """Returns what the function gives: model, loss, inputs and targets, and the rules for these.

    Raises:
        UserError: it gives something else.
    """
    function = _function(options.model)
    try:
        found = function()
    except Exception as error:  # the user's own code, which may raise anything
        raise UserError(f"{options.model} {told(error)}; it has to run by itself first") from error
    if not isinstance(found, tuple) or len(found) not in _PARTS:
        what = f"{len(found)} values" if isinstance(found, tuple) else f"one {type(found).__name__}"
        raise UserError(f"{options.model} returned {what}; return (model, loss_fn, inputs, targets)")
    rules = found[4] if len(found) == max(_PARTS) else {}
    strange = [name for name in rules if name not in _RULES] if isinstance(rules, Mapping) else [rules]
    if strange:
        raise UserError(f"{options.model} returned {strange[0]!r} among its rules; use {' or '.join(_RULES)}")
    return [_in_fp64(part) if options.fp64 else part for part in found[: min(_PARTS)]], rules


def _function(name: str) -> Any:
    """Returns the function that `MODULE:FUNCTION` names.

    Raises:
        UserError: there is no such module or function.
    """
    place, colon, attribute = name.rpartition(":")
    if not colon or not place or not attribute:
        raise UserError(
            f"--model {name}: write the module and the function, e.g. my_package.models:small or train.py:small"
        )
    module = _file(Path(place)) if place.endswith(".py") else _module(place)
    function = getattr(module, attribute, None)
    if not callable(function):
        known = [each for each, value in vars(module).items() if callable(value) and not each.startswith("_")]
        raise UserError(f"--model {name}: {place} has no function {attribute}.{_instead(attribute, known)}")
    return function


def _instead(name: str, known: list[str]) -> str:
    """Returns the function meant, or those that there are."""
    return nearest(name, known) or (f" It has {', '.join(known[:8])}" if known else " It has none")


def _module(name: str) -> Any:
    sys.path.insert(0, str(Path.cwd()))  # as `python -m` does
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise UserError(
            f"--model: no module {error.name}; run it where {name} can be imported, or give a file"
        ) from error
    finally:
        sys.path.pop(0)


def _file(path: Path) -> Any:
    spec = util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise UserError(f"--model: there is no file {path}")
    module = util.module_from_spec(spec)
    sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # the user's own code
        raise UserError(f"--model: {path} {told(error)}; it has to be importable first") from error
    return module


def _partition(words: tuple[str, ...]) -> str | list[int] | list[str] | None:
    if not words:
        return None
    if words == ("auto",):
        return "auto"
    return [int(word) for word in words] if all(word.isdigit() for word in words) else list(words)


def _in_fp64(value: Any) -> Any:
    """Returns a model or a batch with its floating point numbers in fp64."""
    import torch  # as above
    from torch.utils._pytree import tree_map

    def wide(each: Any) -> Any:
        if isinstance(each, torch.nn.Module):
            return each.double()
        return each.double() if isinstance(each, torch.Tensor) and each.is_floating_point() else each

    return tree_map(wide, value)
