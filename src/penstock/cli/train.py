"""`penstock train`: the training recipe, whose options and help are its own."""

from __future__ import annotations


def run(argv: list[str]) -> int:
    """Trains as `argv` says; returns the exit code."""
    from penstock.train.command import main

    return main(argv)
