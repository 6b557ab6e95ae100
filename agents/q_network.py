"""Q-learning and SARSA with networks over the observation: independent deep Q-learners.

Watkins & Dayan 1992; Rummery & Niranjan 1994 (SARSA); Mnih et al. 2015 for the network. Episodes have a handful of
steps and end with what matters, so there is neither a target network nor a replay: what an action was worth a thousand
updates ago is wrong today, since the blocks have learned.
"""

from collections.abc import Mapping
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from routing_marl.agents.checks import check_number
from routing_marl.agents.epsilon_greedy import EpsilonGreedyAgent
from routing_marl.agents.networks import Approximator
from routing_marl.agents.targets import lambda_targets
from routing_marl.protocol import GameSpec, Observation, Trajectory


class QNetwork(EpsilonGreedyAgent):
    """Descends ``1/2 (r + gamma max_legal Q(s', .) - Q(s, a))**2``, the target held fixed; explores epsilon-greedily.

    One step of Adam per call of ``learn``, along the sum over all active decisions, divided by the number of episodes.
    With a ``trace_decay`` above 0 the targets are those of Peng's Q(lambda), as in the table
    (:class:`~routing_marl.agents.q_learning.QLearning`), but taken before anything is learned.

    Args:
        spec: the game; its features, where it has them, are what the networks see beside task and depth.
        share_network: one network for all agents, instead of one each.
        task_label: whether a shared network sees the task.
        hidden_units: width of the hidden layer; 0 for a linear function.
        start_scale: about how large the first outputs are: how far a new agent is from indifference.
        network_rate: learning rate (Adam).
        gamma: discount of later rewards.
        trace_decay: how much of the target is what happened later, and not what was expected; 0 is the formula.
        epsilon_start: probability of a uniform action at first ...
        epsilon_end: ... and from the ``epsilon_steps``-th call of ``learn`` on; linear between.
        epsilon_steps: length of that schedule, in calls of ``learn``.
        seed: of weights and sampled actions; None for fresh entropy.

    Attributes:
        function: the networks; their outputs are Q.

    Raises:
        UserError: a parameter is out of range.
    """

    parts: ClassVar[tuple[str, ...]] = ("function",)

    def __init__(
        self,
        spec: GameSpec,
        *,
        share_network: bool = False,
        task_label: bool = True,
        hidden_units: int = 64,
        start_scale: float = 1.0,
        network_rate: float = 0.03,
        gamma: float = 1.0,
        trace_decay: float = 0.9,
        epsilon_start: float = 0.1,
        epsilon_end: float = 0.05,
        epsilon_steps: int = 300,
        seed: int | None = None,
    ) -> None:
        super().__init__(spec, epsilon_start, epsilon_end, epsilon_steps, seed)
        self._gamma = check_number("gamma", gamma, 0.0, 1.0)
        self._trace_decay = check_number("trace_decay", trace_decay, 0.0, 1.0)
        self.function = Approximator(
            spec,
            spec.n_actions,
            share_network=share_network,
            task_label=task_label,
            hidden_units=hidden_units,
            start_scale=start_scale,
            network_rate=network_rate,
            seed=seed,
        )

    def values_at(self, observation: Observation) -> Float[Tensor, "episode task action"]:
        """The outputs of the networks."""
        return self.function.at(observation)

    def learn(self, trajectory: Trajectory) -> Mapping[str, Tensor]:
        """Learns from every active decision; returns the mean return, and epsilon."""
        values = self.function.over(trajectory)
        with torch.enable_grad():
            taken = values.gather(-1, trajectory.actions.long().unsqueeze(-1)).squeeze(-1)
            hoped = self._hoped(values.detach(), trajectory)
            targets = lambda_targets(trajectory, hoped, self._gamma, self._trace_decay)
            error = torch.where(trajectory.active, targets - taken, 0.0)
            self.function.descend(error.square().sum() / (2 * error.shape[1]))
        self.batches = self.batches + 1
        return {"return": trajectory.returns(self._gamma)[0].mean(), "epsilon": self.epsilon}

    def _hoped(
        self, values: Float[Tensor, "depth episode task action"], trajectory: Trajectory
    ) -> Float[Tensor, "depth episode task"]:
        """What a decision is worth to the one before it."""
        return torch.where(trajectory.masks, values, -torch.inf).amax(-1)


class SARSANetwork(QNetwork):
    """As :class:`QNetwork`, with the action that was taken next in place of the best one.

    Descends ``1/2 (r + gamma Q(s', a') - Q(s, a))**2``, with the target held fixed; parameters are those of
    :class:`QNetwork`. Where the next actions are the best ones, both are the same.
    """

    def _hoped(
        self, values: Float[Tensor, "depth episode task action"], trajectory: Trajectory
    ) -> Float[Tensor, "depth episode task"]:
        return values.gather(-1, trajectory.actions.long().unsqueeze(-1)).squeeze(-1)
