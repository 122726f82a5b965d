"""Search for a schedule: the best order of stages under measured costs and a memory limit, with a lower bound."""

from penstock.optimize.bound import lower_bound
from penstock.optimize.problem import Objective, Problem, problem_of
from penstock.optimize.result import Optimized, Search
from penstock.optimize.search import optimize_schedule
from penstock.optimize.seeds import placements

__all__ = [
    "Objective",
    "Optimized",
    "Problem",
    "Search",
    "lower_bound",
    "optimize_schedule",
    "placements",
    "problem_of",
]
