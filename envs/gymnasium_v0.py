"""Routing networks for single-agent algorithms: one router picks the blocks for all tasks.

Here a router sees one decision at a time, of one task at one depth, as a single-agent library wants it; the game behind
is that of :mod:`routing_marl.envs.routing_v0`. Importing :mod:`routing_marl.envs` registers it::

    import gymnasium, routing_marl.envs
    env = gymnasium.make("routing_marl/SingleAgentRouting-v0", suite="digits")
    envs = gymnasium.make_vec("routing_marl/SingleAgentRouting-v0", num_envs=80, suite="digits")

| Fact               | Value                                                                                     |
|--------------------|-------------------------------------------------------------------------------------------|
| Episode            | one task's routing pass: D steps, then it terminates; nothing is ever truncated           |
| Actions            | `Discrete(N + 1)`: blocks 0 .. N-1 (of the widest layer), PASS; one more with STOP        |
| Observation shape  | `(T + D + 1,)`; with features `(T + D + 1 + F,)`; float32                                 |
| Observation values | [0, 1]; features [-10, 10]                                                                |
| Action mask        | `info["action_mask"]` (int8), and `env.action_masks()` (bool), as MaskablePPO wants it    |

### One environment is one network

The blocks live in the environment. `gymnasium.make_vec` gives :class:`SingleAgentRoutingVectorEnv`, whose
sub-environments are the `E x T` decisions of one network: sub-environment `e * T + t` is task `t` in the parallel
episode `e`, so `num_envs` is a multiple of T. With `vectorization_mode="sync"` or `"async"` each sub-environment would
be a network of its own that knows nothing of the others.

### Observations, actions, rewards

As in `routing_v0`, for the task whose turn it is. In :class:`SingleAgentRouting` tasks take turns, from task 0 on. The
images of all tasks pass through the network in every episode, so that all blocks learn in balance; the tasks whose turn
it is not take the route that the router gave them last (before the first one: random legal actions).

### Infos

The same keys from reset on: `action_mask`, `task`, `final_reward`, `collaboration_reward`, `accuracy`, `loss` (0 before
the last depth), `illegal` (illegal actions so far in this episode).

### Reset

Seeds and the options `split` and `keep_blocks` are those of `routing_v0`; `{"task": t}` chooses the task (single
environment only, the turns go on from there). With `split="test"` nothing learns, and training goes on as if it had not
happened.

### Arguments

Those of :func:`routing_marl.envs.building.build_engine` (but `episodes`, which `num_envs` decides), and

- `render_mode=None`: `"ansi"` or `"rgb_array"`, the latest routes of all tasks (single environment only).
- `autoreset="next_step"`: or `"same_step"` (vector environment only): whether a new episode begins with the step after
  the last one, which then ignores its actions, or within it, and the last observation stands in `infos["final_obs"]`.

### Version history

- v0: first version.
"""

import operator
from typing import Any, ClassVar, Literal

import gymnasium
import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces, vector
from gymnasium.vector.utils import batch_space

from routing_marl.engine import Step
from routing_marl.envs.building import begin, build_engine, observation_box
from routing_marl.envs.rendering import action_names, routes_as_image, routes_as_text
from routing_marl.errors import UserError
from routing_marl.protocol import GameSpec, Observation, as_vectors
from routing_marl.recipes import make_suite

__all__ = ["SingleAgentRouting", "SingleAgentRoutingVectorEnv"]

Vector = npt.NDArray[np.float32]
Info = dict[str, Any]


