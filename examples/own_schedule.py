"""A schedule of your own: a value that is proven, timed and run, with nothing written for it in the runtime.

Here: 1F1B whose first rank runs one more forward ahead than it has to.

python examples/own_schedule.py
"""

import torch
from torch import nn

import penstock as ps

GRID = """
eager p=2 m=4 weights=flush placement=0,1
rank 0: F0 F1 F2 B0 F3 B1 B2 B3
rank 1: .  F0 B0 F1 B1 F2 B2 F3 B3
"""

CYCLE = """
cycle p=2 m=2 weights=flush placement=0,1
rank 0: F0 B0 F1 B1
rank 1: F0 F1 B0 B1
"""


if __name__ == "__main__":
    schedule = ps.parse_grid(GRID)
    print(schedule)
    print("peak activations:", ps.verify(schedule).peak_activations)
    costs = ps.StageCosts(forward=1, backward=2)
    link = ps.Cluster.uniform(2, latency_seconds=0.5)
    for candidate in (schedule, ps.one_f_one_b(num_ranks=2, num_microbatches=4)):
        print(f"{candidate.name}: {ps.simulate(candidate, costs, link).makespan} s with slow links")

    try:
        ps.verify(ps.parse_grid(CYCLE))
    except ps.UserError as error:
        print(error)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    inputs, targets = torch.randn(8, 4), torch.randn(8, 1)

    def step(transport: ps.Transport) -> float:
        """Returns the loss of one step under the schedule above."""
        return (
            ps.Pipeline(model, nn.functional.mse_loss, transport=transport, schedule=schedule)
            .step(inputs, targets)
            .item()
        )

    print("loss:", ps.run_ranks(step, num_ranks=2))
