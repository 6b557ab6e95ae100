"""REINFORCE with a learned baseline (Williams 1992), tabular over (task, depth).

Rosenbaum et al. 2018 (arXiv 1711.01239), section 3.2, compare it with WPL as a router.
"""

from collections.abc import Mapping
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from routing_marl.agents.base import SamplingAgent
from routing_marl.agents.checks import check_number
from routing_marl.agents.policies import masked_softmax
from routing_marl.protocol import GameSpec, Observation, Trajectory


class PolicyGradient(SamplingAgent):
    """Ascends ``(R - baseline) log pi(a) + entropy H(pi)`` in the logits.

    The gradients in closed form::

        d log pi(a) / d logit_b = 1[a = b] - pi_b            d H / d logit_b = -pi_b (log pi_b + H)

    One step per call of ``learn``, along the mean over the parallel episodes (an inactive decision counts as
    zero). The advantage is taken from the baseline as it was before the call.

    Args:
        spec: the game.
        policy_rate: step size of the logits.
        baseline_rate: weight of the newest mean return in the baseline.
        entropy: weight of the entropy bonus.
        gamma: discount of later rewards.
        seed: of the sampled actions; None for fresh entropy.

    Attributes:
        logits: ``[task, depth, action]``; start at 0.
        baseline: running mean of the returns, ``[task, depth]``; starts at 0.

    Raises:
        UserError: a parameter is out of range.
    """

    tables: ClassVar[tuple[str, ...]] = ("logits", "baseline")
    logits: Float[Tensor, "task depth action"]
    baseline: Float[Tensor, "task depth"]

    def __init__(
        self,
        spec: GameSpec,
        *,
        policy_rate: float = 2.0,
        baseline_rate: float = 0.05,
        entropy: float = 0.01,
        gamma: float = 1.0,
        seed: int | None = None,
    ) -> None:
        super().__init__(spec, seed)
        self._policy_rate = check_number("policy_rate", policy_rate)
        self._baseline_rate = check_number("baseline_rate", baseline_rate, 0.0, 1.0)
        self._entropy = check_number("entropy", entropy)
        self._gamma = check_number("gamma", gamma, 0.0, 1.0)
        self.logits = torch.zeros(spec.n_tasks, spec.n_depths, spec.n_actions, device=spec.device)
        self.baseline = torch.zeros(spec.n_tasks, spec.n_depths, device=spec.device)

    def policy(self, observation: Observation) -> Float[Tensor, "episode task action"]:
        """Softmax over the logits of the legal actions."""
        return masked_softmax(self.logits[:, observation.depth], observation.mask)

    def expected_return(self, observation: Observation) -> Float[Tensor, "episode task"]:
        """The baseline."""
        return self.baseline[:, observation.depth].expand(observation.mask.shape[:2])

    @torch.no_grad()
    def learn(self, trajectory: Trajectory) -> Mapping[str, Tensor]:
        """Takes one step; returns the mean return."""
        # [depth, episode, task, ...] -> [episode, task, depth, ...], as the tables
        targets = self._targets(trajectory).movedim(0, 2).to(self.logits.dtype)
        actions = trajectory.actions.movedim(0, 2).long().unsqueeze(-1)
        active = trajectory.active.movedim(0, 2)
        policy = masked_softmax(self.logits, trajectory.masks.movedim(0, 2))

        surprise = torch.where(active, targets - self.baseline, 0.0)
        advantage = surprise.unsqueeze(-1)
        gradient = (-advantage * policy).scatter_add(-1, actions, advantage)
        if self._entropy:
            parts = torch.special.entr(policy)
            bonus = parts - policy * parts.sum(-1, keepdim=True)
            gradient = gradient + self._entropy * bonus
        gradient = torch.where(active.unsqueeze(-1), gradient, 0.0).mean(0)

        self.logits = self.logits + self._policy_rate * gradient
        mean_surprise = surprise.sum(0) / active.sum(0).clamp(min=1)
        self.baseline = self.baseline + self._baseline_rate * mean_surprise
        return {"return": trajectory.returns(self._gamma)[0].mean()}

    def _targets(self, trajectory: Trajectory) -> Float[Tensor, "depth episode task"]:
        """What the baseline predicts."""
        return trajectory.returns(self._gamma)
