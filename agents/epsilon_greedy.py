"""Acting by values: mostly the best action, sometimes any (Sutton & Barto 2018, section 2.2)."""

from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from routing_marl.agents.base import SamplingAgent
from routing_marl.agents.checks import check_count, check_number
from routing_marl.agents.policies import epsilon_greedy, greedy_action
from routing_marl.protocol import GameSpec, Observation


class EpsilonGreedyAgent(SamplingAgent):
    """Base of the agents that learn the values of actions: a subclass defines ``values_at`` and ``learn``.

    Exploration shares the greedy probability among equal best actions, so that new values prefer none; the
    greedy action itself is the best one of the lowest index.

    Args:
        spec: the game.
        epsilon_start: probability of a uniform action at first ...
        epsilon_end: ... and from the ``epsilon_steps``-th call of ``learn`` on; linear between.
        epsilon_steps: length of that schedule, in calls of ``learn``.
        seed: of the sampled actions; None for fresh entropy.

    Attributes:
        batches: number of calls of ``learn`` so far.
    """

    tables: ClassVar[tuple[str, ...]] = ("batches",)
    batches: Int[Tensor, ""]

    def __init__(
        self, spec: GameSpec, epsilon_start: float, epsilon_end: float, epsilon_steps: int, seed: int | None
    ) -> None:
        super().__init__(spec, seed)
        self._start = check_number("epsilon_start", epsilon_start, 0.0, 1.0)
        self._end = check_number("epsilon_end", epsilon_end, 0.0, 1.0)
        self._steps = check_count("epsilon_steps", epsilon_steps)
        # A tensor, as all that changes: the schedule costs no copy between host and device.
        self.batches = torch.zeros((), dtype=torch.long, device=spec.device)

    def values_at(self, observation: Observation) -> Float[Tensor, "#episode task action"]:
        """The value of each action, legal or not."""
        raise NotImplementedError

    @property
    def epsilon(self) -> Float[Tensor, ""]:
        """The present probability of a uniform action."""
        progress = (self.batches / self._steps).clamp(max=1.0)
        return self._start + (self._end - self._start) * progress

    @torch.no_grad()
    def policy(self, observation: Observation) -> Float[Tensor, "episode task action"]:
        """The epsilon-greedy probabilities, exploration included."""
        return epsilon_greedy(self.values_at(observation), observation.mask, self.epsilon)

    @torch.no_grad()
    def expected_return(self, observation: Observation) -> Float[Tensor, "episode task"]:
        """The mean value under the policy, exploration included."""
        return (self.policy(observation) * self.values_at(observation)).sum(-1)

    @torch.no_grad()
    def reported(self, observation: Observation) -> Float[Tensor, "episode task action"]:
        """Q clipped to [0, 1], zero for illegal actions: the agreement that a Q-learner reports."""
        return torch.where(observation.mask, self.values_at(observation).clamp(0.0, 1.0), 0.0)

    @torch.no_grad()
    def act(self, observation: Observation, *, greedy: bool = False) -> Int[Tensor, "episode task"]:
        """Acts epsilon-greedily, or takes the action of highest value (of equals the lowest) where ``greedy``."""
        if greedy:
            return greedy_action(self.values_at(observation), observation.mask)
        return super().act(observation)
