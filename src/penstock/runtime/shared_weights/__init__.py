"""Weights that several ranks hold: ties, owners in one pipeline, data-parallel replicas; sums of their gradients."""
