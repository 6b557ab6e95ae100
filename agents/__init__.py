"""The learners. Each is one object that acts for all tasks; any object with the same methods will do as well.

Tables over (task, depth):

- :class:`~routing_marl.agents.wpl.WPL`: weighted policy learner, the paper's and the original one.
- :class:`~routing_marl.agents.q_learning.QLearning`, :class:`~routing_marl.agents.sarsa.SARSA`: epsilon-greedy.
- :class:`~routing_marl.agents.policy_gradient.PolicyGradient`: REINFORCE with a baseline.
- :class:`~routing_marl.agents.actor_critic.ActorCritic`: the same with a critic (A2C).

Networks over what agents see (task, depth, features), one per agent or one that all share, with the task's label or
without it:

- :class:`~routing_marl.agents.wpl_network.WPLNetwork`
- :class:`~routing_marl.agents.q_network.QNetwork`, :class:`~routing_marl.agents.q_network.SARSANetwork`
- :class:`~routing_marl.agents.actor_critic_network.PolicyGradientNetwork`,
  :class:`~routing_marl.agents.actor_critic_network.ActorCriticNetwork`
- :class:`~routing_marl.agents.dispatcher.Dispatcher`: a first agent assigns each decision to one of K routing agents.

What learns nothing:

- :class:`~routing_marl.agents.random.RandomAgent`: uniform, learns nothing.
- :class:`~routing_marl.agents.fixed.FixedRoutes`: plays a table of routes, made by hand or by
  :func:`~routing_marl.agents.fixed.per_task`, :func:`~routing_marl.agents.fixed.all_shared` or
  :func:`~routing_marl.agents.fixed.random_groups`.

Agents know the protocol only, never the engine or the network.
"""

from routing_marl.agents.actor_critic import ActorCritic
from routing_marl.agents.actor_critic_network import ActorCriticNetwork, PolicyGradientNetwork
from routing_marl.agents.dispatcher import Dispatcher
from routing_marl.agents.fixed import FixedRoutes, all_shared, per_task, random_groups
from routing_marl.agents.policy_gradient import PolicyGradient
from routing_marl.agents.q_learning import QLearning
from routing_marl.agents.q_network import QNetwork, SARSANetwork
from routing_marl.agents.random import RandomAgent
from routing_marl.agents.sarsa import SARSA
from routing_marl.agents.wpl import WPL
from routing_marl.agents.wpl_network import WPLNetwork

__all__ = [
    "SARSA",
    "WPL",
    "ActorCritic",
    "ActorCriticNetwork",
    "Dispatcher",
    "FixedRoutes",
    "PolicyGradient",
    "PolicyGradientNetwork",
    "QLearning",
    "QNetwork",
    "RandomAgent",
    "SARSANetwork",
    "WPLNetwork",
    "all_shared",
    "per_task",
    "random_groups",
]
