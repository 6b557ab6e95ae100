"""Pictures, each a function that returns a matplotlib figure: of results, and of learning dynamics."""

from routing_marl.plots.dynamics import diagnostics_over_epochs, phase_portrait, route_similarity, simplex
from routing_marl.plots.results import cost_curves, learning_curves, route_matrices, save

__all__ = [
    "cost_curves",
    "diagnostics_over_epochs",
    "learning_curves",
    "phase_portrait",
    "route_matrices",
    "route_similarity",
    "save",
    "simplex",
]
