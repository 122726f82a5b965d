from penstock.ir.placement import Placement
from penstock.ir.schedule import Schedule
from penstock.schedules.sizes import check_sizes
from penstock.schedules.zb_h1 import split_1f1b
def zb_h2(num_ranks, num_microbatches):
    ranks = tuple(
        split_1f1b(rank, num_microbatches, ahead=2*(num_ranks - 1 - rank), lag=2*rank) for rank in range(num_ranks)
    )
    return Schedule("zb_h2", Placement.looped(num_ranks), num_microbatches, ranks)
