"""Advantage actor-critic (A2C; Mnih et al. 2016, arXiv 1602.01783), tabular over (task, depth)."""

from jaxtyping import Float
from torch import Tensor

from routing_marl.agents.checks import check_number
from routing_marl.agents.policy_gradient import PolicyGradient
from routing_marl.agents.targets import lambda_targets
from routing_marl.protocol import GameSpec, Trajectory


class ActorCritic(PolicyGradient):
    """Policy gradient whose baseline is a critic that also says what the rest of a route is worth.

    The advantage is ``r + gamma ((1 - lambda) V(s') + lambda target') - V(s)`` instead of the return minus the
    baseline; with a ``trace_decay`` (lambda) of 1 it is :class:`~routing_marl.agents.policy_gradient.PolicyGradient`.
    The table does not know which actions led to a depth: at 0, early depths would learn of collaboration only.

    Args:
        spec: the game.
        policy_rate: step size of the logits.
        baseline_rate: step size of the critic.
        entropy: weight of the entropy bonus.
        gamma: discount of later rewards.
        trace_decay: how much of the advantage is what happened later, and not what the critic expected.
        seed: of the sampled actions; None for fresh entropy.

    Attributes:
        baseline: the critic, V, ``[task, depth]``; starts at 0.

    Raises:
        UserError: a parameter is out of range.
    """

    def __init__(
        self,
        spec: GameSpec,
        *,
        policy_rate: float = 2.0,
        baseline_rate: float = 0.05,
        entropy: float = 0.01,
        gamma: float = 1.0,
        trace_decay: float = 0.9,
        seed: int | None = None,
    ) -> None:
        super().__init__(
            spec, policy_rate=policy_rate, baseline_rate=baseline_rate, entropy=entropy, gamma=gamma, seed=seed
        )
        self._trace_decay = check_number("trace_decay", trace_decay, 0.0, 1.0)

    def _targets(self, trajectory: Trajectory) -> Float[Tensor, "depth episode task"]:
        hoped = self.baseline.T[:, None].expand(trajectory.rewards.shape)
        return lambda_targets(trajectory, hoped, self._gamma, self._trace_decay)
