"""Two models, two optimizers, one set of ranks: a student learns from a teacher that is trained on the way.

python examples/two_pipelines.py
"""

import torch
from torch import nn

import penstock as ps


def mlp(width: int, depth: int) -> nn.Sequential:
    """Returns a multi-layer perceptron from 4 features to 3 classes."""
    inner = [nn.Sequential(nn.Linear(width, width), nn.Tanh()) for _ in range(depth)]
    return nn.Sequential(nn.Linear(4, width), *inner, nn.Linear(width, 3))


def distillation(student_logits: torch.Tensor, teacher_logits: torch.Tensor) -> torch.Tensor:
    """Returns the divergence of the student from the teacher, a mean over samples."""
    return nn.functional.kl_div(
        student_logits.log_softmax(-1), teacher_logits.log_softmax(-1), log_target=True, reduction="batchmean"
    )


def train(transport: ps.Transport) -> tuple[float, float]:
    """Returns the last losses of teacher and student."""
    cross_entropy = nn.functional.cross_entropy
    teacher = ps.Pipeline(TEACHER, cross_entropy, transport=transport, schedule="gpipe", num_microbatches=4)
    student = ps.Pipeline(STUDENT, distillation, transport=transport, schedule="1F1B", num_microbatches=2)
    teaching = torch.optim.AdamW(teacher.parameters(), lr=1e-2)
    learning = torch.optim.SGD(student.parameters(), lr=0.5)
    for _ in range(40):
        known = teacher.step(INPUTS, CLASSES)
        teaching.step()
        teaching.zero_grad()
        learned = student.step(INPUTS, teacher.forward(INPUTS))  # logits arise where the student needs its targets
        learning.step()
        learning.zero_grad()
    return known.item(), learned.item()


if __name__ == "__main__":
    torch.manual_seed(0)
    INPUTS = torch.randn(64, 4)
    CLASSES = INPUTS[:, :3].argmax(dim=1)
    TEACHER, STUDENT = mlp(32, 4), mlp(8, 2)
    known, learned = ps.run_ranks(train, num_ranks=2)[0]
    print(f"teacher's loss {known:.4f}, student's divergence from it {learned:.4f}")
