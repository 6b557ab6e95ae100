"""Routing networks for RLlib's multi-agent API: the PettingZoo door, with masks where RLlib's own module finds them.

``ParallelPettingZooEnv`` takes our PettingZoo door as it is, but then nobody masks: an illegal action acts as PASS. The
module of RLlib that masks (for PPO) wants observations ``{"observations": ..., "action_mask": ...}``, the former of
which PettingZoo, and so our door, calls ``"observation"``. This environment says it RLlib's way::

    from ray.rllib.examples.rl_modules.classes.action_masking_rlm import ActionMaskingTorchRLModule
    from routing_marl.envs.rllib import RoutingMultiAgentEnv
    register_env("routing", lambda _: RoutingMultiAgentEnv(suite="digits"))
    config.rl_module(rl_module_spec=RLModuleSpec(module_class=ActionMaskingTorchRLModule))

One environment is one network: keep to a local env runner, ``config.env_runners(num_env_runners=0)``.
"""

from typing import Any

from gymnasium import spaces

from routing_marl.engine import RoutingEngine
from routing_marl.envs.parallel import ByAgent
from routing_marl.envs.routing_v0 import parallel_env
from routing_marl.errors import UserError

try:
    from ray.rllib.env.wrappers.pettingzoo_env import ParallelPettingZooEnv
except ImportError as error:
    raise UserError("this environment needs RLlib: pip install 'routing-marl[rllib]'") from error

__all__ = ["RoutingMultiAgentEnv"]


class RoutingMultiAgentEnv(ParallelPettingZooEnv):  # type: ignore[misc]
    """All agents at once, with the action mask in the observation; described at the head of this module.

    Args:
        game: arguments of :func:`routing_marl.envs.routing_v0.parallel_env` but ``mask``.

    Attributes:
        engine: the game itself. RLlib plays the one at ``algorithm.env_runner.env.envs[0].unwrapped.engine``.
    """

    def __init__(self, **game: Any) -> None:
        door = parallel_env(**game, mask="observation")
        super().__init__(door)
        self.engine: RoutingEngine = door.engine
        observed = door.observation_spaces.items()
        self.observation_space = spaces.Dict({agent: spaces.Dict(_renamed(space)) for agent, space in observed})

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[ByAgent, ByAgent]:
        """The first observations of the next episode, of a new game where there is a seed; and infos."""
        observations, infos = super().reset(seed=seed, options=options)
        return _by_agent(observations), infos

    def step(self, action_dict: dict[str, Any]) -> tuple[ByAgent, ByAgent, ByAgent, ByAgent, ByAgent]:
        """Observations, rewards, terminations, truncations and infos, by agent, after one depth more."""
        observations, *others = super().step(action_dict)
        return (_by_agent(observations), *others)


def _by_agent(observations: ByAgent) -> ByAgent:
    return {agent: _renamed(seen) for agent, seen in observations.items()}


def _renamed(seen: Any) -> dict[str, Any]:
    return {"observations": seen["observation"], "action_mask": seen["action_mask"]}
