"""Devices by name: what their makers state, and how much of it real kernels get.

Rates are the dense peaks of the data sheets, memory bandwidth likewise. How much of the peak a product of matrices
gets grows with its size: `efficiency` = most · f / (f + half), where f is its FLOPs and `half` those at which it gets
half of the most. That is what a kernel with a fixed start and a constant rate does (Hockney's n½, Hockney and Jesshope
1988).
"""

from __future__ import annotations

from dataclasses import dataclass

from penstock.errors import UserError, nearest


@dataclass(frozen=True)
class Accelerator:
    """A device for which times are computed.

    Attributes:
        name: what it is called.
        flops_per_second: the peak of products in 16-bit types.
        wide_flops_per_second: the peak of products in 32-bit types.
        bytes_per_second: of its memory.
        memory_bytes: its memory.
        most: share of the peak that a large product gets.
        half_flops: FLOPs of a product that gets half of `most`.
        launch_seconds: what every kernel takes at least.
        stream: share of the memory's bandwidth that a simple kernel gets.
    """

    name: str
    flops_per_second: float
    wide_flops_per_second: float
    bytes_per_second: float
    memory_bytes: int
    most: float = 0.72
    half_flops: float = 2e9
    launch_seconds: float = 4e-6
    stream: float = 0.85

    def __post_init__(self) -> None:
        rates = (self.flops_per_second, self.wide_flops_per_second, self.bytes_per_second, self.most, self.stream)
        if not all(rate > 0 for rate in rates) or self.half_flops < 0 or self.launch_seconds < 0:
            raise UserError(f"{self}: rates and shares are above 0, e.g. flops_per_second=312e12, most=0.7")

    def seconds(self, flops: float, num_bytes: float, *, wide: bool) -> float:
        """Returns what a kernel takes: the longer of computing and of moving its bytes, and its launch.

        Args:
            flops: of its products.
            num_bytes: that it reads and writes.
            wide: its products are in 32-bit types.
        """
        peak = self.wide_flops_per_second if wide else self.flops_per_second
        efficiency = self.most * flops / (flops + self.half_flops) if flops else 1.0
        compute = flops / (peak * efficiency) if flops else 0.0
        return self.launch_seconds + max(compute, num_bytes / (self.bytes_per_second * self.stream))


_GIB = 1 << 30

ACCELERATORS = {
    each.name: each
    for each in (
        Accelerator("v100", 125e12, 15.7e12, 0.9e12, 32 * _GIB),
        Accelerator("a100-40gb", 312e12, 156e12, 1.555e12, 40 * _GIB),
        Accelerator("a100", 312e12, 156e12, 2.039e12, 80 * _GIB),
        Accelerator("l40s", 362e12, 183e12, 0.864e12, 48 * _GIB),
        Accelerator("h100", 989e12, 494e12, 3.35e12, 80 * _GIB),
        Accelerator("h200", 989e12, 494e12, 4.8e12, 141 * _GIB),
        Accelerator("b200", 2250e12, 1100e12, 8.0e12, 180 * _GIB),
        Accelerator("mi250x", 383e12, 95.7e12, 3.2e12, 128 * _GIB),
        Accelerator("mi300x", 1307e12, 653e12, 5.3e12, 192 * _GIB),
    )
}
"""Devices by name; 32-bit rates are those of TF32 where there is such a type."""


def accelerator(name: str) -> Accelerator:
    """Returns the device called `name`.

    Raises:
        UserError: there is none; the message names them all.
    """
    if name not in ACCELERATORS:
        raise UserError(
            f'unknown device "{name}".{nearest(name, ACCELERATORS)} Known: {", ".join(ACCELERATORS)}; or give a '
            "penstock.profiler.Accelerator with its rates"
        )
    return ACCELERATORS[name]
