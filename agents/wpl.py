"""Weighted policy learner (WPL), tabular over (task, depth).

The default is the form of Rosenbaum, Klinger & Riemer 2018 (arXiv 1711.01239), Algorithm 2. Abdallah & Lesser
(AAMAS 2006; JAIR 33, 2008) define the weighting the other way round, and analyse the averaged advantage.
"""

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from routing_marl.agents.base import SamplingAgent
from routing_marl.agents.checks import check_number
from routing_marl.agents.policies import restrict, uniform
from routing_marl.agents.wpl_rule import WPLRule
from routing_marl.errors import UserError
from routing_marl.protocol import GameSpec, Observation, Trajectory


class WPL(SamplingAgent):
    r"""A gradient learner whose step depends on how probable the action already is.

    For every decision, with action ``a`` and return ``R``, and parallel episodes one after the other::

        Rhat_a <- (1 - return_rate) Rhat_a + return_rate R
        Delta  <- R - Rhat_a                                  "sampled": of the action taken only
        Delta_b <- Rhat_b - sum_c pi_c Rhat_c                 "averaged": of all actions legal at the decision
        pi     <- projection(pi + policy_rate Delta w(pi, sign Delta))

    where the sum runs over the policy restricted to the actions legal at the decision. ``w`` is ``pi`` for
    gains and ``1 - pi`` for losses (``"paper"``: commits fast), or the opposite (``"original"``: slows down
    near the boundary, and so spirals into mixed equilibria).

    Once ``Rhat`` has converged, the mean of the sampled ``Delta`` is zero for *every* action, good or bad:
    with ``"sampled"``, only its transient tells actions apart; with ``"averaged"``, their values do.

    Args:
        spec: the game.
        weighting: ``"paper"`` or ``"original"``.
        advantage: ``"sampled"`` (the paper's) or ``"averaged"``.
        projection: ``"clip"`` (the paper's) or ``"euclidean"``.
        floor: least probability of an action that is legal in ``spec``; at 0 (the paper's), zero is absorbing
            under the ``"paper"`` weighting.
        policy_rate: step size of the policy.
        return_rate: weight of the newest return in ``Rhat``.
        gamma: discount of later rewards.
        seed: of the sampled actions; None for fresh entropy.
        initial_policy: ``[task, depth, action]``; uniform over the legal actions if None.

    Attributes:
        probabilities: the policy, ``[task, depth, action]``.
        expected: the running estimate ``Rhat`` of every action's return, same shape; starts at 0.

    Raises:
        UserError: a parameter is out of range.
    """

    tables: ClassVar[tuple[str, ...]] = ("probabilities", "expected")
    probabilities: Float[Tensor, "task depth action"]
    expected: Float[Tensor, "task depth action"]

    def __init__(
        self,
        spec: GameSpec,
        *,
        weighting: Literal["paper", "original"] = "paper",
        advantage: Literal["sampled", "averaged"] = "sampled",
        projection: Literal["clip", "euclidean"] = "clip",
        floor: float = 0.0,
        policy_rate: float = 0.3,
        return_rate: float = 0.01,
        gamma: float = 1.0,
        seed: int | None = None,
        initial_policy: Float[Tensor, "task depth action"] | None = None,
    ) -> None:
        super().__init__(spec, seed)
        self._rule = WPLRule(spec, weighting, advantage, projection, floor, policy_rate)
        self._return_rate = check_number("return_rate", return_rate, 0.0, 1.0)
        self._gamma = check_number("gamma", gamma, 0.0, 1.0)
        start = uniform(spec.legal).repeat(spec.n_tasks, 1, 1)
        if initial_policy is not None:
            start = self._rule.projected(_check_policy(spec, initial_policy).to(start), spec.legal)
        self.probabilities = start
        self.expected = torch.zeros_like(start)

    def policy(self, observation: Observation) -> Float[Tensor, "episode task action"]:
        """The policy restricted to the legal actions; uniform over them where it gives them no mass."""
        policy = self.probabilities[:, observation.depth]
        # The table is restricted to what is legal in the spec.
        return policy.expand_as(observation.mask) if self.spec.fixed_masks else restrict(policy, observation.mask)

    def expected_return(self, observation: Observation) -> Float[Tensor, "episode task"]:
        """The mean of ``Rhat`` under the policy."""
        return (self.policy(observation) * self.expected[:, observation.depth]).sum(-1)

    @torch.no_grad()
    def learn(self, trajectory: Trajectory) -> Mapping[str, Tensor]:
        """Learns from every active decision; returns the mean return."""
        returns = trajectory.returns(self._gamma).to(self.probabilities.dtype)
        for episode in range(returns.shape[1]):
            self._learn_episode(
                trajectory.actions[:, episode].T.long().unsqueeze(-1),
                returns[:, episode].T.unsqueeze(-1),
                trajectory.masks[:, episode].transpose(0, 1),
                trajectory.active[:, episode].T.unsqueeze(-1),
            )
        return {"return": returns[0].mean()}

    def _learn_episode(
        self,
        action: Int[Tensor, "task depth 1"],
        value: Float[Tensor, "task depth 1"],
        mask: Bool[Tensor, "task depth action"],
        active: Bool[Tensor, "task depth 1"],
    ) -> None:
        before = self.expected.gather(-1, action)
        after = before.lerp(value, self._return_rate)
        if not self.spec.fixed_masks:
            after = torch.where(active, after, before)
        self.expected = self.expected.scatter(-1, action, after)
        moved = self._rule.moved(self.probabilities, self.expected, action, value, mask)
        projected = self._rule.projected(moved, self.spec.legal)
        self.probabilities = projected if self.spec.fixed_masks else torch.where(active, projected, self.probabilities)


def _check_policy(spec: GameSpec, policy: Float[Tensor, "task depth action"]) -> Float[Tensor, "task depth action"]:
    wanted = (spec.n_tasks, spec.n_depths, spec.n_actions)
    if policy.shape != wanted:
        raise UserError(f"initial_policy has shape {tuple(policy.shape)}; this game needs {wanted}")
    policy = policy.to(spec.device)
    sums = policy.sum(-1)
    illegal = (policy < 0) | ((policy > 0) & ~spec.legal)
    if bool(illegal.any()) or not torch.allclose(sums, torch.ones_like(sums), atol=1e-4):
        raise UserError("initial_policy is no policy; it must be at least 0, sum to 1, and be 0 where illegal")
    return policy
