"""What agents get, against what they expected to get."""

import torch
from jaxtyping import Float
from torch import Tensor

from routing_marl.protocol import Agent, GameSpec, Observation, Trajectory


class Returns:
    """Adds returns up, episode by episode, without waiting for the device; ``means`` reads the sums.

    Args:
        spec: the game.
        agent: who is asked what it expects, where it can say so.
        gamma: discount of later rewards.
    """

    def __init__(self, spec: GameSpec, agent: Agent, gamma: float = 1.0) -> None:
        self._agent = agent
        self._gamma = gamma
        self._told = hasattr(agent, "expected_return")
        self._sums = torch.zeros(1 + self._told, spec.n_depths, spec.n_tasks, device=spec.device)
        self._counts = torch.zeros(spec.n_depths, spec.n_tasks, device=spec.device)

    @torch.no_grad()
    def add(self, trajectory: Trajectory) -> None:
        """Counts one batch of finished episodes; decisions of agents that have stopped don't count."""
        active = trajectory.active
        self._sums[0] += torch.where(active, trajectory.returns(self._gamma), 0.0).sum(1)
        self._counts += active.sum(1)
        if self._told:
            for depth, mask in enumerate(trajectory.masks):
                features = None if trajectory.features is None else trajectory.features[depth]
                expected = self._agent.expected_return(  # type: ignore[attr-defined]
                    Observation(depth, mask, features)
                )
                self._sums[1, depth] += torch.where(active[depth], expected, 0.0).sum(0)

    def means(self) -> Float[Tensor, "part depth task"]:
        """The mean return of each decision, on the CPU: realised, then, where agents tell, expected.

        0 where all agents had stopped before, so that there was no decision.
        """
        return (self._sums / self._counts.clamp(min=1)).cpu()
