"""Algorithms from elsewhere as agents of ours: to evaluate them with our evaluation, and to put them in our tables.

An adapter acts with what a library has learned. It does not teach it: ``learn`` does nothing, unless it is given a
function that does. All of them show the policy what the doors show, :func:`routing_marl.protocol.as_vectors`.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Int
from torch import Tensor

from routing_marl.errors import UserError
from routing_marl.protocol import GameSpec, Observation, Trajectory, as_vectors

__all__ = ["CallablesAgent", "SB3Agent", "TorchRLAgent"]

Learn = Callable[[Trajectory], Mapping[str, Tensor]]
AgentCallable = Callable[[npt.NDArray[np.float32], npt.NDArray[np.int8]], Any]
"""Maps one agent's observation and action mask to its action."""


class _Adapter:
    """What adapters share: learning, saving, and actions that are checked.

    Args:
        spec: the game.
        policy: what acts; its ``state_dict`` is the agent's, where it has one.
        learn: called with each trajectory of our training loop; None: nothing is learned.
    """

    def __init__(self, spec: GameSpec, policy: Any, learn: Learn | None = None) -> None:
        self.spec = spec
        self.source = policy
        self._learn = learn

    def learn(self, trajectory: Trajectory) -> Mapping[str, Tensor]:
        """Hands the trajectory to the given function, if there is one."""
        return {} if self._learn is None else self._learn(trajectory)

    def state_dict(self) -> dict[str, Any]:
        """The weights of what acts; nothing where it has none."""
        module = self._module()
        return {} if module is None else {"policy": {k: v.clone() for k, v in module.state_dict().items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what ``state_dict`` returned."""
        module = self._module()
        if module is not None:
            module.load_state_dict(state["policy"])

    def _module(self) -> torch.nn.Module | None:
        return self.source if isinstance(self.source, torch.nn.Module) else None

    def _checked(self, action: Any, observation: Observation) -> Int[Tensor, "episode task"]:
        """Actions as a tensor; UserError where they are not of the game."""
        shape = observation.mask.shape[:2]
        chosen = torch.as_tensor(action, device=self.spec.device)
        if chosen.is_floating_point() or chosen.is_complex() or chosen.numel() != shape.numel():
            raise UserError(
                f"the policy's actions are {list(chosen.shape)} of {chosen.dtype}; "
                f"whole numbers of shape {list(shape)} (episode, task) are needed"
            )
        return chosen.reshape(shape).long()


class TorchRLAgent(_Adapter):
    """A TorchRL policy of the group ``agents`` of :class:`routing_marl.envs.torchrl.RoutingEnv`; BenchMARL's too.

    Greedy actions are those of ``ExplorationType.DETERMINISTIC``, others are sampled.

    Args:
        spec: the game.
        policy: reads ``("agents", "observation")`` and ``("agents", "action_mask")``, and writes
            ``("agents", "action")``, whole numbers of shape ``[E, T]``.
        learn: see :class:`_Adapter`.
    """

    @torch.no_grad()
    def act(self, observation: Observation, *, greedy: bool = False) -> Int[Tensor, "episode task"]:
        """What the policy does."""
        from tensordict import TensorDict
        from torchrl.envs.utils import ExplorationType, set_exploration_type

        n_episodes, n_tasks = observation.mask.shape[:2]
        seen = {"observation": as_vectors(self.spec, observation), "action_mask": observation.mask}
        agents = TensorDict(seen, (n_episodes, n_tasks), device=self.spec.device)
        tensordict = TensorDict({"agents": agents}, (n_episodes,), device=self.spec.device)
        with set_exploration_type(ExplorationType.DETERMINISTIC if greedy else ExplorationType.RANDOM):
            return self._checked(self.source(tensordict)["agents", "action"], observation)


class SB3Agent(_Adapter):
    """A Stable-Baselines3 model (sb3-contrib too) that was trained on one decision at a time, as all our doors show it.

    Args:
        spec: the game.
        model: has ``predict(observation, deterministic=...)``; action masks are handed to those that take them.
        learn: see :class:`_Adapter`.
    """

    def __init__(self, spec: GameSpec, model: Any, learn: Learn | None = None) -> None:
        super().__init__(spec, model, learn)
        self._takes_masks = "action_masks" in inspect.signature(model.predict).parameters

    def act(self, observation: Observation, *, greedy: bool = False) -> Int[Tensor, "episode task"]:
        """What the model does; without a mask, an illegal action is replaced by the game."""
        vectors = as_vectors(self.spec, observation).flatten(0, 1).cpu().numpy()
        masks = {"action_masks": observation.mask.flatten(0, 1).cpu().numpy()} if self._takes_masks else {}
        actions, _ = self.source.predict(vectors, deterministic=greedy, **masks)
        return self._checked(actions, observation)

    def _module(self) -> torch.nn.Module | None:
        policy: torch.nn.Module = self.source.policy
        return policy


class CallablesAgent(_Adapter):
    """One callable per agent, ``{"task_0": f, ...}``, that maps an observation and an action mask to an action.

    They see what the PettingZoo door shows, one decision at a time, and may be anything: tables, networks, rules. They
    are not told whether to be greedy: give greedy ones, or a dict of their own.

    Args:
        spec: the game.
        policies: a callable for each of ``task_0 .. task_<T-1>``.
        greedy: callables that act where greedy actions are asked for; None for the same.
        learn: see :class:`_Adapter`.

    Raises:
        UserError: an agent has no callable, or there is one for an unknown agent.
    """

    def __init__(
        self,
        spec: GameSpec,
        policies: Mapping[str, AgentCallable],
        greedy: Mapping[str, AgentCallable] | None = None,
        learn: Learn | None = None,
    ) -> None:
        super().__init__(spec, policies, learn)
        self._greedy = policies if greedy is None else greedy
        wanted = {f"task_{task}" for task in range(spec.n_tasks)}
        for given in (policies, self._greedy):
            if odd := sorted(wanted ^ given.keys()):
                right = f"one callable for each of task_0 .. task_{spec.n_tasks - 1} is needed"
                raise UserError(f"policies: {odd[0]} is {'missing' if odd[0] in wanted else 'unknown'}; {right}")

    def act(self, observation: Observation, *, greedy: bool = False) -> Int[Tensor, "episode task"]:
        """What each callable does for its agent, episode by episode."""
        vectors = as_vectors(self.spec, observation).cpu().numpy()
        masks = observation.mask.cpu().numpy().astype(np.int8)
        policies = [(self._greedy if greedy else self.source)[f"task_{task}"] for task in range(self.spec.n_tasks)]
        actions = [
            [int(policy(vector, mask)) for policy, vector, mask in zip(policies, *episode, strict=True)]
            for episode in zip(vectors, masks, strict=True)
        ]
        return self._checked(np.array(actions), observation)
