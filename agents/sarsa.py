"""SARSA (Rummery & Niranjan 1994), tabular over (task, depth): Q-learning's sibling that learns on its own policy."""

from jaxtyping import Bool, Float, Int
from torch import Tensor

from routing_marl.agents.q_learning import QLearning
from routing_marl.protocol import GameSpec


class SARSA(QLearning):
    """Learns ``Q(s, a) <- Q + alpha (r + gamma Q(s', a') - Q)`` with the action ``a'`` that was taken next.

    As :class:`~routing_marl.agents.q_learning.QLearning` in all else, traces included: SARSA(lambda). While the next
    action is a best one, the two are the same. The table does not know which actions led to a depth, so with a
    ``trace_decay`` of 0 the early depths hardly learn from what comes late; hence the default.

    Args:
        spec: the game.
        alpha: step size.
        gamma: discount of later rewards.
        trace_decay: how much of the target is what happened later, and not what was expected; 0 is the formula.
        epsilon_start: probability of a uniform action at first ...
        epsilon_end: ... and from the ``epsilon_steps``-th call of ``learn`` on; linear between.
        epsilon_steps: length of that schedule, in calls of ``learn``.
        seed: of the sampled actions; None for fresh entropy.

    Raises:
        UserError: a parameter is out of range.
    """

    def __init__(
        self,
        spec: GameSpec,
        *,
        alpha: float = 0.1,
        gamma: float = 1.0,
        trace_decay: float = 0.9,
        epsilon_start: float = 1.0,
        epsilon_end: float = 0.05,
        epsilon_steps: int = 300,
        seed: int | None = None,
    ) -> None:
        super().__init__(
            spec,
            alpha=alpha,
            gamma=gamma,
            trace_decay=trace_decay,
            epsilon_start=epsilon_start,
            epsilon_end=epsilon_end,
            epsilon_steps=epsilon_steps,
            seed=seed,
        )

    def _hoped(
        self, table: Float[Tensor, "task action"], mask: Bool[Tensor, "task action"], action: Int[Tensor, "task 1"]
    ) -> Float[Tensor, "task 1"]:
        return table.gather(-1, action)
