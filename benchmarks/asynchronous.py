"""Loss curves of asynchronous training beside synchronous, on the text of `make train`.

python benchmarks/asynchronous.py [--updates 320] [--json FILE] [--png FILE]

The same byte-level GPT from the same weights on the same text in the same order, as four ranks in one process. Every
optimizer step takes 16 windows, so that equal numbers of steps have seen the same text; what differs is how old the
weights are that the gradients were computed with. AdamW with a short warm-up for all; PipeMare's rules, for the
learning rate and the discrepancy, with SGD as in its paper, beside synchronous SGD and SGD on old gradients alone.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

import penstock as ps
from penstock.train.config import ModelConfig
from penstock.train.data import Corpus, batch, held_out_batches, read_corpus, unigram_entropy
from penstock.train.gpt import build_gpt, lm_loss

RANKS, BATCH, UPDATES_A_CALL = 4, 16, 40
MODEL = ModelConfig(layers=6, width=96, heads=4, context=96)
SHOWN = ("1F1B", "PipeDream", "PipeDream, vertical sync", "PipeDream-2BW", "no stash (PipeMare's order)")
"""The curves of the picture: those with AdamW."""


class Run(NamedTuple):
    """One curve.

    Attributes:
        schedule: the order of one call.
        calls: arguments of the Pipeline beside it.
        samples: windows in a microbatch.
        updates: optimizer steps of one call.
    """

    schedule: ps.Schedule
    arguments: dict[str, Any]
    samples: int
    updates: int


def adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=2e-3, betas=(0.9, 0.95), weight_decay=0.1)


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def warm_up(optimizer: torch.optim.Optimizer, stage: int = 0) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 60))


def runs(updates: int) -> dict[str, Run]:
    """Returns the curves by their names."""
    whole, n = UPDATES_A_CALL, BATCH // 4
    stash = ps.pipedream(RANKS, whole)
    together = ps.pipedream(RANKS, whole, vertical_sync=True)
    buffered = ps.pipedream_2bw(RANKS, n * whole, microbatches_per_version=n)
    latest = ps.pipemare(RANKS, whole)
    inside = {"optimizer": adamw, "lr_scheduler": warm_up}
    rules = {
        "optimizer": sgd,
        "lr_scheduler": ps.pipemare_learning_rate(latest, anneal_steps=updates // 4),
        "discrepancy_decay": 0.135,
    }
    flush = ps.one_f_one_b(RANKS, n)
    return {
        "1F1B": Run(flush, {"outside": adamw}, BATCH // n, 1),
        "PipeDream": Run(stash, inside, BATCH, whole),
        "PipeDream, vertical sync": Run(together, inside, BATCH, whole),
        "PipeDream-2BW": Run(buffered, inside, BATCH // n, whole),
        "no stash (PipeMare's order)": Run(latest, inside, BATCH, whole),
        "1F1B, SGD": Run(flush, {"outside": sgd}, BATCH // n, 1),
        "no stash, SGD": Run(latest, {"optimizer": sgd, "lr_scheduler": warm_up}, BATCH, whole),
        "PipeMare, SGD": Run(latest, rules, BATCH, whole),
    }


def curve(run: Run, corpus: Corpus, updates: int) -> dict[str, Any]:
    """Returns the loss of every update, and the held-out loss before the first call and after each tenth of them."""
    model = build_gpt(MODEL, seed=0)
    held_out = held_out_batches(corpus, batches=4, batch_size=32, context=MODEL.context)
    losses: list[float] = []

    def noted(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        loss = lm_loss(logits, targets)
        if loss.requires_grad:  # called by the rank of the last stage alone, microbatch by microbatch
            losses.append(float(loss.detach()))
        return loss

    def rank(transport: ps.LoopbackTransport) -> list[tuple[int, float]]:
        arguments = dict(run.arguments)
        outside: Callable[[Any], torch.optim.Optimizer] | None = arguments.pop("outside", None)
        pipe = ps.Pipeline(
            model, noted, transport=transport, schedule=run.schedule, partition=[2, 2, 2, 2], **arguments
        )
        optimizer = outside(pipe.parameters()) if outside else None
        scheduler = warm_up(optimizer) if optimizer else None
        evaluated = []
        done = 0
        while done < updates:
            if done % max(updates // 10, run.updates) == 0:
                evaluated.append((done, sum(float(pipe.evaluate(*each)) for each in held_out) / len(held_out)))
            data = [
                batch(corpus, step=done + i, batch_size=BATCH, context=MODEL.context, seed=0)
                for i in range(run.updates)
            ]
            pipe.step(torch.cat([x for x, _ in data]), torch.cat([y for _, y in data]))
            if optimizer and scheduler:
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
            done += run.updates
        evaluated.append((done, sum(float(pipe.evaluate(*each)) for each in held_out) / len(held_out)))
        return evaluated

    begin = time.perf_counter()
    evaluated = ps.run_ranks(rank, RANKS)[0]
    a_step = len(losses) // updates
    means = [sum(losses[i : i + a_step]) / a_step for i in range(0, len(losses), a_step)]
    return {"train": [round(loss, 4) for loss in means], "held_out": evaluated, "seconds": time.perf_counter() - begin}


def draw(curves: dict[str, dict[str, Any]], entropy: float, path: Path) -> None:
    """Draws the training loss, averaged over 40 updates, and the held-out loss as dots."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7.2, 3.6), layout="constrained")
    colours = ("#1b1b1b", "#cf6a3c", "#e0983f", "#2c6e62", "#6f8fc9")
    for colour, name in zip(colours, SHOWN, strict=True):
        train, wide = curves[name]["train"], UPDATES_A_CALL
        smooth = [sum(train[i - wide : i]) / wide for i in range(wide, len(train) + 1, wide // 4)]
        axes.plot(range(wide, len(train) + 1, wide // 4), smooth, color=colour, linewidth=1.4, label=name)
        axes.plot(*zip(*curves[name]["held_out"][1:], strict=True), "o", color=colour, markersize=3.5)
    axes.axhline(entropy, color="#9a9a9a", linewidth=0.8, linestyle=":")
    axes.text(axes.get_xlim()[1], entropy, "byte frequencies alone ", ha="right", va="bottom", size=8, color="#6b6b6b")
    axes.set(xlabel="optimizer steps (16 windows of 96 bytes each)", ylabel="loss (nats a byte)")
    axes.set_ylim(top=min(4.2, axes.get_ylim()[1]))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Runs all curves, prints a table, writes what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=320)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--png", type=Path)
    parser.add_argument("--draw", type=Path, help="draw the curves of this file instead of training")
    options = parser.parse_args()
    if options.draw:
        saved = json.loads(options.draw.read_text())
        draw(saved["curves"], saved["unigram_entropy"], options.png)
        return
    torch.set_num_threads(1)
    corpus = read_corpus(held_out=0.05)
    entropy = unigram_entropy(corpus)
    print(f"python {platform.python_version()}, torch {torch.__version__}, load {os.getloadavg()[0]:.1f}")
    print(f"held-out loss in nats a byte; {entropy:.3f} for one that knows byte frequencies alone", flush=True)
    curves = {}
    for name, run in runs(options.updates).items():
        curves[name] = found = curve(run, corpus, options.updates)
        at = "  ".join(f"{loss:.3f}" for _, loss in found["held_out"][1:])
        versions = ps.verify(run.schedule).weight_versions
        print(f"{name:28} {at}   ({found['seconds']:.0f} s, versions {versions})", flush=True)
    if options.json:
        options.json.write_text(json.dumps({"unigram_entropy": entropy, "curves": curves}) + "\n")
    if options.png:
        draw(curves, entropy, options.png)


if __name__ == "__main__":
    main()
