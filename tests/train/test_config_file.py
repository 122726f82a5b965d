"""A configuration is read strictly, and written so that it reads as the same value."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import ConfigError
from penstock.train.config import Config, ModelConfig
from penstock.train.config_file import load_toml, parse_toml, resolve, to_toml


def section_of(cls: type) -> st.SearchStrategy[Any]:
    hints = get_type_hints(cls)
    return st.builds(cls, **{name: st.from_type(hint) for name, hint in hints.items()})


configs = st.builds(Config, **{name: section_of(cls) for name, cls in get_type_hints(Config).items()})


def equal(left: Config, right: Config) -> bool:
    """Equality in which NaN equals itself: repr writes every float exactly."""
    return repr(left) == repr(right)


@given(configs)
def test_any_configuration_comes_back_from_toml_as_it_was(config: Config) -> None:
    assert equal(parse_toml(to_toml(config)), config)


def test_nothing_given_is_the_defaults() -> None:
    assert resolve([]) == Config()


def test_the_command_line_overrides_the_file_which_overrides_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text('[model]\nwidth = 64\nlayers = 3\n\n[data]\npaths = ["a b.txt"]\n')

    config = resolve([str(file), "--model.width", "32", "--pipeline.partition", "2", "3"])

    assert config.model == ModelConfig(width=32, layers=3)
    assert config.data.paths == ("a b.txt",)
    assert config.pipeline.partition == (2, 3)


def test_the_partition_is_a_list_or_the_word_auto() -> None:
    assert resolve(["--pipeline.partition", "auto"]).pipeline.partition == "auto"
    assert parse_toml('[pipeline]\npartition = "auto"').pipeline.partition == "auto"
    assert parse_toml("[pipeline]\npartition = [2, 4]").pipeline.partition == (2, 4)
    with pytest.raises(ConfigError, match=r'pipeline.partition="even" is not one of "auto"'):
        parse_toml('[pipeline]\npartition = "even"')
    with pytest.raises(ConfigError, match=r"pipeline.partition=3 is an integer; it must be a list"):
        parse_toml("[pipeline]\npartition = 3")


def test_a_number_without_a_point_is_a_number() -> None:
    assert parse_toml("[optimizer]\nlearning_rate = 1").optimizer.learning_rate == 1.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[model]\nwdith = 1", 'unknown key "model.wdith". Did you mean "width"?'),
        ("[modle]\nwidth = 1", 'unknown section "modle". Did you mean "model"?'),
        ("model = 3", "model is a section, not a value (3)"),
        ('[model]\nwidth = "wide"', 'model.width="wide" is a string; it must be an integer'),
        ("[model]\nwidth = 1.5", "model.width=1.5 is a number; it must be an integer"),
        ("[model]\nwidth = true", "model.width=true is true or false; it must be an integer"),
        ("[log]\ntensorboard = 1", "log.tensorboard=1 is an integer; it must be true or false"),
        ('[data]\npaths = "a.txt"', 'data.paths="a.txt" is a string; it must be a list'),
        ('[data]\npaths = ["a.txt", 3]', "data.paths[1]=3 is an integer; it must be a string"),
        ("[optimizer]\nbetas = [0.9]", "optimizer.betas=[0.9] has 1 entries; it must have 2"),
        (
            '[optimizer]\nname = "adam"',
            'optimizer.name="adam" is not one of "adamw", "nadamw", "sgd". Did you mean "adamw"?',
        ),
        ("[run]\ndtype = 32", 'run.dtype=32 is not one of "float32", "bfloat16", "float64"'),
        ("[model\n", "not valid TOML"),
    ],
)
def test_a_mistake_in_the_file_is_told_with_its_path_and_value(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_toml(text)
    assert message in str(caught.value)


def test_the_file_is_named_when_it_is_missing_or_wrong(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no\.toml does not exist"):
        resolve([str(tmp_path / "no.toml")])
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"binary\.toml: it is not UTF-8"):
        load_toml(binary)
    wrong = tmp_path / "wrong.toml"
    wrong.write_text("[model]\nwide = 1")
    with pytest.raises(ConfigError, match=r"wrong\.toml: unknown key"):
        load_toml(wrong)


def test_an_unknown_option_ends_the_program(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        resolve(["--model.wdith", "3"])
    assert caught.value.code != 0
    assert "--model.width" in capsys.readouterr().err


def test_every_option_has_a_help_text(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        resolve(["--help"])
    shown = capsys.readouterr().out
    for section in dataclasses.fields(Config):
        for item in dataclasses.fields(getattr(Config(), section.name)):
            option = f"--{section.name}.{item.name.replace('_', '-')}"
            following = shown.split(option, 1)[1].split("--", 1)[0] if item.type != "bool" else shown
            assert "(default" in following, option
            assert any(word.istitle() for word in following.split()), option
