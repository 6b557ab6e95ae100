"""Pictures, each a function that returns a matplotlib figure: of results, what they allow one to say, and dynamics."""

from routing_marl.plots.dynamics import diagnostics_over_epochs, phase_portrait, route_similarity, simplex
from routing_marl.plots.results import cost_curves, learning_curves, route_flow, route_matrices, save
from routing_marl.plots.scores import intervals, performance_profiles, time_to_accuracy

__all__ = [
    "cost_curves",
    "diagnostics_over_epochs",
    "intervals",
    "learning_curves",
    "performance_profiles",
    "phase_portrait",
    "route_flow",
    "route_matrices",
    "route_similarity",
    "save",
    "simplex",
    "time_to_accuracy",
]
