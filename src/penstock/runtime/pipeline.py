"""Pipeline: a model spread over ranks by its layers, in the user's own training loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh

from penstock.cluster import Cluster
from penstock.costs import PerStage, StageCosts
from penstock.errors import HandshakeError, ModelError, RankFailedError
from penstock.ir.schedule import Schedule
from penstock.lowering import lower
from penstock.models import CutModel, cut
from penstock.partition import LayerCosts, Partition
from penstock.runtime.agreement import Offer, agree, check_same
from penstock.runtime.asynchronous.running import Running
from penstock.runtime.asynchronous.step_shares import StepShares
from penstock.runtime.asynchronous.stepping import (
    InsideOptimizer,
    OptimizerFunction,
    SchedulerFunction,
    Stepping,
    check_optimizer,
)
from penstock.runtime.auto import Assumed
from penstock.runtime.batch.feed import Call, Ends, Feed, Reading, WeightFunction
from penstock.runtime.batch.microbatches import BatchRule, BatchRules, even_sizes, ragged_sizes
from penstock.runtime.batch.outputs import broadcast_output, joined
from penstock.runtime.batch.step_batch import StepBatch
from penstock.runtime.clipping import clip, total_norm
from penstock.runtime.duties import Duties, duties_of
from penstock.runtime.engine import Engine
from penstock.runtime.evaluating import eval_mode
from penstock.runtime.links import Links
from penstock.runtime.measured import decode_record, encode_record, measured_timeline
from penstock.runtime.measuring_stages import measure_stages
from penstock.runtime.memory.offloading import offload_channels
from penstock.runtime.memory.recompute import RecomputeChoice, apply_recompute, check_recompute
from penstock.runtime.own_stages import own_stages
from penstock.runtime.plan import RunPlan, make_plan
from penstock.runtime.shared_weights.owners import Owners, owner_channels
from penstock.runtime.shared_weights.replica_agreement import check_plans, check_weights
from penstock.runtime.shared_weights.ties import Ties, tie_channels
from penstock.runtime.stage_sizes import StageSizes
from penstock.runtime.stage_work import LossFunction, StageWork
from penstock.runtime.startup import check_given, facts_of, ranks_of
from penstock.runtime.summary import summarize
from penstock.runtime.transport.cursor import Cursor
from penstock.runtime.transport.protocol import Transport, gather_bytes
from penstock.schedules import forward_only
from penstock.timeline import Timeline
from penstock.verifier import Proof, verify


class Pipeline(Running):
    """A model cut into stages, this rank's part of it, and the schedule that trains it.

    Every rank makes its Pipeline with the same model and arguments and then runs the same lines. All ranks agree
    before anything runs: a rank with another plan, or one that calls something else, is named in the error.

    The gradient of a step is that of Σ loss_i · w_i / Σ w_i over all microbatches and data-parallel replicas, added to
    `.grad`. Clipping, the optimizer and its schedule are the user's own.

    Schedules of several directions run several copies of the model, whose gradients are summed: every rank's optimizer
    steps all that the rank holds, and the copies stay equal. Asynchronous schedules step inside: give `optimizer`.

    Args:
        model: an nn.Sequential or a list of modules, each taking what the one before returns.
        loss_fn: (output, target) of a microbatch -> its loss, one number; None for inference only.
        mesh: ranks by axis: "pp", and "dp_replicate" for data-parallel replicas; None means that all ranks of the
            torch.distributed job form one pipeline.
        transport: another way to the other ranks, e.g. from `run_ranks`; excludes mesh.
        schedule: a name, a Schedule, the path of its JSON file, or "auto": the best that a search finds for `costs`.
        num_microbatches: m; may be left out where the schedule has it.
        partition: layers per stage, e.g. [3, 5]; or names, or regular expressions of names, of the layers where
            stages begin; None for equal numbers; "auto" for the best under the schedule.
        costs: what "auto", zb_auto and zb_v_greedy are found for: LayerCosts, or StageCosts where the partition is not
            "auto". None: all stages cost the same, or, to balance layers, a layer its matrices' entries.
        cluster: likewise, devices and links; None means equal devices and messages that take no time.
        memory_limit: likewise, the most that a rank may keep from F to W, in the unit of the costs'
            `activation_bytes`; None means what 1F1B keeps.
        device: where this rank computes; None means where its parameters are.
        weight_fn: targets of a microbatch -> w_i; None takes its number of samples.
        batch_rules: how arguments become microbatches that are not split along their first dimension: path, such as
            `inputs["mask"]` or `targets[1]`, -> a dimension, "replicate" (the same for all), "list" (its items are the
            microbatches'), or a function (argument, sizes of the microbatches) -> one item for each.
        seed: keys random numbers by (seed, step, microbatch, layer), so that dropout is the same under every schedule
            and layout, and fresh parameters of a model on the meta device by (seed, name); None leaves torch's
            generators alone. Microbatches are counted on from one data-parallel replica to the next: each drops
            numbers of its own, those of one pipeline with all microbatches of the step.
        optimizer: for schedules with optimizer steps, and for them alone: the trained parameters of a stage -> its
            optimizer, made once a stage.
        lr_scheduler: likewise: (optimizer, stage) -> its learning rate scheduler, which steps after the optimizer.
        discrepancy_decay: for pipemare, D of its discrepancy correction, e.g. 0.135; None leaves it out.
        recompute: activation checkpointing: "none", "full" (layer by layer), regular expressions of module names, a
            `Recompute` with a policy for single operations, or a dict from stage to one of these.
        timeout_seconds: deadline of every wait for another rank.

    Attributes:
        rank: this rank's place in the pipeline.
        plan: schedule with its proof, partition, and the stage of every parameter.
        has_first_stage: this rank runs the first stage in some direction: `step` needs inputs here.
        has_last_stage: this rank runs the last stage in some direction: `step` needs targets here.
        steps_done: training steps so far; set it when a run resumes, random numbers depend on it.

    Raises:
        UserError: anything that cannot work, before any training, on every rank.
    """

    def __init__(  # noqa: PLR0913  # the public face: each argument is one decision of the user's
        self,
        model: Any,
        loss_fn: LossFunction | None = None,
        *,
        mesh: DeviceMesh | None = None,
        transport: Transport | None = None,
        schedule: str | Path | Schedule = "one_f_one_b",
        num_microbatches: int | None = None,
        partition: Partition | Sequence[int] | Sequence[str] | None = None,
        costs: StageCosts | LayerCosts | None = None,
        cluster: Cluster | None = None,
        memory_limit: PerStage | None = None,
        device: torch.device | str | None = None,
        weight_fn: WeightFunction | None = None,
        batch_rules: Mapping[str, BatchRule] | None = None,
        seed: int | None = None,
        optimizer: OptimizerFunction | None = None,
        lr_scheduler: SchedulerFunction | None = None,
        discrepancy_decay: float | None = None,
        recompute: RecomputeChoice | Mapping[int, RecomputeChoice] = None,
        timeout_seconds: float = 300.0,
    ) -> None:
        self._transport, self._replicas = ranks_of(mesh, transport, timeout_seconds)
        self.rank, self.num_ranks = self._transport.rank, self._transport.num_ranks
        self.steps_done = 0
        self._calls = 0
        self._under_way = self._alike = False
        self._failure = ""
        self._has_loss = loss_fn is not None
        self._steps: Stepping | None = None
        inside = InsideOptimizer(optimizer, lr_scheduler, discrepancy_decay)
        plan: RunPlan | None = None
        problem: Exception | None = None
        try:
            check_given({"loss_fn": loss_fn, "weight_fn": weight_fn}, seed=seed, device=device)
            layers = cut(model)
            plan = make_plan(
                layers,
                schedule=schedule,
                num_ranks=self.num_ranks,
                num_microbatches=num_microbatches,
                partition=partition,
                reduce_gradients=self._replicas is not None,
                assumed=Assumed(costs, cluster, memory_limit),
            )
            check_optimizer(plan.schedule, inside)
            rules = BatchRules(batch_rules)
            recomputed = check_recompute(recompute, layers.layers, num_stages=plan.placement.num_stages)
        except Exception as error:  # a model may raise anything while it is cut; the other ranks hear of it
            problem, plan = error, None
        loss = None if loss_fn is None else "given"
        settings = {"loss_fn": loss, "seed": seed, "discrepancy_decay": discrepancy_decay}
        facts = facts_of(layers, plan, settings | {"batch_rules": str(rules.told)}) if plan else {}
        check_plans(self._transport, self._replicas, facts, problem)
        if plan is None:  # check_plans has raised the problem
            raise HandshakeError("no plan")
        self.plan = plan
        self._seed = seed
        self._summary, self._names = summarize(layers, plan), list(layers.layers)
        self._origin = layers.origin
        self._build(layers, loss_fn, device)
        for stage, work in self._stages.items():
            names = [list(layers.layers)[layer] for layer in plan.partition.layers_of(stage)]
            apply_recompute(work.module, recomputed.get(stage), layers=names)
        self._connect(inside, Reading(rules, weight_fn))

    def _connect(self, inside: InsideOptimizer, reading: Reading) -> None:
        placement, program = self.plan.placement, self.plan.proof.program
        evaluated = placement.stages_of(self.rank)
        self._feed = Feed(
            self._transport,
            device=self.device,
            trains=Ends(self.has_first_stage, self.has_last_stage),
            evaluates=Ends(0 in evaluated, placement.num_stages - 1 in evaluated),
            shares=StepShares(self.plan.schedule),
            reading=reading,
            replicas=self._replicas,
        )
        self._links = Links(self._transport, device=self.device)
        copies = {*owner_channels(placement), *offload_channels(program), *tie_channels(self.plan.ties, placement)}
        self._transport.open(sorted({*program.channels, *copies}))
        modules = {stage: work.module for stage, work in self._stages.items()}
        ties = Ties(self.plan.ties, modules, transport=self._transport, placement=placement, replicas=self._replicas)
        self._owners = Owners(program, modules, self._transport, apart=ties.parameters)
        self._owners.share_weights()
        duties = duties_of(
            program,
            self._stages,
            transport=self._transport,
            owners=self._owners,
            replicas=self._replicas,
            stepping=self._stepping(inside) if inside.make else None,
            device=self.device,
        )
        self._parameters = list(self.parameters())
        self._duties = duties._replace(ties=ties or None)
        self._training = self._traced = self._engine(self.plan.proof, self._duties)
        # What `run` has in flight keeps its buffers while something is evaluated.
        self._aside = self._links if self._steps is None else Links(self._transport, device=self.device)
        self._evaluating: dict[int, Engine] = {}

    def _build(self, layers: CutModel, loss_fn: LossFunction | None, device: torch.device | str | None) -> None:
        placement = self.plan.placement
        last = placement.num_stages - 1
        stages = own_stages(layers, self.plan, self._transport, seed=self._seed)
        self._stages = {
            stage: StageWork(module, loss_fn=loss_fn if stage == last else None) for stage, module in stages.items()
        }
        self.has_first_stage = 0 in self._stages
        self.has_last_stage = last in self._stages
        first = next(self.parameters(), None)
        self.device = torch.device(device or (first.device if first is not None else "cpu"))
        for work in self._stages.values():
            work.module.to(self.device)
        self._parameters = list(self.parameters())

    def _engine(self, proof: Proof, duties: Duties, *, links: Links | None = None) -> Engine:
        return Engine(
            proof,
            self._stages,
            links=links or self._links,
            transport=self._transport,
            seed=self._seed,
            first_microbatch=self.num_microbatches * (self._replicas.index if self._replicas else 0),
            duties=duties,
        )

    def _stepping(self, inside: InsideOptimizer) -> Stepping | None:
        problem: Exception | None = None
        try:
            self._steps = Stepping(self.schedule, self._stages, rank=self.rank, inside=inside)
        except Exception as error:  # the optimizer is the user's: whatever it raises, the other ranks hear of it
            problem = error
        check_same(self._transport, {}, problem)
        return self._steps

    @property
    def schedule(self) -> Schedule:
        """The order of compute ops that trains the model."""
        return self.plan.schedule

    @property
    def num_microbatches(self) -> int:
        """Microbatches per step, m."""
        return self.schedule.num_microbatches

    def step(self, inputs: Any = None, targets: Any = None, *, loss_scale: float = 1.0) -> torch.Tensor:
        """Returns the loss of one step, the same number on every rank; gradients are added to `.grad`.

        Args:
            inputs: a tensor, or a tuple, list or dict of tensors, with the batch as first dimension; needed on every
                rank whose `has_first_stage` is true, ignored elsewhere.
            targets: likewise, needed where `has_last_stage` is true.
            loss_scale: gradients are this many times larger; see `LossScaler`.

        Raises:
            BatchError: a batch that does not divide into the microbatches, or the arguments of another rank.
            HandshakeError: the ranks called different things.
            RankFailedError: another rank failed or fell silent.
        """
        self._need_loss()
        self._need_drained("step", loss_scale)
        sizes = partial(even_sizes, num_microbatches=self.num_microbatches)
        with self._calling("step"):
            loss = self._loss(self._run("step", inputs, targets, sizes, loss_scale))
        self.steps_done += 1
        return loss

    def evaluate(self, inputs: Any = None, targets: Any = None) -> torch.Tensor:
        """Returns the loss of a batch of any size, the same number on every rank; touches no gradient.

        Where the schedule has several directions, replica 0 runs it, and its first and last rank need the data.
        Modules run in eval mode and are put back to the mode they were in. Arguments and errors as for `step`.
        """
        self._need_loss()
        sizes = partial(ragged_sizes, num_microbatches=self.num_microbatches)
        with self._calling("evaluate"), eval_mode([work.module for work in self._stages.values()]):
            return self._loss(self._run("evaluate", inputs, targets, sizes))

    def forward(self, inputs: Any = None, *, broadcast: bool = False) -> Any:
        """Returns the model's output for a batch of any size, on the rank of the last stage; None elsewhere.

        Modules run in eval mode, without gradients.

        Args:
            inputs: as for `step`.
            broadcast: return the output on every rank.
        """
        sizes = partial(ragged_sizes, num_microbatches=self.num_microbatches)
        name = "forward(broadcast=True)" if broadcast else "forward"
        with self._calling(name), eval_mode([work.module for work in self._stages.values()]):
            batch = self._run(name, inputs, None, sizes)
            mine = self.rank == self._last_rank
            output = joined([batch.outputs[i] for i in range(len(batch.outputs))]) if mine else None
            if broadcast:
                return broadcast_output(self._transport, output, source=self._last_rank, device=self.device)
            return output

    def clip_grad_norm_(self, max_norm: float, norm_type: float = 2.0) -> torch.Tensor:
        """Returns the norm of the whole model's gradients, and scales them down where it is above `max_norm`.

        The norm is that of the unsplit model, the same on every rank and in every layout. Every rank calls it.

        Args:
            max_norm: largest norm allowed.
            norm_type: 2.0, another p, or inf.

        Raises:
            BatchError: max_norm is not above 0.
            HandshakeError: the ranks called different things.
        """
        if self._steps is not None:
            raise ModelError(
                f"{self.schedule.name} steps inside, and no gradient is left to clip; bound that of each stage by "
                "itself, with optimizer=penstock.clip_by_stage(…, max_norm=1.0)"
            )
        with self._calling("clip_grad_norm_"):
            agree(self._transport, "clip_grad_norm_", number=self._calls, offer=Offer())
            return self._clip(max_norm, norm_type)

    def _clip(self, max_norm: float, norm_type: float) -> torch.Tensor:
        owned = (item for work in self._owned() for item in work.module.named_parameters())
        homes = self.plan.parameter_stages  # of a tied parameter the first stage, which alone counts it
        mine = {name for name, stage in homes.items() if self.plan.placement.owners(stage)[0] == self.rank}
        grads = {name: value.grad for name, value in owned if value.grad is not None and name in mine}
        norm = total_norm(self._transport, grads, list(self.plan.parameter_stages), norm_type=norm_type)
        clip([value.grad for value in self.parameters() if value.grad is not None], norm, max_norm=max_norm)
        return norm

    def trace(self, steps: int = 1) -> list[Timeline]:
        """Returns the measured timelines of the last training steps, the latest last, on every rank.

        The clocks of the ranks are aligned; time 0 is when the first rank began. Every rank calls it. After `run` it is
        one timeline: of the last batches in a row, while all ranks were at them.

        Args:
            steps: how many; at most 32 are kept.

        Raises:
            HandshakeError: the ranks called different things.
        """
        with self._calling("trace"):
            agree(self._transport, "trace", number=self._calls, offer=Offer())
            return self._timelines(steps)

    def _timelines(self, steps: int) -> list[Timeline]:
        records = self._traced.recorder.last(steps)
        offsets = self._transport.clock_offsets()
        recorded = [
            [decode_record(data) for data in gather_bytes(self._transport, encode_record(record))] for record in records
        ]
        if self._traced is not self._training:
            return self._stretch(recorded, offsets)
        return [measured_timeline(self.plan.proof.program, rows, offsets) for rows in recorded]

    def summary(self) -> str:
        """Returns the stages: rank, layers, parameters, their bytes and share of all.

        What a stage computes, keeps and hands on depends on the inputs: once `sizes(microbatch)` has been called, a
        table shows that too.
        """
        return self._summary

    def sizes(self, inputs: Any = None) -> StageSizes:
        """Returns what each stage computes, keeps and hands on for one microbatch. Every rank calls it.

        Each stage runs one forward on its own, without a trace in its state.

        Args:
            inputs: one microbatch, needed where `has_first_stage` is true.
        """
        with self._calling("sizes"):
            agree(self._transport, "sizes", number=self._calls, offer=Offer())
            found = measure_stages(self._stages, self.plan, self._transport, names=self._names, inputs=inputs)
        self._summary = "\n".join([self._summary.split("\n", 1)[0], str(found), *filter(None, [self.plan.reason])])
        return found

    def exchange(self, payload: bytes) -> list[bytes]:
        """Returns the payloads of all ranks of this pipeline, by rank. Every rank calls it."""
        return gather_bytes(self._transport, payload)

    @property
    def cursor(self) -> Cursor:
        """Where this rank is in its program; may be read from another thread."""
        return self._transport.cursor

    def close(self) -> None:
        """Ends this rank's part; other ranks may still be at work. Called by itself at the end of the process."""
        self._transport.close()

    @property
    def _last_rank(self) -> int:
        return self.plan.placement.rank_of(self.plan.placement.num_stages - 1)

    def _need_loss(self) -> None:
        if not self._has_loss:
            raise ModelError("this pipeline was made without a loss; pass loss_fn= to Pipeline, or use forward")

    @contextmanager
    def _calling(self, name: str) -> Iterator[None]:
        """Surrounds one call that all ranks make together; what fails after they have agreed ends the pipeline.

        Messages of a step that failed may still be under way, and would be taken for those of the next.
        """
        if self._failure:
            raise RankFailedError(f"this pipeline ended when {self._failure}; start all ranks again to go on")
        cursor = self._transport.cursor
        self._calls += 1
        self._under_way = False
        cursor.step, cursor.entries, cursor.call = self._calls, (), name
        try:
            yield
        except Exception as error:
            lost = isinstance(error, RankFailedError)
            if lost or self._under_way:
                self._failure = f"call {self._calls} ({name}) failed: {type(error).__name__}: {error}"
            if self._under_way and not lost:
                self._transport.fail(f"failed in {name} {self._calls}: {type(error).__name__}: {error}")
            raise
        finally:
            cursor.call, cursor.waiting_for = "", -1

    def _run(
        self, name: str, inputs: Any, targets: Any, sizes: Callable[[int], list[int]], loss_scale: float = 1.0
    ) -> StepBatch:
        """Runs one call: agreement, then the program; on every rank alike."""
        training = name == "step"
        call = Call(name, self._calls, inputs, targets, sizes, [p.requires_grad for p in self._parameters])
        batch, agreed = self._feed.prepare(call, training=training, step=self.steps_done)
        batch.starts = [start * loss_scale for start in batch.starts]
        if training and self._replicas is not None and not self._alike:
            check_weights(self._transport, self._replicas, self.named_parameters())
            self._alike = True
        self._under_way = True
        engine = self._training if training else self._evaluation(len(sizes(agreed.inputs)))
        self._traced = engine if training else self._traced
        engine.run(batch, signature=agreed.signature)
        return batch

    def _evaluation(self, num_microbatches: int) -> Engine:
        """Returns the engine of a forward-only program, made once per number of microbatches."""
        if num_microbatches not in self._evaluating:
            program = lower(forward_only(self.plan.placement, num_microbatches))
            self._transport.open(program.channels)
            self._evaluating[num_microbatches] = self._engine(verify(program), Duties(), links=self._aside)
        return self._evaluating[num_microbatches]

    def _loss(self, batch: StepBatch) -> torch.Tensor:
        """Returns the loss of all microbatches and replicas, on every rank."""
        placement = self.plan.placement
        if batch.training and len(placement.owners(placement.num_stages - 1)) > 1:
            terms = self._transport.gather(batch.own_terms(self.num_microbatches)).sum(dim=0)
            loss = terms.sum().to(self.device)
            return self._replicas.sum_tensor(loss) if self._replicas is not None else loss
        loss = torch.zeros((), dtype=torch.float64, device=self.device)
        if self.rank == self._last_rank:
            loss = batch.mean_loss()
            if self._replicas is not None:
                loss = self._replicas.sum_tensor(loss)
        self._transport.broadcast(loss, self._last_rank)
        return loss
