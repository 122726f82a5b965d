"""The training configuration: frozen dataclasses are the truth, and each default is the tuned one.

A field's docstring is its help text on the command line. Ranges and the relations between fields live in
`config_check`; files and command lines in `config_file`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

VOCABULARY = 256
"""Distinct symbols: text is read as bytes."""


@dataclass(frozen=True)
class PipelineConfig:
    """How the model and the batch are laid over ranks."""

    ranks: int = 2
    """Places in the pipeline, one process each."""
    schedule: str = "one_f_one_b"
    """Name of the schedule that orders each rank's work; "auto" searches for the best."""
    microbatches: int = 4
    """Slices of one batch that flow through the pipeline."""
    partition: tuple[int, ...] | Literal["auto"] = ()
    """Layers per stage, in model order; empty cuts the model uniformly, "auto" by what layers cost."""
    chunks: int = 0
    """Stages a rank; 0 takes the schedule's own number."""
    recompute: tuple[int, ...] = ()
    """Layers that run their forward again before their backward, counted from the embedding, 0."""
    replicas: int = 1
    """Copies of the pipeline, data-parallel, each of as many ranks; they share every batch."""
    outermost: Literal["data", "pipeline"] = "data"
    """What is outermost on the processes: whole copies side by side, or all copies of rank 0, then all of rank 1."""


@dataclass(frozen=True)
class ModelConfig:
    """The byte-level GPT's sizes, or another model in its place."""

    hf: str = ""
    """Hugging Face model to train: a directory, or a file like config.json for fresh weights; empty: the own GPT."""
    layers: int = 4
    """Transformer blocks."""
    width: int = 256
    """Features per position; a multiple of twice the number of heads."""
    heads: int = 4
    """Attention heads per block."""
    context: int = 128
    """Bytes, or tokens, that the model sees at once."""
    dropout: float = 0.0
    """Share of features dropped after attention and after the MLP while training."""


@dataclass(frozen=True)
class DataConfig:
    """The text to train on."""

    paths: tuple[str, ...] = ()
    """Text files or directories of them; empty takes the source of Python's own standard library."""
    held_out: float = 0.05
    """Share of the text kept for evaluation and never trained on."""


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer and its learning-rate curve."""

    name: Literal["adamw", "nadamw", "sgd"] = "adamw"
    """Optimizer: adamw, nadamw with Nesterov's momentum, or sgd with momentum betas[0]."""
    learning_rate: float = 2e-3
    """Highest learning rate, reached when the warm-up ends."""
    warmup_steps: int = 30
    """Steps over which the learning rate rises linearly from zero."""
    floor: float = 0.05
    """Share of the highest learning rate at which the cosine decay ends."""
    weight_decay: float = 0.1
    """Decoupled weight decay of matrices; vectors are not decayed."""
    betas: tuple[float, float] = (0.9, 0.98)
    """Decay of the running mean and of the running square of the gradient."""
    clip_norm: float = 1.0
    """Largest norm of the model's gradient, or where a schedule steps inside of each stage's; 0 does not clip."""
    anneal_steps: int = 0
    """For pipemare: steps over which a stage's learning rate rises from its delay's share to its own; 0 has none."""
    discrepancy_decay: float = 0.0
    """For pipemare: D of its discrepancy correction, e.g. 0.135; 0 does not correct."""


@dataclass(frozen=True)
class RunConfig:
    """Length, place and repeatability of one run."""

    steps: int = 340
    """Optimizer steps."""
    batch_size: int = 8
    """Sequences per step over all microbatches; a multiple of pipeline.microbatches."""
    seed: int = 0
    """Key of every random choice: initial weights, order of the data, dropout, sample."""
    device: str = "cpu"
    """Device of every rank: cpu or cuda."""
    dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    """Type of parameters and activations."""
    output: str = "runs/gpt"
    """Directory that receives checkpoints, the resolved configuration, traces and pictures."""
    port: int = 0
    """Port on which the ranks of this host meet, on loopback; 0 takes any free one."""
    resume: str = ""
    """Where to go on from: empty starts anew, "latest" or the path of a checkpoint resumes."""


@dataclass(frozen=True)
class CheckpointConfig:
    """When checkpoints are written and how many stay."""

    every: int = 170
    """Steps between checkpoints; 0 saves only at the end."""
    keep: int = 2
    """Newest checkpoints that stay on disk."""


@dataclass(frozen=True)
class EvaluateConfig:
    """When the held-out loss is measured, and on how much text."""

    every: int = 170
    """Steps between evaluations; 0 evaluates only at the end."""
    batches: int = 24
    """Batches of held-out text per evaluation, spread evenly over it."""


@dataclass(frozen=True)
class LogConfig:
    """What is shown and recorded."""

    every: int = 10
    """Steps between lines of the loss record."""
    tensorboard: bool = False
    """Write TensorBoard event files into the output directory."""
    predict_after: int = 20
    """Steps after which what a step takes is set against what its layers' costs predict; 0 never."""
    sample_bytes: int = 256
    """Bytes of text generated when training ends; 0 generates none."""


@dataclass(frozen=True)
class Config:
    """Everything one training run depends on."""

    pipeline: PipelineConfig = field(default_factory=PipelineConfig)
    """How the model and the batch are laid over ranks."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The byte-level GPT's sizes, or another model in its place."""
    data: DataConfig = field(default_factory=DataConfig)
    """The text to train on."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """The optimizer and its learning-rate curve."""
    run: RunConfig = field(default_factory=RunConfig)
    """Length, place and repeatability of the run."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """When checkpoints are written and how many stay."""
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    """When the held-out loss is measured."""
    log: LogConfig = field(default_factory=LogConfig)
    """What is shown and recorded."""
