"""WPL with function approximation, which Rosenbaum et al. 2018 (arXiv 1711.01239) left open.

"We have not yet modified WPL to work with function approximators" (section 3.2). WPL is defined on the simplex: it adds
to a probability and projects. A network's policy is a softmax, so it is given the projected result as a target.
"""

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from routing_marl.agents.base import SamplingAgent
from routing_marl.agents.checks import check_number
from routing_marl.agents.networks import Approximator
from routing_marl.agents.policies import masked_log_softmax, masked_softmax
from routing_marl.agents.wpl_rule import WPLRule
from routing_marl.protocol import GameSpec, Observation, Trajectory


class WPLNetwork(SamplingAgent):
    """Moves a policy network towards where WPL would have moved its policy.

    For every decision, with the network's policy ``pi`` and its expected returns ``Rhat``, a call of ``learn`` makes

    - a *target*: what WPL's step would make of ``pi`` (:class:`~routing_marl.agents.wpl_rule.WPLRule`), projected onto
      the actions legal at the decision, from ``Rhat`` moved towards the return by ``return_rate``;
    - one step of Adam down ``- sum_a target_a log pi_a + 1/2 (return - Rhat_a)**2``, summed over all active decisions
      and divided by the number of episodes.

    What it is: the gradient in the logits is ``pi - target``, so each step has the direction, and relative to other
    decisions the size, of WPL's own; held fixed, the target is reached. What it is not: the table's algorithm. One
    step goes some of the way only, Adam decides how far (so ``policy_rate`` hardly matters while no projection cuts it
    off, and ``network_rate`` does); one agent's decisions pull at shared weights; parallel episodes are learned at
    once; and a softmax gives no action a probability of zero, so that none is lost for ever. ``Rhat`` is learned by
    the same optimizer and not by ``return_rate``, which only enters the target. None of WPL's convergence results
    (Abdallah & Lesser 2008) carry over.

    Args:
        spec: the game; its features, where it has them, are what the networks see beside task and depth.
        weighting: ``"paper"`` or ``"original"``.
        advantage: ``"sampled"`` (the paper's) or ``"averaged"``.
        projection: ``"clip"`` (the paper's) or ``"euclidean"``.
        floor: least probability of a legal action in a target.
        policy_rate: step size of WPL.
        return_rate: weight of the newest return in ``Rhat``.
        share_network: one network for all agents, instead of one each.
        task_label: whether a shared network sees the task.
        hidden_units: width of the hidden layer; 0 for a linear function.
        start_scale: about how large the first outputs are: how far a new agent is from indifference.
        network_rate: learning rate (Adam).
        gamma: discount of later rewards.
        seed: of weights and sampled actions; None for fresh entropy.

    Attributes:
        function: the networks; their outputs are the logits, then ``Rhat``.

    Raises:
        UserError: a parameter is out of range.
    """

    parts: ClassVar[tuple[str, ...]] = ("function",)

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
        share_network: bool = False,
        task_label: bool = True,
        hidden_units: int = 64,
        start_scale: float = 10.0,
        network_rate: float = 0.003,
        gamma: float = 1.0,
        seed: int | None = None,
    ) -> None:
        super().__init__(spec, seed)
        self._rule = WPLRule(spec, weighting, advantage, projection, floor, policy_rate)
        self._return_rate = check_number("return_rate", return_rate, 0.0, 1.0)
        self._gamma = check_number("gamma", gamma, 0.0, 1.0)
        self.function = Approximator(
            spec,
            2 * spec.n_actions,
            share_network=share_network,
            task_label=task_label,
            hidden_units=hidden_units,
            start_scale=start_scale,
            network_rate=network_rate,
            seed=seed,
        )

    @torch.no_grad()
    def policy(self, observation: Observation) -> Float[Tensor, "episode task action"]:
        """Softmax over the logits of the legal actions."""
        return masked_softmax(self.function.at(observation)[..., : self.spec.n_actions], observation.mask)

    @torch.no_grad()
    def expected_return(self, observation: Observation) -> Float[Tensor, "episode task"]:
        """The mean of ``Rhat`` under the policy."""
        logits, expected = self.function.at(observation).chunk(2, dim=-1)
        return (masked_softmax(logits, observation.mask) * expected).sum(-1)

    @torch.no_grad()
    def targets(
        self,
        trajectory: Trajectory,
        policy: Float[Tensor, "depth episode task action"],
        expected: Float[Tensor, "depth episode task action"],
    ) -> Float[Tensor, "depth episode task action"]:
        """Where WPL's step moves each decision's policy, projected."""
        action = trajectory.actions.long().unsqueeze(-1)
        value = trajectory.returns(self._gamma).to(policy.dtype).unsqueeze(-1)
        learned = expected.gather(-1, action).lerp(value, self._return_rate)
        moved = self._rule.moved(policy, expected.scatter(-1, action, learned), action, value, trajectory.masks)
        return self._rule.projected(moved, trajectory.masks)

    def learn(self, trajectory: Trajectory) -> Mapping[str, Tensor]:
        """Takes one step; returns the mean return."""
        outputs, n_actions = self.function.over(trajectory), self.spec.n_actions
        logits, expected = outputs[..., :n_actions], outputs[..., n_actions:]
        returns = trajectory.returns(self._gamma)
        with torch.enable_grad():
            log_policy = masked_log_softmax(logits, trajectory.masks)
            target = self.targets(trajectory, log_policy.detach().exp(), expected.detach())
            taken = expected.gather(-1, trajectory.actions.long().unsqueeze(-1)).squeeze(-1)
            loss = (returns - taken).square() / 2 - (target * log_policy).sum(-1)
            loss = torch.where(trajectory.active, loss, 0.0)
            self.function.descend(loss.sum() / loss.shape[1])
        return {"return": returns[0].mean()}
