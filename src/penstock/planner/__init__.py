"""What to run: a model described by its config, from which costs follow without building or measuring it."""

from penstock.planner.description import ModelDescription, describe

__all__ = ["ModelDescription", "describe"]
