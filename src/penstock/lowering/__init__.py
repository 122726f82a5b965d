"""Lowering: Schedule -> Program, the same compute ops with communication and reduction put in."""

from penstock.lowering.insertion import lower

__all__ = ["lower"]
