"""Routes that never change: a net per task, one net for all, random sharing."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from routing_marl.agents.checks import check_count
from routing_marl.errors import UserError
from routing_marl.protocol import GameSpec, Observation, Trajectory
from routing_marl.randomness import RandomStream

Routes = Int[Tensor, "depth task"]


def per_task(n_tasks: int, n_depths: int, n_blocks: int) -> Routes:
    """Every task has blocks of its own: task ``t`` takes block ``t`` at every depth.

    Raises:
        UserError: there are fewer blocks than tasks (action ``n_blocks`` would be PASS).
    """
    if check_count("n_blocks", n_blocks) < check_count("n_tasks", n_tasks):
        raise UserError(f"n_blocks is {n_blocks}; a block per task needs at least {n_tasks}")
    return torch.arange(n_tasks).repeat(check_count("n_depths", n_depths), 1)


def all_shared(n_tasks: int, n_depths: int, block: int = 0) -> Routes:
    """All tasks take the same block at every depth."""
    shape = (check_count("n_depths", n_depths), check_count("n_tasks", n_tasks))
    return torch.full(shape, check_count("block", block, low=0))


def random_groups(n_tasks: int, n_groups: Sequence[int], seed: int | None = None) -> Routes:
    """At every depth anew, deals the tasks to that depth's ``n_groups`` blocks, at random and evenly."""
    generator = RandomStream(seed).generator
    check_count("n_tasks", n_tasks)
    return torch.stack([torch.randperm(n_tasks, generator=generator) % check_count("n_groups", n) for n in n_groups])


class FixedRoutes:
    """Plays a table of routes; learns nothing.

    Where the table's action is illegal at a decision although the game has it, the lowest legal one is taken.

    Args:
        spec: the game.
        table: the action of every task at every depth.

    Raises:
        UserError: the table has the wrong shape, or an action that is not legal at its depth.
    """

    def __init__(self, spec: GameSpec, table: Routes) -> None:
        self.spec = spec
        self.table = self._checked(table)

    def _checked(self, table: Routes) -> Routes:
        wanted = (self.spec.n_depths, self.spec.n_tasks)
        if table.shape != wanted:
            raise UserError(f"the table of routes has shape {tuple(table.shape)}; this game needs {wanted}")
        for depth, (legal, actions) in enumerate(zip(self.spec.legal.tolist(), table.tolist(), strict=True)):
            for task, action in enumerate(actions):
                if not (0 <= action < len(legal) and legal[action]):
                    right = [index for index, allowed in enumerate(legal) if allowed]
                    raise UserError(f"the route of task {task} has action {action} at depth {depth}; legal: {right}")
        return table.to(self.spec.device, torch.long, copy=True)

    def policy(self, observation: Observation) -> Float[Tensor, "episode task action"]:
        """1 for the action that is taken, 0 for all others."""
        chosen = self.act(observation).unsqueeze(-1)
        zeros = torch.zeros(observation.mask.shape, device=chosen.device)
        return zeros.scatter(-1, chosen, 1.0)

    def act(self, observation: Observation, *, greedy: bool = False) -> Int[Tensor, "episode task"]:
        """The table's actions at this depth, greedy or not."""
        planned = self.table[observation.depth].expand(observation.mask.shape[:-1])
        legal = observation.mask.gather(-1, planned.unsqueeze(-1)).squeeze(-1)
        return torch.where(legal, planned, observation.mask.int().argmax(-1))

    def learn(self, trajectory: Trajectory) -> Mapping[str, Tensor]:
        """Learns nothing, and has nothing to tell."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """The table."""
        return {"table": self.table.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over the table that ``state_dict`` returned, if it fits the game."""
        self.table = self._checked(state["table"])
