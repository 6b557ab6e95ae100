"""The step of WPL: where one decision moves a policy, before anybody stores it.

Rosenbaum, Klinger & Riemer 2018 (arXiv 1711.01239), Algorithm 2; Abdallah & Lesser (AAMAS 2006; JAIR 33, 2008).
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from routing_marl.agents.checks import check_choice, check_number
from routing_marl.agents.policies import clip_projection, euclidean_projection, restrict
from routing_marl.protocol import GameSpec

PROJECTIONS = {"clip": clip_projection, "euclidean": euclidean_projection}

Table = Float[Tensor, "*#batch action"]
One = Float[Tensor, "*#batch 1"]


class WPLRule:
    """Moves a policy by ``policy_rate Delta w(pi, sign Delta)``, and projects it back.

    Args:
        spec: the game.
        weighting: ``"paper"`` (``w = pi`` for gains, ``1 - pi`` for losses) or ``"original"`` (the opposite).
        advantage: ``"sampled"`` (of the action taken) or ``"averaged"`` (of all actions legal at the decision).
        projection: ``"clip"`` or ``"euclidean"``.
        floor: least probability of a legal action.
        policy_rate: step size.

    Raises:
        UserError: a parameter is out of range.
    """

    def __init__(
        self, spec: GameSpec, weighting: str, advantage: str, projection: str, floor: float, policy_rate: float
    ) -> None:
        self._paper = check_choice("weighting", weighting, ("paper", "original")) == "paper"
        self._sampled = check_choice("advantage", advantage, ("sampled", "averaged")) == "sampled"
        self._project = PROJECTIONS[check_choice("projection", projection, tuple(PROJECTIONS))]
        self._floor = check_number("floor", floor, 0.0, 1.0 / int(spec.legal.sum(-1).max()))
        self._policy_rate = check_number("policy_rate", policy_rate)

    def projected(self, values: Table, legal: Bool[Tensor, "*#batch action"]) -> Table:
        """The policy that these values stand for."""
        return self._project(values, legal, self._floor)

    def moved(
        self,
        policy: Table,
        expected: Table,
        action: Int[Tensor, "*#batch 1"],
        value: One,
        mask: Bool[Tensor, "*#batch action"],
    ) -> Table:
        """The policy after the step, not projected yet.

        Args:
            policy: the policy before.
            expected: Rhat of every action, with this decision learned already.
            action: what was done.
            value: its return.
            mask: the actions legal at the decision.
        """
        if self._sampled:
            delta = value - expected.gather(-1, action)
            return policy.scatter_add(-1, action, self._weighted(delta, policy.gather(-1, action)))
        mean = (restrict(policy, mask) * expected).sum(-1, keepdim=True)
        return policy + self._weighted(torch.where(mask, expected - mean, 0.0), policy)

    def _weighted(self, delta: Tensor, probability: Tensor) -> Tensor:
        by_probability = delta > 0 if self._paper else delta <= 0
        weight = torch.where(by_probability, probability, 1.0 - probability)
        return self._policy_rate * delta * weight