class SingleAgentRouting(gymnasium.Env[Any, np.int64]):
    """One task's routing pass at a time; described at the head of this module.

    Args:
        render_mode: one of ``metadata["render_modes"]``, or None.
        game: arguments of :func:`~routing_marl.envs.building.build_engine`.

    Attributes:
        engine: the game itself.
    """

    metadata: ClassVar[dict[str, Any]] = {  # type: ignore[misc]
        "render_modes": ["ansi", "rgb_array"],
        "render_fps": 1,
    }

    def __init__(self, *, render_mode: str | None = None, **game: Any) -> None:
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise UserError(f"render_mode is {render_mode!r}; it must be None, 'ansi' or 'rgb_array'")
        self.engine = build_engine(**game, episodes=1)
        self.render_mode = render_mode
        self.observation_space = observation_box(self.engine.spec)
        self.action_space = spaces.Discrete(self.engine.spec.n_actions)
        self._routes: npt.NDArray[np.int64] | None = None
        self._playing = False
        self._turn = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Vector, Info]:
        """Begins the next task's episode, of a new game where there is a seed."""
        options = options or {}
        spec = self.engine.spec
        task = options.get("task", self._turn if seed is None else 0)
        if not (isinstance(task, int | np.integer) and 0 <= task < spec.n_tasks):
            raise UserError(f"options['task'] is {task!r}; it must be a whole number from 0 to {spec.n_tasks - 1}")
        split = begin(self.engine, seed, options)
        super().reset(seed=seed)
        if self._routes is None or seed is not None:
            self._routes = self._random_routes()
        self._task = int(task)
        if split == "train":
            self._turn = (self._task + 1) % spec.n_tasks
            self._played = self._routes
        else:
            self._played = self._routes.copy()
        self._illegal = 0
        self._playing = True
        return self._see(self.engine.reset(split), None)

    def step(self, action: Any) -> tuple[Vector, float, bool, bool, Info]:
        """Takes the task's images one depth further; at the last depth the network learns."""
        number = _whole(action, self.engine.spec.n_actions)
        if not self._playing:
            raise UserError("no episode is under way; call reset first")
        actions = self._played[:, self._depth].copy()
        actions[self._task] = number
        step = self.engine.step(torch.from_numpy(actions)[None].to(self.engine.device))
        self._played[self._task, self._depth] = int(step.action[0, self._task])
        self._illegal += int(step.illegal[0, self._task])
        observation, info = self._see(step.observation, step)
        self._playing = not step.terminated
        return observation, float(step.reward[0, self._task]), step.terminated, False, info

    def action_masks(self) -> npt.NDArray[np.bool_]:
        """True for the legal actions, ``[action]``."""
        return self._mask.copy()

    def render(self) -> Any:
        """Draws the latest routes of all tasks, as ``render_mode`` says."""
        if self.render_mode is None or self._routes is None:
            return None
        network, spec, names = self.engine.network, self.engine.spec, list(self.engine.suite.task_names)
        draw = routes_as_image if self.render_mode == "rgb_array" else routes_as_text
        title = f"task {names[self._task]}, depth {self._depth} of {spec.n_depths}"
        return draw(self._played, names, action_names(network.pass_action, spec.n_actions), title)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_playing": False}  # as the engine's: an episode under way can't be copied

    def _random_routes(self) -> npt.NDArray[np.int64]:
        legal = [np.flatnonzero(row) for row in self.engine.spec.legal.tolist()]
        return np.stack([self.np_random.choice(row, self.engine.spec.n_tasks) for row in legal], axis=1)

    def _see(self, observation: Observation, step: Step | None) -> tuple[Vector, Info]:
        self._depth = observation.depth
        self._mask = observation.mask[0, self._task].cpu().numpy().copy()
        numbers = {name: float(values[0, self._task]) for name, values in _numbers(self.engine.spec, step).items()}
        seen: Vector = as_vectors(self.engine.spec, observation)[0, self._task].cpu().numpy()
        info = {"action_mask": self._mask.astype(np.int8), "task": self._task, **numbers, "illegal": self._illegal}
        return seen, info


