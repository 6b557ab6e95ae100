"""The natively batched Gymnasium door, as Stable-Baselines3 wants to see it: a ``VecEnv``, of one network.

Stable-Baselines3 has vector environments of its own kind and takes no others. Its ``make_vec_env`` would make
a network per sub-environment; here the sub-environments are the ``E x T`` decisions of one network::

    from routing_marl.envs.sb3 import RoutingVecEnv
    model = PPO("MlpPolicy", RoutingVecEnv(80, suite="digits"), n_steps=12).learn(100_000)
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from routing_marl.engine import RoutingEngine
from routing_marl.envs.gymnasium_v0 import SingleAgentRoutingVectorEnv
from routing_marl.errors import UserError

try:
    from stable_baselines3.common.vec_env import VecEnv
except ImportError as error:
    raise UserError("this environment needs Stable-Baselines3: pip install 'routing-marl[sb3]'") from error

__all__ = ["RoutingVecEnv"]


class RoutingVecEnv(VecEnv):  # type: ignore[misc]
    """A :class:`~routing_marl.envs.gymnasium_v0.SingleAgentRoutingVectorEnv` for Stable-Baselines3 and sb3-contrib.

    Episodes begin anew within the step that ends them, and ``terminal_observation`` stands in the infos, as
    Stable-Baselines3 has it. MaskablePPO finds the masks.

    Args:
        num_envs: ``E * T``: a multiple of the number of tasks.
        game: arguments of :func:`~routing_marl.envs.building.build_engine`.

    Attributes:
        engine: the game itself.
    """

    def __init__(self, num_envs: int, **game: Any) -> None:
        self._envs = SingleAgentRoutingVectorEnv(num_envs, autoreset="same_step", **game)
        self.engine: RoutingEngine = self._envs.engine
        super().__init__(num_envs, self._envs.single_observation_space, self._envs.single_action_space)
        self._next_seed: int | None = None
        self._actions: npt.NDArray[Any] | None = None

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """The next reset begins the game anew from this seed; None: it goes on."""
        self._next_seed = seed
        return [seed] * self.num_envs

    def reset(self) -> npt.NDArray[np.float32]:
        """The first observations of the next episodes, ``[sub-environment, entry]``."""
        observations, _ = self._envs.reset(seed=self._next_seed)
        self._next_seed = None
        return observations

    def step_async(self, actions: npt.NDArray[Any]) -> None:
        """Takes the actions, ``[sub-environment]``."""
        self._actions = actions

    def step_wait(self) -> tuple[Any, Any, Any, list[dict[str, Any]]]:
        """Plays them: observations, rewards, dones, and an info for each sub-environment."""
        observations, rewards, done, _, told = self._envs.step(self._actions)
        last = told.get("final_obs")
        numbers = {
            name: values for name, values in told.get("final_info", told).items() if isinstance(values, np.ndarray)
        }
        names = [name for name in numbers if not name.startswith("_") and name != "action_mask"]
        rows = zip(*(numbers[name].tolist() for name in names), strict=True)
        infos: list[dict[str, Any]] = [dict(zip(names, row, strict=True)) for row in rows]
        for index, info in enumerate(infos):
            info["TimeLimit.truncated"] = False
            if last is not None:
                info["terminal_observation"] = last[index]
        return observations, rewards.astype(np.float32), done, infos

    def close(self) -> None:
        """There is nothing to close."""

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """The same for all: an attribute of the batch."""
        return [getattr(self._envs, attr_name)] * len(self._indices(indices))

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Sets an attribute of the batch, for all sub-environments at once."""
        setattr(self._envs, attr_name, value)

    def env_method(self, method_name: str, *arguments: Any, indices: Any = None, **named: Any) -> list[Any]:
        """Calls a method of the batch, and gives each sub-environment its row of what comes back."""
        rows = getattr(self._envs, method_name)(*arguments, **named)
        return [rows[index] for index in self._indices(indices)]

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        """No sub-environment is wrapped."""
        return [False] * len(self._indices(indices))

    def _indices(self, indices: Any) -> list[int]:
        chosen: list[int] = list(self._get_indices(indices))
        return chosen
