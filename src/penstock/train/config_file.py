"""Configurations from TOML files and command lines, and back to TOML.

    dataclass defaults  <-  config.toml  <-  --plan plan.json  <-  --section.key value

The file goes through the strict reader below, the command line through tyro; `check` judges the result.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from penstock.errors import ConfigError, nearest
from penstock.train.config import Config
from penstock.train.config_check import check


def resolve(argv: Sequence[str]) -> Config:
    """Returns the configuration of a command line: `[config.toml] [--plan plan.json] [--section.key value …]`.

    A mistake in an option, and `--help`, end the program as tyro does it.

    Raises:
        ConfigError: The file or a value is at fault.
    """
    import tyro  # here, because it takes longer to import than most commands take to run

    arguments = list(argv)
    base = Config()
    if arguments and not arguments[0].startswith("-"):
        base = load_toml(Path(arguments.pop(0)))
    planned = "--plan" in arguments
    if planned:
        base = _planned(base, arguments)
    config = tyro.cli(
        Config,
        default=base,
        args=arguments,
        prog="penstock train [config.toml] [--plan plan.json]",
        description="Trains a byte-level GPT over a pipeline of processes.",
    )
    if planned and config.model.hf and config.pipeline.partition == base.pipeline.partition:
        from penstock.train.model import layer_names
        from penstock.train.planned import with_ends

        config = with_ends(config, layer_names(config))
    return check(config)


def _planned(base: Config, arguments: list[str]) -> Config:
    """Returns `base` with the layout of the plan that `arguments` name; takes it out of them."""
    from penstock.planner.plan_file import load_plan
    from penstock.train.planned import with_plan

    at = arguments.index("--plan")
    if at + 1 == len(arguments):
        raise ConfigError("--plan names no file; give one that penstock plan --out has written")
    path = arguments[at + 1]
    del arguments[at : at + 2]
    return with_plan(base, load_plan(path))


def load_toml(path: Path) -> Config:
    """Returns the configuration in a file, defaults where it is silent; `resolve` checks the ranges.

    Raises:
        ConfigError: The file is missing or not TOML, a key is unknown, a value has the wrong type.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"configuration file {path} does not exist; check the path") from error
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise ConfigError(f"cannot read configuration file {path}: {reason}") from error
    try:
        return parse_toml(text)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def parse_toml(text: str) -> Config:
    """Returns the configuration that TOML text describes; raises ConfigError like `load_toml`."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"not valid TOML: {error}") from error
    config: Config = _merge(Config(), table, prefix="")
    return config


def to_toml(config: Config) -> str:
    """Returns TOML text that `parse_toml` reads as the same value."""
    sections = []
    for section in fields(config):
        values = getattr(config, section.name)
        lines = [f"{item.name} = {_emit(getattr(values, item.name))}" for item in fields(values)]
        sections.append("\n".join([f"[{section.name}]", *lines]) + "\n")
    return "\n".join(sections)


def _merge(default: Any, table: dict[str, Any], *, prefix: str) -> Any:
    """Returns the dataclass value `default` with the entries of `table` in it."""
    types = get_type_hints(type(default))
    changes: dict[str, Any] = {}
    for key, value in table.items():
        path = prefix + key
        if key not in types:
            what = "key" if prefix else "section"
            raise ConfigError(f'unknown {what} "{path}".{nearest(key, types)} Known: {", ".join(types)}')
        current = getattr(default, key)
        if not is_dataclass(current):
            changes[key] = _convert(value, types[key], path=path)
        elif isinstance(value, dict):
            changes[key] = _merge(current, value, prefix=f"{path}.")
        else:
            raise ConfigError(f"{path} is a section, not a value ({_shown(value)}); write [{path}] and its keys below")
    return replace(default, **changes)


def _convert(value: Any, wanted: Any, *, path: str) -> Any:
    """Returns the TOML value as the field's type, or raises ConfigError with the path, value and type."""
    if get_origin(wanted) is Union:  # of a list and a word that stands for one
        wanted = next(one for one in get_args(wanted) if (get_origin(one) is Literal) == isinstance(value, str))
    if get_origin(wanted) is Literal:
        if value in get_args(wanted):
            return value
        choices = ", ".join(_shown(choice) for choice in get_args(wanted))
        hint = nearest(value, get_args(wanted)) if isinstance(value, str) else ""
        raise ConfigError(f"{path}={_shown(value)} is not one of {choices}.{hint}")
    if get_origin(wanted) is tuple and isinstance(value, list):
        return _convert_items(value, get_args(wanted), path=path)
    if wanted is float and type(value) is int:
        return float(value)
    if type(value) is wanted:
        return value
    raise ConfigError(
        f"{path}={_shown(value)} is {_kind(value)}; it must be {_TYPE_WORDS[get_origin(wanted) or wanted]}"
    )


def _convert_items(values: list[Any], item_types: tuple[Any, ...], *, path: str) -> tuple[Any, ...]:
    if item_types[-1] is Ellipsis:
        item_types = (item_types[0],) * len(values)
    if len(values) != len(item_types):
        raise ConfigError(f"{path}={_shown(values)} has {len(values)} entries; it must have {len(item_types)}")
    pairs = enumerate(zip(values, item_types, strict=True))
    return tuple(_convert(value, wanted, path=f"{path}[{index}]") for index, (value, wanted) in pairs)


_TYPE_WORDS: dict[type, str] = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "a string",
    tuple: "a list",
    list: "a list",
    dict: "a section",
}


def _kind(value: object) -> str:
    return _TYPE_WORDS.get(type(value), f"a {type(value).__name__}")


def _shown(value: object) -> str:
    return json.dumps(value, default=str, ensure_ascii=False)


def _emit(value: object) -> str:
    """Returns a TOML value; JSON's notation is TOML's for strings, lists and booleans."""
    if isinstance(value, tuple):
        return f"[{', '.join(_emit(item) for item in value)}]"
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, str):
        # DEL is the one control character that JSON leaves bare and TOML forbids.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return json.dumps(value)