class SingleAgentRoutingVectorEnv(vector.VectorEnv[Any, npt.NDArray[np.int64], npt.NDArray[Any]]):
    """All decisions of one network side by side; described at the head of this module.

    Args:
        num_envs: ``E * T``: a multiple of the number of tasks.
        autoreset: ``"next_step"`` or ``"same_step"``.
        game: arguments of :func:`~routing_marl.envs.building.build_engine`.

    Attributes:
        engine: the game itself.
    """

    def __init__(
        self, num_envs: int, *, autoreset: Literal["next_step", "same_step"] = "next_step", **game: Any
    ) -> None:
        modes = {"next_step": "NextStep", "same_step": "SameStep"}
        if autoreset not in modes:
            raise UserError(f"autoreset is {autoreset!r}; it must be one of {', '.join(modes)}")
        # Gymnasium 1.0 knows the first mode only, and has no name for it.
        self.metadata = {"autoreset_mode": getattr(vector, "AutoresetMode", str)(modes[autoreset])}
        suite = make_suite(game.pop("suite", "digits"), game.pop("data_dir", None))
        n_tasks = suite.n_tasks
        if num_envs < 1 or num_envs % n_tasks:
            raise UserError(
                f"num_envs is {num_envs}; the sub-environments are the decisions of {n_tasks} tasks, "
                f"so it must be a multiple of {n_tasks}"
            )
        self.engine = build_engine(suite=suite, **game, episodes=num_envs // n_tasks)
        self.num_envs = num_envs
        self.single_observation_space = observation_box(self.engine.spec)
        self.single_action_space = spaces.Discrete(self.engine.spec.n_actions)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.render_mode = None
        self._same_step = autoreset == "same_step"
        self._tasks = np.tile(np.arange(n_tasks), num_envs // n_tasks)
        self._depth: int | None = None

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Vector, Info]:
        """Begins the next episodes, of a new game where there is a seed (one: there is one network)."""
        if isinstance(seed, list):
            raise UserError("seed is a list; the sub-environments are one network, so give one whole number")
        options = options or {}
        if not np.all(options.get("reset_mask", True)):
            raise UserError("options['reset_mask'] leaves some out; all sub-environments begin and end together")
        self._split = begin(self.engine, seed, options)
        super().reset(seed=seed)
        return self._begin()

    def step(self, actions: Any) -> tuple[Vector, npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any], Info]:
        """Takes all decisions one depth further; at the last depth the network learns."""
        if self._depth is None:
            raise UserError("no episode is under way; call reset first")
        chosen = self._checked(actions)
        over = np.full(self.num_envs, False)
        if self._depth == self.engine.spec.n_depths:  # next-step autoreset
            observation, info = self._begin()
            return observation, np.zeros(self.num_envs), over, over.copy(), info
        step = self.engine.step(torch.from_numpy(chosen).to(self.engine.device).view(-1, self.engine.spec.n_tasks))
        self._illegal += step.illegal.flatten().cpu().numpy()
        observation, info = self._see(step.observation, step)
        if step.terminated and self._same_step:
            last = _told({"final_obs": observation, "final_info": info}, self.num_envs)
            observation, info = self._begin()
            info |= last
        rewards = step.reward.flatten().double().cpu().numpy()
        return observation, rewards, over | step.terminated, over, info

    def action_masks(self) -> npt.NDArray[np.bool_]:
        """True for the legal actions, ``[sub-environment, action]``."""
        return self._mask.copy()

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_depth": None}  # as the engine's: an episode under way can't be copied

    def _begin(self) -> tuple[Vector, Info]:
        self._illegal = np.zeros(self.num_envs, np.int64)
        return self._see(self.engine.reset(self._split), None)

    def _checked(self, actions: Any) -> npt.NDArray[np.int64]:
        chosen, n_actions = np.asarray(actions), self.engine.spec.n_actions
        if chosen.shape != (self.num_envs,) or not np.issubdtype(chosen.dtype, np.integer):
            raise UserError(
                f"actions are of shape {list(chosen.shape)} and type {chosen.dtype}; "
                f"{self.num_envs} whole numbers are needed"
            )
        if chosen.min() < 0 or chosen.max() >= n_actions:
            wrong = chosen[(chosen < 0) | (chosen >= n_actions)][0]
            raise UserError(f"an action is {wrong}; it must be a whole number from 0 to {n_actions - 1}")
        return chosen.astype(np.int64)

    def _see(self, observation: Observation, step: Step | None) -> tuple[Vector, Info]:
        self._depth = observation.depth
        self._mask = observation.mask.flatten(0, 1).cpu().numpy().copy()
        columns = {"action_mask": self._mask.astype(np.int8), "task": self._tasks.copy()}
        for name, values in _numbers(self.engine.spec, step).items():
            columns[name] = values.expand(*observation.mask.shape[:2]).flatten().cpu().numpy().copy()
        columns["illegal"] = self._illegal.copy()
        seen: Vector = as_vectors(self.engine.spec, observation).flatten(0, 1).cpu().numpy()
        return seen, _told(columns, self.num_envs)


def _numbers(spec: GameSpec, step: Step | None) -> dict[str, torch.Tensor]:
    """The numbers in infos, each ``[episode, task]`` (or one zero for all, before they are known)."""
    nothing = torch.zeros(1, spec.n_tasks, device=spec.device)
    names = ("final_reward", "collaboration_reward", "accuracy", "loss")
    if step is None:
        return dict.fromkeys(names, nothing)
    outcome = (nothing, nothing)
    if step.outcome is not None:
        outcome = (step.outcome.correct.float().mean(-1), step.outcome.loss.mean(-1))
    return dict(zip(names, (step.final_reward, step.collaboration_reward, *outcome), strict=True))


def _told(columns: dict[str, Any], num_envs: int) -> Info:
    """Infos of a vector environment: next to each key, which sub-environments have it (all)."""
    return columns | {f"_{name}": np.full(num_envs, True) for name in columns}


def _whole(action: Any, n_actions: int) -> int:
    try:
        number = -1 if isinstance(action, bool) else operator.index(action)
    except TypeError:
        number = -1
    if not 0 <= number < n_actions:
        raise UserError(f"the action is {action!r}; it must be a whole number from 0 to {n_actions - 1}")
    return number
