"""The weight versions of one stage: which one its module shows, and which older ones are kept for a backward to come.

An optimizer works on tensors of its own that lie on the newest version's memory, never on the module's parameters: what
autograd has saved in flight counts changes of the parameter, and an older version that is still needed stays as it is.

                      module's parameters ── show(v) ──> memory of version v
    optimizer's parameters ──> memory of the newest      kept: {1: memory, 2: memory}

A step writes in place where nobody needs the old version any more; else into new memory. What an op has saved of a
weight as a copy (a cast under autocast) stays that of its forward under every rule.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from penstock.runtime.stage_work import StageWork

Memory = list[torch.Tensor]


class WeightVersions:
    """The versions of one stage's trained parameters on this rank.

    Attributes:
        names: of the trained parameters, in the original model.
        masters: what the optimizer works on: the newest version's memory, in the order of `names`.
        newest: number of optimizer steps since `begin`.
        most_kept: the most versions held at once since `begin`, the newest one included.
    """

    def __init__(self, work: StageWork) -> None:
        module = work.module
        named = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
        self._changed = work.weights_changed
        self.names = [name for name, _ in named]
        self._parameters = [parameter for _, parameter in named]
        self.masters = [nn.Parameter(parameter.data) for parameter in self._parameters]
        self._kept: dict[int, Memory] = {}
        self.begin()

    def begin(self) -> None:
        """Starts a call: what the module holds is version 0, the newest and the only one."""
        self._kept.clear()
        self.newest = self._shown = 0
        self.most_kept = 1
        for master, parameter in zip(self.masters, self._parameters, strict=True):
            master.data = parameter.data

    def show(self, version: int) -> None:
        """Makes the module compute with `version`."""
        if version != self._shown:
            self._put(self.masters if version == self.newest else self._kept[version])
            self._shown = version

    def forget(self, version: int) -> None:
        """Frees a version that no later op uses; the newest stays."""
        if version != self.newest:
            if version == self._shown:
                self.show(self.newest)
            del self._kept[version]

    def advance(self, *, keep: bool) -> None:
        """Makes room for the next version, which the optimizer then writes into `masters`; shows it.

        Args:
            keep: a later backward uses the version that has been the newest.
        """
        if keep:
            self._kept[self.newest] = [master.data for master in self.masters]
            for master in self.masters:
                master.data = master.data.clone()
            self.most_kept = max(self.most_kept, 1 + len(self._kept))
        self.newest += 1
        self._shown = self.newest
        self._put(self.masters)

    def renumber(self, by: int) -> None:
        """Adds `by` to the numbers of all versions."""
        self.newest, self._shown = self.newest + by, self._shown + by
        self._kept = {version + by: memory for version, memory in self._kept.items()}

    @property
    def kept(self) -> dict[int, dict[str, torch.Tensor]]:
        """Older versions that are still needed: number -> name -> tensor."""
        return {version: dict(zip(self.names, memory, strict=True)) for version, memory in self._kept.items()}

    def resume(self, newest: int, kept: Mapping[int, Mapping[str, torch.Tensor]]) -> None:
        """Goes on from a saved state: what the module holds is version `newest`, and `kept` are the older ones."""
        self.begin()
        self.newest = self._shown = newest
        self._kept = {
            version: [memory[name].detach().clone() for name in self.names] for version, memory in kept.items()
        }

    def take_grads(self) -> None:
        """Hands the module's gradients to the optimizer's parameters; the module has none afterwards."""
        for master, parameter in zip(self.masters, self._parameters, strict=True):
            master.grad, parameter.grad = parameter.grad, None

    def _put(self, memory: Sequence[torch.Tensor]) -> None:
        for parameter, tensor in zip(self._parameters, memory, strict=True):
            parameter.data = tensor.data
        self._changed()
