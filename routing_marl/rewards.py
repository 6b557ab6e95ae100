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
        # Episodes since the agent last took the action: the average alone does not tell, habits fade slowly.
        self._since = torch.full((depths, n_tasks, actions), history, device=legal.device)
        self._recorded = [0] * depths

    def record(
        self,
        depth: int,
        action: Int[Tensor, "episode task"],
        active: Bool[Tensor, "episode task"] | None = None,
    ) -> None:
        """Takes the choices of one batch of parallel episodes into the averages (as their mean)."""
        one_hot = torch.zeros(*action.shape, self._choices.shape[-1], device=action.device)
        one_hot.scatter_(-1, action[..., None], 1.0 if active is None else active[..., None].float())
        share = one_hot.mean(0)
        self._choices[depth].lerp_(share, 1 - self._decay)
        self._since[depth].add_(1).masked_fill_(share > 0, 0)
        self._recorded[depth] += 1

    def __call__(
        self,
        depth: int,
        action: Int[Tensor, "episode task"],
        reported: Float[Tensor, "episode task action"] | None = None,
    ) -> Float[Tensor, "episode task"]:
        """The agreement of each action, in [0, 1]."""
        choices = self._choices[depth]
        took = (self._since[depth] < self._history).float()
        # The average starts at zero: divided by the weight of the episodes so far, it is a distribution at once.
        weight = 1 - self._decay ** self._recorded[depth]
        probability = choices / (weight or 1.0) if reported is None else reported.mean(0)
        agreement = (took * probability).sum(0) / took.sum(0).clamp(min=1)
        return agreement[action]

    def state_dict(self) -> dict[str, Any]:
        """The running averages."""
        return {
            "choices": self._choices.clone(),
            "since": self._since.clone(),
            "recorded": list(self._recorded),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the running averages."""
        self._choices.copy_(state["choices"])
        self._since.copy_(state["since"])
        self._recorded = list(state["recorded"])
