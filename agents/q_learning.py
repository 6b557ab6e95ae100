"""Q-learning (Watkins & Dayan 1992), tabular over (task, depth): the independent learner of the field.

Rosenbaum et al. 2018 (arXiv 1711.01239), section 3.2, compare it with WPL as a router.
"""

from collections.abc import Mapping
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from routing_marl.agents.checks import check_number
from routing_marl.agents.epsilon_greedy import EpsilonGreedyAgent
from routing_marl.protocol import GameSpec, Observation, Trajectory


class QLearning(EpsilonGreedyAgent):
    """Learns ``Q(s, a) <- Q + alpha (r + gamma max_legal Q(s', .) - Q)``; explores epsilon-greedily.

    Parallel episodes are learned one after the other, each *from its last depth to its first*: a depth sees
    the new values of the next already, so that rewards reach the first decision in one episode. An agent that
    stopped has no next decision, and what it is paid later counts, discounted, for its last one.

    The table doesn't know which actions led to a depth, so ``max_legal Q(s', .)`` is the same whatever was done
    before it: where rewards come late, one-step targets hardly teach the early depths. With a ``trace_decay`` of
    lambda the target is ``r + gamma ((1 - lambda) max_legal Q(s', .) + lambda target')``, with the target of the
    next decision (Peng & Williams 1996); 1 learns from whole returns.

    Args:
        spec: the game.
        alpha: step size.
        gamma: discount of later rewards.
        trace_decay: how much of the target is what happened later, and not what was expected; 0 is the formula.
        epsilon_start: probability of a uniform action at first ...
        epsilon_end: ... and from the ``epsilon_steps``-th call of ``learn`` on; linear between.
        epsilon_steps: length of that schedule, in calls of ``learn``.
        seed: of the sampled actions; None for fresh entropy.

    Attributes:
        values: Q, ``[task, depth, action]``; starts at 0.
        batches: number of calls of ``learn`` so far.

    Raises:
        UserError: a parameter is out of range.
    """

    tables: ClassVar[tuple[str, ...]] = ("values", "batches")
    values: Float[Tensor, "task depth action"]

    def __init__(
        self,
        spec: GameSpec,
        *,
        alpha: float = 0.1,
        gamma: float = 1.0,
        trace_decay: float = 0.0,
        epsilon_start: float = 1.0,
        epsilon_end: float = 0.05,
        epsilon_steps: int = 300,
        seed: int | None = None,
    ) -> None:
        super().__init__(spec, epsilon_start, epsilon_end, epsilon_steps, seed)
        self._alpha = check_number("alpha", alpha, 0.0, 1.0)
        self._gamma = check_number("gamma", gamma, 0.0, 1.0)
        self._trace_decay = check_number("trace_decay", trace_decay, 0.0, 1.0)
        self.values = torch.zeros(spec.n_tasks, spec.n_depths, spec.n_actions, device=spec.device)

    def values_at(self, observation: Observation) -> Float[Tensor, "1 task action"]:
        """The table's rows of this depth."""
        return self.values[None, :, observation.depth]

    @torch.no_grad()
    def learn(self, trajectory: Trajectory) -> Mapping[str, Tensor]:
        """Learns from every active decision.

        Returns the mean return, and epsilon.
        """
        rewards = trajectory.rewards.to(self.values.dtype).unsqueeze(-1)
        actions = trajectory.actions.long().unsqueeze(-1)
        active = trajectory.active.unsqueeze(-1)
        # One [task, action] table per depth, taken apart once and put together once.
        tables = list(self.values.unbind(1))
        for episode in range(rewards.shape[1]):
            after: Tensor | None = None
            for depth in reversed(range(len(tables))):
                table, deciding = tables[depth], active[depth, episode]
                paid = rewards[depth, episode]
                target = paid if after is None else paid + self._gamma * after
                value = table.gather(-1, actions[depth, episode])
                new = torch.where(deciding, value.lerp(target, self._alpha), value)
                table = tables[depth] = table.scatter(-1, actions[depth, episode], new)
                if depth:
                    hoped = self._hoped(table, trajectory.masks[depth, episode], actions[depth, episode])
                    hoped = hoped.lerp(target, self._trace_decay) if self._trace_decay else hoped
                    after = torch.where(deciding, hoped, target)
        self.values = torch.stack(tables, 1)
        self.batches = self.batches + 1
        return {"return": trajectory.returns(self._gamma)[0].mean(), "epsilon": self.epsilon}

    def _hoped(
        self, table: Float[Tensor, "task action"], mask: Bool[Tensor, "task action"], action: Int[Tensor, "task 1"]
    ) -> Float[Tensor, "task 1"]:
        """What a decision is worth to the one before it."""
        return torch.where(mask, table, -torch.inf).amax(-1, keepdim=True)
