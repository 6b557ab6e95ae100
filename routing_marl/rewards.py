"""What agents are paid: correctness at the end, collaboration along the way (paper, section 3.2).

The authors' code applies rho twice and shares one history between all layers; here it is applied once, and each
depth has its own.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from routing_marl.errors import UserError


def final_reward(correct: Bool[Tensor, "episode task instance"]) -> Float[Tensor, "episode task"]:
    """+1 for a right prediction, -1 for a wrong one, averaged over the instances of the decision."""
    return 2 * correct.float().mean(-1) - 1


class Agreement:
    """How probable an action is to those agents that took it lately: the collaboration reward, but for ``rho``.

    The agreement of action ``a`` at a depth is the mean, over the agents ``j`` that took ``a`` there in the last
    ``history`` episodes, of the probability that ``j`` gives to ``a``. That probability is *empirical* (the
    exponential average of ``j``'s own choices, of decay ``1 - 1 / history``), unless agents report theirs.

    An action counts from the episode in which it is taken, so the agent that takes it is one of those that took it,
    and nothing is divided by zero. PASS and STOP are actions like the others.
    """

    def __init__(self, legal: Bool[Tensor, "depth action"], n_tasks: int, history: int) -> None:
        if history < 1:
            raise UserError(f"history is {history}; it is a number of episodes, at least 1")
        depths, actions = legal.shape
        self._decay = 1 - 1 / history
        self._history = history
        self._choices = torch.zeros(depths, n_tasks, actions, device=legal.device)
        # The record at which the agent last took the action: the average alone does not tell, habits fade slowly.
        self._last = torch.full((depths, n_tasks, actions), -history, dtype=torch.int32, device=legal.device)
        self._recorded = [0] * depths

    def record(
        self,
        depth: int,
        action: Int[Tensor, "episode task"],
        active: Bool[Tensor, "episode task"] | None = None,
    ) -> None:
        """Takes the choices of one batch of parallel episodes into the averages (as their mean)."""
        self._recorded[depth] += 1
        now, taken = self._recorded[depth], action.T
        share = torch.full(taken.shape, (1 - self._decay) / len(action), device=action.device)
        # Tables grow with tasks x actions: but for the decay, only entries of actions that were taken are touched.
        if active is None:
            self._last[depth].scatter_(1, taken, now)
        else:
            share = share * active.T
            since = torch.where(active.T, now, -self._history).int()
            self._last[depth].scatter_reduce_(1, taken, since, "amax")
        self._choices[depth].mul_(self._decay).scatter_add_(1, taken, share)

    def __call__(
        self,
        depth: int,
        action: Int[Tensor, "episode task"],
        reported: Float[Tensor, "episode task action"] | None = None,
    ) -> Float[Tensor, "episode task"]:
        """The agreement of each action, in [0, 1]."""
        took = (self._last[depth] > self._recorded[depth] - self._history).float()
        # The average starts at zero: divided by the weight of the episodes so far, it is a distribution at once.
        weight = 1.0 if reported is not None else 1 - self._decay ** self._recorded[depth]
        probability = self._choices[depth] if reported is None else reported.mean(0)
        agreement = (took * probability).sum(0) / took.sum(0).clamp(min=1).mul_(weight or 1.0)
        return agreement[action]

    def state_dict(self) -> dict[str, Any]:
        """The running averages."""
        return {
            "choices": self._choices.clone(),
            "last": self._last.clone(),
            "recorded": list(self._recorded),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the running averages."""
        self._choices.copy_(state["choices"])
        self._last.copy_(state["last"])
        self._recorded = list(state["recorded"])
