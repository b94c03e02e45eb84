"""What happens to the weights that stay: solvers of the layer-wise reconstruction problem, and chains of them."""

from winnow.solve.chain import NAMES, Chain, parse_solver, solve, solve_group
from winnow.solve.problem import Problem, Solution

__all__ = [
    "NAMES",
    "Chain",
    "Problem",
    "Solution",
    "parse_solver",
    "solve",
    "solve_group",
]
