"""What an agent population sees, does and learns from: the only module that agents and engine share.

Any object with the methods of :class:`Agent` is an agent; there is nothing to register or to inherit from.
Axes are ``depth, episode, task, ...`` in this order, everywhere (E parallel episodes, T tasks).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class GameSpec:
    """The fixed facts of a routing game, all that is needed to build an agent for it.

    Attributes:
        legal: the actions that shapes allow at each depth. Actions are the blocks ``0 .. N-1`` (N of the
            widest layer), then PASS, then, where the game has it, STOP.
        n_tasks: number of agents.
        n_features: length of the feature part of an observation; 0 where observations have none.
        device: where the tensors of observations and trajectories live.
        fixed_masks: whether every decision's legal actions are those of ``legal``, and nobody stops early.
    """

    legal: Bool[Tensor, "depth action"]
    n_tasks: int
    n_features: int = 0
    device: torch.device = torch.device("cpu")  # noqa: RUF009 (immutable)
    fixed_masks: bool = False

    @property
    def n_depths(self) -> int:
        """Routing steps of an episode."""
        return self.legal.shape[0]

    @property
    def n_actions(self) -> int:
        """Size of every agent's action set, legal or not."""
        return self.legal.shape[1]


class Observation(NamedTuple):
    """What all agents of all parallel episodes see before they act at one depth.

    Attributes:
        depth: the routing step, 0 .. D-1 (D once the episode has ended).
        mask: True where an action is legal; at least one is, for each agent.
        features: the running representation, pooled over the instances of a decision; None unless asked for.
    """

    depth: int
    mask: Bool[Tensor, "episode task action"]
    features: Float[Tensor, "episode task feature"] | None = None


class Trajectory(NamedTuple):
    """One finished batch of parallel episodes, as the engine played it.

    Attributes:
        actions: what was done (an illegal choice stands here as what it was replaced by).
        rewards: reward of each agent, at the depth of the action that earned it.
        masks: the legal actions at each decision.
        active: False where the agent had stopped before, so that there was nothing to decide.
        features: the observations' features; None unless the game has them.
    """

    actions: Int[Tensor, "depth episode task"]
    rewards: Float[Tensor, "depth episode task"]
    masks: Bool[Tensor, "depth episode task action"]
    active: Bool[Tensor, "depth episode task"]
    features: Float[Tensor, "depth episode task feature"] | None = None

    def returns(self, gamma: float = 1.0) -> Float[Tensor, "depth episode task"]:
        """Discounted sum of each agent's rewards from every depth on."""
        steps = [self.rewards[-1]]
        for reward in self.rewards[:-1].flip(0):
            steps.append(reward + gamma * steps[-1])
        return torch.stack(steps[::-1])


@runtime_checkable
class Agent(Protocol):
    """A population of agents, one per task, that acts and learns as one object.

    An agent may also have ``policy(observation) -> Float[Tensor, "episode task action"]``: the probability it
    gives to each action (zero for illegal ones). It serves reported agreement, checkpoints and plots. And it may have
    ``expected_return(observation) -> Float[Tensor, "episode task"]``: the return that it expects of its policy.
    """

    def act(self, observation: Observation, *, greedy: bool = False) -> Int[Tensor, "episode task"]:
        """Picks one legal action per episode and task; the best one it knows where ``greedy``."""
        ...

    def learn(self, trajectory: Trajectory) -> Mapping[str, Tensor]:
        """Learns from finished episodes; returns scalars worth plotting, as tensors so that nobody waits."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything that ``load_state_dict`` needs to go on to the bit: tables, weights, generator.

        Tensors, numbers, strings, lists and dicts: checkpoints are read as untrusted data, and know nothing else.
        """
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what ``state_dict`` returned."""
        ...


def as_vectors(spec: GameSpec, observation: Observation) -> Float[Tensor, "episode task entry"]:
    """What every agent sees, as one vector each; all doors show these.

    One-hot of the task (T), one-hot of the depth (D + 1; the last one: the episode has ended), then the features.
    """
    shape = observation.mask.shape[:2]
    depths = torch.zeros(*shape, spec.n_depths + 1, device=spec.device)
    depths[..., observation.depth] = 1.0
    parts = [torch.eye(spec.n_tasks, device=spec.device).expand(*shape, -1), depths]
    if observation.features is not None:
        parts.append(observation.features)
    return torch.cat(parts, dim=-1)
