"""T5 and BART over gloo, against the unsplit model, and T5's directory written and opened by two processes."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import torch
from joined import arguments, join, tell
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

import penstock as ps
from penstock.models.hugging_face import label_count, seq2seq_loss
from penstock.runtime.transport.distributed import DistributedTransport
from penstock.testing import reference_gradients

warnings.simplefilter("ignore")

from tests.models.tiny import VOCABULARY, tiny  # noqa: E402

numbers = torch.Generator().manual_seed(1)
ids, labels = (torch.randint(3, VOCABULARY, (2, length), generator=numbers) for length in (9, 7))
mask = torch.ones_like(ids)
mask[1, 6:], labels[1, 4:] = 0, -100
inputs = {"input_ids": ids, "attention_mask": mask, "labels": labels}
MEANT: dict[str, Any] = {"num_microbatches": 2, "weight_fn": label_count}
CASES = (("t5", "zb_v", True), ("bart", "interleaved_1f1b", False))
"""Model type, schedule, and whether boundaries pass through shared memory or through gloo itself."""


def far(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Returns the relative error."""
    return float((found - wanted).norm() / wanted.norm())


def compare(model: Any, schedule: str, shared_memory: bool) -> dict[str, Any]:
    """Returns how far logits, loss, gradients and their norm are off."""
    loss, grads = reference_gradients(model, seq2seq_loss, inputs, labels, **MEANT)
    way = DistributedTransport(timeout_seconds=60, shared_memory=shared_memory)
    pipe = ps.Pipeline(copy.deepcopy(model), seq2seq_loss, transport=way, schedule=schedule, **MEANT)
    output = pipe.forward(inputs if pipe.has_first_stage else None, broadcast=True)
    found = pipe.step(inputs if pipe.has_first_stage else None, labels if pipe.has_last_stage else None)
    norm = pipe.clip_grad_norm_(1e9)
    own = {name: each.grad for name, each in pipe.named_parameters() if name in grads}  # a tied one has other names too
    expected = torch.stack([grad.norm() for grad in grads.values()]).norm()
    pipe.close()
    return {
        "logits": far(output, model(**inputs, use_cache=False).logits),
        "loss": far(found, loss),
        "norm": far(norm, expected),
        "worst": max(far(grad, grads[name]) for name, grad in own.items()),
        "names": sorted(own),
        "all": sorted(grads),
    }


def through_a_directory(folder: Path) -> float:
    """Returns how far the logits of a model are off that two processes have written and opened."""
    model = tiny("t5", dtype=torch.float32).eval()
    pipe = ps.Pipeline(copy.deepcopy(model), seq2seq_loss, num_microbatches=2, timeout_seconds=60)
    pipe.save_pretrained(folder)
    pipe.close()
    return opened(folder, model)


def shared_matrix(folder: Path) -> float:
    """Returns likewise how far they are off where each process has one half of a matrix."""
    model = tiny("t5", dtype=torch.float32).eval()
    mesh = init_device_mesh("cpu", (2, 1), mesh_dim_names=("tp", "pp"))
    shared = copy.deepcopy(model)
    matrix = shared.encoder.block[1].layer[1].DenseReluDense.wi
    matrix.weight = torch.nn.Parameter(distribute_tensor(matrix.weight.detach(), mesh["tp"], [Shard(0)]))
    pipe = ps.Pipeline(shared, seq2seq_loss, mesh=mesh["pp"], num_microbatches=2, timeout_seconds=60)
    pipe.save_pretrained(folder)
    pipe.close()
    dist.barrier()
    return opened(folder, model)


def opened(folder: Path, model: Any) -> float:
    again = ps.Pipeline.from_pretrained(folder, seq2seq_loss, num_microbatches=2, schedule="zb_v", timeout_seconds=60)
    output = again.forward(inputs, broadcast=True)
    again.close()
    return far(output, model(**inputs, use_cache=False).logits)


join()
root = Path(arguments[0])
for model_type, schedule, shared_memory in CASES:
    tell(case=[model_type, schedule], **compare(tiny(model_type), schedule, shared_memory))
tell(directory=through_a_directory(root / "plain"), shared=shared_matrix(root / "shared"))
