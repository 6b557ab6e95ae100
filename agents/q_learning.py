"""Q-learning (Watkins & Dayan 1992), tabular over (task, depth): the independent learner of the field.

Rosenbaum et al. 2018 (arXiv 1711.01239), section 3.2, compare it with WPL as a router.
"""

from collections.abc import Mapping
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from routing_marl.agents.checks import check_count, check_number
from routing_marl.agents.policies import epsilon_greedy, greedy_action
from routing_marl.agents.tabular import TabularAgent
from routing_marl.protocol import GameSpec, Observation, Trajectory


class QLearning(TabularAgent):
    """Learns ``Q(s, a) <- Q + alpha (r + gamma max_legal Q(s', .) - Q)``; explores epsilon-greedily.

    Parallel episodes are learned one after the other, each *from its last depth to its first*: a depth sees
    the new values of the next already, so that rewards reach the first decision in one episode. An agent that
    stopped has no next decision, and what it is paid later counts, discounted, for its last one.

    The table doesn't know which actions led to a depth, so ``max_legal Q(s', .)`` is the same whatever was done
    before it: where rewards come late, one-step targets hardly teach the early depths. With a ``trace_decay`` of
    lambda the target is ``r + gamma ((1 - lambda) max_legal Q(s', .) + lambda target')``, with the target of the
    next decision (Peng & Williams 1996); 1 learns from whole returns.

    Exploration shares the greedy probability among equal best actions, so that a new table prefers none; the
    greedy action itself is the best one of the lowest index.

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
    batches: Int[Tensor, ""]

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
        super().__init__(spec, seed)
        self._alpha = check_number("alpha", alpha, 0.0, 1.0)
        self._gamma = check_number("gamma", gamma, 0.0, 1.0)
        self._trace_decay = check_number("trace_decay", trace_decay, 0.0, 1.0)
        self._start = check_number("epsilon_start", epsilon_start, 0.0, 1.0)
        self._end = check_number("epsilon_end", epsilon_end, 0.0, 1.0)
        self._steps = check_count("epsilon_steps", epsilon_steps)
        self.values = torch.zeros(spec.n_tasks, spec.n_depths, spec.n_actions, device=spec.device)
        # A tensor, as all that changes: the schedule costs no copy between host and device.
        self.batches = torch.zeros((), dtype=torch.long, device=spec.device)

    @property
    def epsilon(self) -> Float[Tensor, ""]:
        """The present probability of a uniform action."""
        progress = (self.batches / self._steps).clamp(max=1.0)
        return self._start + (self._end - self._start) * progress

    def policy(self, observation: Observation) -> Float[Tensor, "episode task action"]:
        """The epsilon-greedy probabilities, exploration included."""
        return epsilon_greedy(self.values[:, observation.depth], observation.mask, self.epsilon)

    def expected_return(self, observation: Observation) -> Float[Tensor, "episode task"]:
        """The mean of Q under the policy, exploration included."""
        return (self.policy(observation) * self.values[:, observation.depth]).sum(-1)

    def reported(self, observation: Observation) -> Float[Tensor, "episode task action"]:
        """Q clipped to [0, 1], zero for illegal actions: the agreement that a Q-learner reports."""
        return torch.where(observation.mask, self.values[:, observation.depth].clamp(0.0, 1.0), 0.0)

    @torch.no_grad()
    def act(self, observation: Observation, *, greedy: bool = False) -> Int[Tensor, "episode task"]:
        """Acts epsilon-greedily, or takes the action of highest Q (of equals the lowest) where ``greedy``."""
        if greedy:
            return greedy_action(self.values[:, observation.depth], observation.mask)
        return super().act(observation)

    @torch.no_grad()
    def learn(self, trajectory: Trajectory) -> Mapping[str, Tensor]:
        """Learns from every active decision.

        Returns epsilon, the relative entropy, and the mean over tasks of the best value at depth 0.
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
                    best = torch.where(trajectory.masks[depth, episode], table, -torch.inf).amax(-1, keepdim=True)
                    hoped = best.lerp(target, self._trace_decay) if self._trace_decay else best
                    after = torch.where(deciding, hoped, target)
        self.values = torch.stack(tables, 1)
        self.batches = self.batches + 1
        return {"return": trajectory.returns(self._gamma)[0].mean(), "epsilon": self.epsilon}
