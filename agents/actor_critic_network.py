"""Policy gradient and actor-critic with networks over the observation.

REINFORCE with a learned state-value baseline (Williams 1992; Sutton & Barto 2018, section 13.4), and A2C (Mnih et al.
2016, arXiv 1602.01783): the same but for what the critic is used for.
"""

from collections.abc import Mapping
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from routing_marl.agents.base import SamplingAgent
from routing_marl.agents.checks import check_number
from routing_marl.agents.networks import Approximator
from routing_marl.agents.policies import masked_log_softmax, masked_softmax
from routing_marl.agents.targets import lambda_targets
from routing_marl.protocol import GameSpec, Observation, Trajectory


class ActorCriticNetwork(SamplingAgent):
    """Ascends ``(target - V) log pi(a) + entropy H(pi) - 1/2 (target - V)**2``, its first factor held fixed.

    Policy and critic are outputs of one network. One step of Adam per call of ``learn``, along the sum over all active
    decisions, divided by the number of episodes. The target is ``r + gamma ((1 - lambda) V(s') + lambda target')``.

    Args:
        spec: the game; its features, where it has them, are what the networks see beside task and depth.
        share_network: one network for all agents, instead of one each.
        task_label: whether a shared network sees the task.
        hidden_units: width of the hidden layer; 0 for a linear function.
        start_scale: about how large the first outputs are: how far a new agent is from indifference.
        network_rate: learning rate (Adam).
        entropy: weight of the entropy bonus.
        gamma: discount of later rewards.
        trace_decay: lambda: how much of the target is what happened later, and not what the critic expected.
        seed: of weights and sampled actions; None for fresh entropy.

    Attributes:
        function: the networks; their outputs are the logits, then V.

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
        start_scale: float = 10.0,
        network_rate: float = 0.003,
        entropy: float = 0.01,
        gamma: float = 1.0,
        trace_decay: float = 0.9,
        seed: int | None = None,
    ) -> None:
        super().__init__(spec, seed)
        self._entropy = check_number("entropy", entropy)
        self._gamma = check_number("gamma", gamma, 0.0, 1.0)
        self._trace_decay = check_number("trace_decay", trace_decay, 0.0, 1.0)
        self.function = Approximator(
            spec,
            spec.n_actions + 1,
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
        return masked_softmax(self.function.at(observation)[..., :-1], observation.mask)

    @torch.no_grad()
    def expected_return(self, observation: Observation) -> Float[Tensor, "episode task"]:
        """The critic."""
        return self.function.at(observation)[..., -1]

    def learn(self, trajectory: Trajectory) -> Mapping[str, Tensor]:
        """Takes one step; returns the mean return, and the mean entropy of the decisions."""
        outputs = self.function.over(trajectory)
        with torch.enable_grad():
            log_policy = masked_log_softmax(outputs[..., :-1], trajectory.masks)
            value = outputs[..., -1]
            surprise = lambda_targets(trajectory, value.detach(), self._gamma, self._trace_decay) - value
            taken = log_policy.gather(-1, trajectory.actions.long().unsqueeze(-1)).squeeze(-1)
            entropy = -(log_policy.exp() * log_policy).sum(-1)
            gain = surprise.detach() * taken + self._entropy * entropy - surprise.square() / 2
            gain = torch.where(trajectory.active, gain, 0.0)
            self.function.descend(-gain.sum() / gain.shape[1])
        return {"return": trajectory.returns(self._gamma)[0].mean(), "entropy": entropy.detach().mean()}


class PolicyGradientNetwork(ActorCriticNetwork):
    """REINFORCE: an :class:`ActorCriticNetwork` whose critic is a baseline only (a ``trace_decay`` of 1).

    Args:
        spec: the game; its features, where it has them, are what the networks see beside task and depth.
        share_network: one network for all agents, instead of one each.
        task_label: whether a shared network sees the task.
        hidden_units: width of the hidden layer; 0 for a linear function.
        start_scale: about how large the first outputs are: how far a new agent is from indifference.
        network_rate: learning rate (Adam).
        entropy: weight of the entropy bonus.
        gamma: discount of later rewards.
        seed: of weights and sampled actions; None for fresh entropy.

    Raises:
        UserError: a parameter is out of range.
    """

    def __init__(
        self,
        spec: GameSpec,
        *,
        share_network: bool = False,
        task_label: bool = True,
        hidden_units: int = 64,
        start_scale: float = 10.0,
        network_rate: float = 0.003,
        entropy: float = 0.01,
        gamma: float = 1.0,
        seed: int | None = None,
    ) -> None:
        super().__init__(
            spec,
            share_network=share_network,
            task_label=task_label,
            hidden_units=hidden_units,
            start_scale=start_scale,
            network_rate=network_rate,
            entropy=entropy,
            gamma=gamma,
            trace_decay=1.0,
            seed=seed,
        )
