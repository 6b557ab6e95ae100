"""The learners. Each is one object that acts for all tasks; any object with the same methods will do as well.

- :class:`~routing_marl.agents.wpl.WPL`: weighted policy learner, the paper's and the original one.
- :class:`~routing_marl.agents.q_learning.QLearning`: tabular, epsilon-greedy.
- :class:`~routing_marl.agents.policy_gradient.PolicyGradient`: tabular REINFORCE with a baseline.
- :class:`~routing_marl.agents.random.RandomAgent`: uniform, learns nothing.
- :class:`~routing_marl.agents.fixed.FixedRoutes`: plays a table of routes, made by hand or by
  :func:`~routing_marl.agents.fixed.per_task`, :func:`~routing_marl.agents.fixed.all_shared` or
  :func:`~routing_marl.agents.fixed.random_groups`.

Agents know the protocol only, never the engine or the network.
"""

from routing_marl.agents.fixed import FixedRoutes, all_shared, per_task, random_groups
from routing_marl.agents.policy_gradient import PolicyGradient
from routing_marl.agents.q_learning import QLearning
from routing_marl.agents.random import RandomAgent
from routing_marl.agents.wpl import WPL

__all__ = [
    "WPL",
    "FixedRoutes",
    "PolicyGradient",
    "QLearning",
    "RandomAgent",
    "all_shared",
    "per_task",
    "random_groups",
]
