"""The state that one rank of a pipeline holds: parameters, buffers, and what optimizers inside a schedule keep."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from penstock.errors import ModelError
from penstock.runtime.agreement import check_same
from penstock.runtime.asynchronous.optimizer_state import load_optimizer_state, optimizer_state
from penstock.runtime.asynchronous.stepping import SteppedStage, Stepping
from penstock.runtime.model_state import load_module_state, module_state
from penstock.runtime.plan import RunPlan
from penstock.runtime.shared_weights.owners import Owners
from penstock.runtime.stage_work import StageWork
from penstock.runtime.transport.protocol import Transport


class HeldState:
    """The part of `Pipeline` that names, gives out and takes in what this rank holds."""

    rank: int
    plan: RunPlan
    _stages: dict[int, StageWork]
    _transport: Transport
    _owners: Owners
    _steps: Stepping | None

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yields this rank's parameters, for an optimizer."""
        for _, parameter in self.named_parameters():
            yield parameter

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yields this rank's parameters, copies included, with their names in the original model."""
        seen: set[nn.Parameter] = set()
        for work in self._stages.values():
            for name, parameter in work.module.named_parameters():
                if parameter not in seen:
                    seen.add(parameter)
                    yield name, parameter

    def state_dict(self) -> dict[str, Any]:
        """Returns the parameters and buffers that this rank owns, by their names in the original model.

        Of a stage that several ranks hold, the first of them in the placement is the owner: over all ranks every name
        occurs once.
        """
        return module_state(self._owned())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes the parameters and buffers that this rank owns out of `state`, which may hold the whole model's.

        Copies on other ranks follow: under a schedule of several directions every rank calls it.

        Raises:
            ModelError: one is missing or has another shape.
        """
        problem: Exception | None = None
        try:
            load_module_state(self._owned(), state, rank=self.rank)
        except ModelError as error:
            problem = error
        if self.plan.placement.num_replicas > 1:
            check_same(self._transport, {}, problem)
            self._owners.share_weights()
        elif problem is not None:
            raise problem

    def _owned(self) -> list[StageWork]:
        placement = self.plan.placement
        return [work for stage, work in self._stages.items() if placement.owners(stage)[0] == self.rank]

    def optimizer_state_dict(self) -> dict[str, Any]:
        """Returns what the optimizers inside an asynchronous schedule hold on this rank, copies included.

        A `step` ends with all microbatches applied and one version of the weights. So `state_dict` and this are all
        that a run needs to go on; merged over ranks they suit any number of them. Between two batches of `run` there is
        `in_flight_state_dict` too.

        Raises:
            ModelError: the schedule leaves the step to the loop, and the optimizer with it.
        """
        return optimizer_state(self._stepped_stages())

    def load_optimizer_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes what this rank's optimizers need out of `state`, which may hold other ranks' too.

        Raises:
            ModelError: as above, or a stage or parameter is missing.
        """
        load_optimizer_state(self._stepped_stages(), state)

    def _stepped_stages(self) -> Mapping[int, SteppedStage]:
        if self._steps is None:
            raise ModelError(f"{self.plan.schedule.name} leaves the step to the loop; save the loop's own optimizer")
        return self._steps.stages
