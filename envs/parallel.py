"""What the PettingZoo doors have in common: spaces made once, checked actions, fresh views, pictures."""

import copy
import operator
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from gymnasium import logger, spaces
from pettingzoo import AECEnv, ParallelEnv
from pettingzoo.utils.conversions import parallel_to_aec_wrapper
from pettingzoo.utils.wrappers import OrderEnforcingWrapper

from routing_marl.envs.rendering import routes_as_image, routes_as_text
from routing_marl.errors import UserError

ByAgent = dict[str, Any]
Mask = Literal["info", "observation"]


class Drawing(NamedTuple):
    """What is drawn: a table of actions.

    Attributes:
        table: an action per agent and step; -1 where none has been taken yet.
        rows: names of the agents.
        actions: names of the actions.
        title: one line.
    """

    table: npt.NDArray[np.int64]
    rows: list[str]
    actions: list[str]
    title: str


class Door(ParallelEnv):  # type: ignore[misc]
    """A PettingZoo game in which all agents, always the same ones, act at each step.

    A subclass has ``reset``, ``step``, ``state``, ``_playing`` and ``_drawing``.

    Args:
        agents: their names.
        box: space of the agents' vectors.
        n_actions: actions of each agent.
        mask: where the action mask stands.
        render_mode: one of ``metadata["render_modes"]``, or None.
    """

    metadata: ClassVar[dict[str, Any]] = {
        "render_modes": ["human", "ansi", "rgb_array"],
        "render_fps": 1,
        "is_parallelizable": True,
    }

    def __init__(self, agents: list[str], box: spaces.Box, n_actions: int, mask: Mask, render_mode: str | None) -> None:
        among("mask", mask, ("info", "observation"))
        among("render_mode", render_mode, (None, *self.metadata["render_modes"]))
        self.render_mode = render_mode
        self.possible_agents = agents
        self.agents: list[str] = []
        self._mask = mask
        self._n_actions = n_actions
        self.observation_spaces = {agent: self._observation_space(box) for agent in agents}
        self.action_spaces = {agent: spaces.Discrete(n_actions) for agent in agents}

    def observation_space(self, agent: str) -> spaces.Space[Any]:
        """The agent's observation space, the same object at each call."""
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> spaces.Space[Any]:
        """The agent's action space, the same object at each call."""
        return self.action_spaces[agent]

    def render(self) -> str | npt.NDArray[np.uint8] | None:
        """Draws the episode under way or just finished, as ``render_mode`` says."""
        if self.render_mode is None:
            logger.warn("render() does nothing without a render_mode; make the game with, say, render_mode='ansi'")
            return None
        draw = routes_as_image if self.render_mode == "rgb_array" else routes_as_text
        picture = draw(*self._drawing())
        if self.render_mode == "human":
            print(picture)
            return None
        return picture

    def close(self) -> None:
        """There is nothing to close."""

    def __copy__(self) -> "Door":
        return copy.deepcopy(self)  # two games that train one network would be neither

    # -- inside ------------------------------------------------------------------------------------------------------

    def _playing(self) -> int:
        """Steps of the episode so far; UserError where there is no episode."""
        raise NotImplementedError

    def _drawing(self) -> Drawing:
        raise NotImplementedError

    def _observation_space(self, box: spaces.Box) -> spaces.Space[Any]:
        observation = spaces.Box(box.low.copy(), box.high.copy(), dtype=np.float32)
        if self._mask == "info":
            return observation
        return spaces.Dict({"observation": observation, "action_mask": spaces.Box(0, 1, (self._n_actions,), np.int8)})

    def _checked(self, actions: Mapping[str, Any]) -> list[int]:
        """The actions in the order of the agents, as plain numbers."""
        self._playing()
        if not self.agents:
            raise UserError("the episode is over; call reset first")
        everybody = f"one action for each of {self.possible_agents[0]} .. {self.possible_agents[-1]} is needed"
        if not isinstance(actions, Mapping):
            raise UserError(f"actions are a {type(actions).__name__}; a dict of {everybody}")
        if len(actions) > len(self.possible_agents) or not self.action_spaces.keys() >= actions.keys():
            unknown = sorted(map(repr, actions.keys() - self.action_spaces.keys()))
            raise UserError(f"actions for unknown agents {', '.join(unknown)}; {everybody}")
        if len(actions) < len(self.possible_agents):
            missing = [agent for agent in self.possible_agents if agent not in actions]
            raise UserError(f"no action for {', '.join(missing)}; {everybody}")
        return [self._checked_action(agent, actions[agent]) for agent in self.possible_agents]

    def _checked_action(self, agent: str, action: Any) -> int:
        try:
            number = -1 if isinstance(action, bool) else operator.index(action)
        except TypeError:
            number = -1
        if not 0 <= number < self._n_actions:
            right = f"it must be a whole number from 0 to {self._n_actions - 1}"
            raise UserError(f"the action of {agent} is {action!r}; {right}")
        return number

    def _by_agent(
        self, seen: npt.NDArray[np.float32], masks: npt.NDArray[np.int8], columns: dict[str, Any]
    ) -> tuple[ByAgent, ByAgent]:
        """Observations and infos, of arrays and columns that hold a row for each agent."""
        observations: ByAgent
        if self._mask == "info":
            observations = dict(zip(self.possible_agents, seen, strict=True))
            columns = {**columns, "action_mask": masks}
        else:
            observations = {
                agent: {"observation": row, "action_mask": mask}
                for agent, row, mask in zip(self.possible_agents, seen, masks, strict=True)
            }
        infos = {
            agent: dict(zip(columns, row, strict=True))
            for agent, row in zip(self.possible_agents, zip(*columns.values(), strict=True), strict=True)
        }
        return observations, infos

    def _stepped(
        self, observations: ByAgent, rewards: list[float], terminated: bool, infos: ByAgent
    ) -> tuple[ByAgent, ByAgent, ByAgent, ByAgent, ByAgent]:
        """What a step returns; all agents end together, and nothing is truncated."""
        if terminated:
            self.agents = []
            if self.render_mode == "human":
                self.render()
        return (
            observations,
            dict(zip(self.possible_agents, rewards, strict=True)),
            dict.fromkeys(self.possible_agents, terminated),
            dict.fromkeys(self.possible_agents, False),
            infos,
        )


class _OneByOne(parallel_to_aec_wrapper):  # type: ignore[misc]
    """PettingZoo's AEC view, but an action that is none raises at once, not when all others have acted."""

    def step(self, action: Any) -> None:
        agent = self.agent_selection
        if not self.terminations[agent]:
            self.env._checked_action(agent, action)
        super().step(action)


def one_by_one(door: Door) -> AECEnv:
    """The same game for one agent after the other."""
    return OrderEnforcingWrapper(_OneByOne(door))


def among(name: str, value: object, choices: Sequence[object]) -> None:
    """Raises UserError where an argument is none of its choices."""
    if value not in choices:
        raise UserError(f"{name} is {value!r}; it must be one of {', '.join(map(repr, choices))}")


def whole(seed: Any) -> Any:
    """A numpy integer as Python's; anything else as it is."""
    return int(seed) if isinstance(seed, np.integer) else seed
