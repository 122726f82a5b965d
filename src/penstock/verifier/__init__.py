"""Proof or counter-example: nothing unverified runs."""

from penstock.verifier.peaks import receive_slots
from penstock.verifier.proof import Proof, verify
from penstock.verifier.weights import Weights, WeightUse, weights_of

__all__ = ["Proof", "WeightUse", "Weights", "receive_slots", "verify", "weights_of"]
