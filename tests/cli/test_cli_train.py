"""`penstock train` hands its arguments to the recipe and returns the recipe's exit code."""

import sys
from types import ModuleType

import pytest

from penstock.cli.main import main


def test_arguments_and_exit_code_pass_through(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def recipe(argv: list[str]) -> int:
        seen.append(argv)
        return 3

    command = ModuleType("penstock.train.command")
    command.main = recipe  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "penstock.train.command", command)
    assert main(["train", "config.toml", "--run.steps", "5", "--help"]) == 3
    assert seen == [["config.toml", "--run.steps", "5", "--help"]]
