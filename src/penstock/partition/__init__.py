"""Partition: which layers form which stage."""

from penstock.partition.ranges import Partition

__all__ = ["Partition"]
