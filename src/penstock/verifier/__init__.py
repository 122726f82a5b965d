"""Proof or counter-example: nothing unverified runs."""

from penstock.verifier.peaks import receive_slots
from penstock.verifier.proof import Proof, verify

__all__ = ["Proof", "receive_slots", "verify"]
