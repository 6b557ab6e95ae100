"""Routing networks as a PettingZoo game: every task is an agent that picks the blocks of its images' route.

A multi-task network holds interchangeable function blocks at each depth. At every depth all agents at once pick the
block that their images go through next; at the end they are paid for right predictions and, along the way, for taking
blocks that others take too. Meanwhile the blocks learn by backprop on the loss of the very same pass (Rosenbaum,
Klinger and Riemer, "Routing Networks", arXiv 1711.01239). An episode is one routing pass of one minibatch.

| Fact                  | Value                                                                                  |
|-----------------------|----------------------------------------------------------------------------------------|
| Import                | `from routing_marl.envs import routing_v0`                                             |
| Parallel API          | `routing_v0.parallel_env()`, `pettingzoo.make("parallel", "routing_marl/routing-v0")`   |
| AEC API               | `routing_v0.env()`, `pettingzoo.make("aec", "routing_marl/routing-v0")`                 |
| Actions               | Discrete, all agents at each step                                                      |
| Agents                | `task_0` .. `task_<T-1>`, the same throughout; T = 10 for `digits`                      |
| Episode               | D steps (the network's depth), then all agents terminate; nothing is ever truncated     |
| Action values         | `Discrete(N + 1)`: blocks 0 .. N-1 (of the widest layer), PASS; one more with STOP      |
| Observation shape     | `(T + D + 1,)`; with features `(T + D + 1 + F,)`; float32                                |
| Observation values    | [0, 1]; features [-10, 10]                                                             |
| State shape           | `(D + 1 + T * D,)`; with features `(D + 1 + T * D + T * F,)`; float32                    |
| State values          | [0, 1]; features [-10, 10]                                                             |

### Observations

One-hot of the agent's task (T), one-hot of the depth (D + 1; the last one: the episode has ended) and, with
`observation="features"`, the running representation: averaged over the instances of the decision (and over space),
clipped to [-10, 10], padded with zeros to the longest of all depths (F). With `mask="observation"` all that stands
under `"observation"` of a dict, next to `"action_mask"`.

`state()` is one-hot of the depth (D + 1), the routes so far as scaled whole numbers (agent by agent, D each:
`(action + 1) / number of actions`, 0 where none has been taken) and, with features, those of all agents.

### Actions

A block's index; PASS (leaves the representation as it is) comes after the blocks, STOP (ends the agent's route; all it
may do from there on) after PASS. Legal is what the shapes allow, see the mask. An illegal action acts as PASS, or as
the first legal action where PASS is illegal, and is counted. `int`, numpy integers and 0-d integer arrays are actions;
what is none (wrong type, out of range, unknown or missing agent) raises `UserError` and changes nothing.

### Rewards

`rho * agreement` at each step: how probable the action is, on average, to the agents that took it lately. At the
last depth also the final reward: +1 for a right prediction, -1 for a wrong one, averaged over the instances.

### Infos

The same keys for all agents, from reset on:

- `action_mask`: int8 `(N + 1,)`, 1 for legal actions (with `mask="observation"` it stands there instead).
- `final_reward`, `collaboration_reward`: the two parts of the reward of this step.
- `accuracy`, `loss`: of the agent's instances (loss: cross-entropy in nats); 0 before the last depth.
- `illegal`: number of illegal actions so far in this episode.
- `route`: int64 `(D,)`, what has been done so far (an illegal action stands as what it was replaced by), else -1.

### Reset

`reset()` goes on with the next minibatch and keeps what was learned. `reset(seed=s)` begins anew: weights, optimizers,
data order and running averages, all from the seed. Options (others are ignored):

- `{"keep_blocks": True}`: with a seed, only the data order begins anew; what was learned stays.
- `{"split": "test"}` (or `"validation"`): evaluates; nothing learns, and training goes on as if it had not happened.

Without any seed, clones (copy, pickle, cloudpickle) made before the first reset become games of their own; clones made
between two episodes go on as the original would; a clone made within an episode begins with a reset. Copies share the
images. `env.engine` is the game itself: network, suite, `state_dict()`.

### Arguments

- `suite="digits"`: name of a suite, path of an .npz file, or a `TaskSuite`.
- `blocks=None`: function blocks per layer, one number or one each; None for one per task.
- `depth=3`: number of routed layers D.
- `recursive=False`: all depths share one set of blocks.
- `allow_stop=False`: whether there is a STOP action (recursive only).
- `network=None`: callable that makes the `RoutedNetwork` for the suite, in place of the four arguments above.
- `instances=1`: images per agent and episode, which share its decisions.
- `rho=0.3`: size of the collaboration reward.
- `history=100`: episodes that the agreement looks back on.
- `lr=1e-3`: learning rate of the network (Adam).
- `lr_decay=0.1`: factor on it after every `lr_decay_epochs` epochs.
- `lr_decay_epochs=10`: epochs between two cuts; 0 for never.
- `precision="fp32"`: or `"bf16"` (autocast).
- `device="cpu"`: where the network and the images live; numpy goes in and out all the same.
- `observation="index"`: or `"features"`.
- `mask="info"`: or `"observation"`.
- `data_dir=None`: where the suite's data is looked for first.
- `render_mode=None`: `"rgb_array"` and `"ansi"` return a picture or a text of the routes; `"human"` prints the text at
  the end of each episode.
- `seed=None`: of the first reset that has none; None for fresh entropy.

### Version history

- v0: first version.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from pettingzoo import AECEnv

from routing_marl.config import Precision
from routing_marl.engine import FEATURE_BOUND, RoutingEngine
from routing_marl.envs.building import begin, build_engine, observation_box
from routing_marl.envs.parallel import ByAgent, Door, Drawing, Mask, one_by_one
from routing_marl.envs.rendering import action_names
from routing_marl.errors import UserError
from routing_marl.network import MakeNetwork
from routing_marl.protocol import Observation
from routing_marl.suites import TaskSuite

__all__ = ["RoutingParallelEnv", "env", "parallel_env"]


def parallel_env(
    *,
    suite: str | Path | TaskSuite = "digits",
    blocks: int | Sequence[int] | None = None,
    depth: int = 3,
    recursive: bool = False,
    allow_stop: bool = False,
    network: MakeNetwork | None = None,
    instances: int = 1,
    rho: float = 0.3,
    history: int = 100,
    lr: float = 1e-3,
    lr_decay: float = 0.1,
    lr_decay_epochs: int = 10,
    precision: Precision = "fp32",
    device: torch.device | str = "cpu",
    observation: Literal["index", "features"] = "index",
    mask: Literal["info", "observation"] = "info",
    data_dir: str | Path | None = None,
    render_mode: str | None = None,
    seed: int | np.integer[Any] | None = None,
) -> "RoutingParallelEnv":
    """The game for all agents at once; the arguments are described at the head of this module.

    Raises:
        UserError: an argument is not as described there, or the suite's data is missing.
    """
    engine = build_engine(
        suite=suite,
        blocks=blocks,
        depth=depth,
        recursive=recursive,
        allow_stop=allow_stop,
        network=network,
        instances=instances,
        rho=rho,
        history=history,
        lr=lr,
        lr_decay=lr_decay,
        lr_decay_epochs=lr_decay_epochs,
        precision=precision,
        device=device,
        observation=observation,
        data_dir=data_dir,
        seed=seed,
    )
    return RoutingParallelEnv(engine, mask=mask, render_mode=render_mode)


def env(**arguments: Any) -> AECEnv:
    """The game for one agent after the other; takes the arguments of :func:`parallel_env`."""
    return one_by_one(parallel_env(**arguments))


class RoutingParallelEnv(Door):
    """One episode at a time of a :class:`RoutingEngine`, as PettingZoo wants to see it.

    Args:
        engine: the game, with one parallel episode and empirical agreement.
        mask: where the action mask stands, ``"info"`` or ``"observation"``.
        render_mode: one of ``metadata["render_modes"]``, or None.

    Attributes:
        engine: as given.
        possible_agents: ``task_0 .. task_<T-1>``.
        agents: the same during an episode; none before and after it.
        observation_spaces: one per agent, all equal.
        action_spaces: one per agent, all equal.
        state_space: of :meth:`state`.
    """

    metadata: ClassVar[dict[str, Any]] = {
        **Door.metadata,
        "name": "routing_v0",
    }

    _depth: int | None
    _accuracy: list[float] | None

    def __init__(
        self,
        engine: RoutingEngine,
        *,
        mask: Mask = "info",
        render_mode: str | None = None,
    ) -> None:
        agents = [f"task_{task}" for task in range(engine.spec.n_tasks)]
        super().__init__(agents, observation_box(engine.spec), engine.spec.n_actions, mask, render_mode)
        if engine.config.episodes != 1 or engine.config.agreement != "empirical":
            raise UserError("the engine has parallel episodes or reported agreement; PettingZoo can do neither")
        self.engine = engine
        self._n_tasks, self._n_depths = engine.spec.n_tasks, engine.spec.n_depths
        # What is known in advance: who one is, and where. Features are put behind it.
        tasks = np.eye(self._n_tasks, dtype=np.float32)
        depths = np.eye(self._n_depths + 1, dtype=np.float32)
        self._where = depths
        self._who_where = np.stack(
            [np.concatenate([tasks, np.tile(depth, (self._n_tasks, 1))], axis=1) for depth in depths]
        )
        n_ones = self._n_depths + 1 + self._n_tasks * self._n_depths
        self.state_space = _box(n_ones, self._n_tasks * engine.spec.n_features)
        self._begin()

    def reset(
        self, seed: int | np.integer[Any] | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[ByAgent, ByAgent]:
        """Begins the next episode, of a new game where there is a seed.

        Args:
            seed: None goes on with the game; a whole number begins it anew.
            options: ``split`` and ``keep_blocks``, see the head of this module.

        Returns:
            Observations and infos, by agent.

        Raises:
            UserError: a seed or an option is not as it should be; nothing has changed then.
        """
        observation = self.engine.reset(begin(self.engine, seed, options or {}))
        self.agents = self.possible_agents[:]
        self._begin()
        nothing = [0.0] * self._n_tasks
        return self._views(observation, dict.fromkeys(_NUMBERS, nothing))

    def step(self, actions: Mapping[str, Any]) -> tuple[ByAgent, ByAgent, ByAgent, ByAgent, ByAgent]:
        """Takes all agents one depth further; at the last depth the network learns.

        Args:
            actions: one for each agent, in any order.

        Returns:
            Observations, rewards, terminations, truncations and infos, by agent.

        Raises:
            UserError: no episode is under way, or an action is none; nothing has changed then.
        """
        chosen = self._checked(actions)
        step = self.engine.step(torch.tensor([chosen], device=self.engine.device))
        self._routes[:, step.observation.depth - 1] = step.action[0].cpu().numpy()
        self._illegal += step.illegal[0].cpu().numpy()
        rewards = [step.final_reward[0].tolist(), step.collaboration_reward[0].tolist()]
        outcome = [[0.0] * self._n_tasks] * 2
        if step.outcome is not None:
            outcome = [step.outcome.correct[0].float().mean(-1).tolist(), step.outcome.loss[0].mean(-1).tolist()]
            self._accuracy = outcome[0]
        numbers = dict(zip(_NUMBERS, rewards + outcome, strict=True))
        observations, infos = self._views(step.observation, numbers)
        return self._stepped(observations, step.reward[0].tolist(), step.terminated, infos)

    def state(self) -> npt.NDArray[np.float32]:
        """Everything that all agents see and have done, as one vector."""
        routes = (self._routes + np.float32(1)) / np.float32(self._n_actions)
        parts = [self._where[self._playing()], routes.ravel(), self._features.ravel()]
        return np.concatenate(parts, dtype=np.float32)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "agents": [], "_depth": None}  # as the engine's: an episode under way can't be copied

    # -- inside ------------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Forgets the last episode."""
        self._depth = None
        self._routes = np.full((self._n_tasks, self._n_depths), -1, np.int64)
        self._illegal = np.zeros(self._n_tasks, np.int64)
        self._features = np.zeros((self._n_tasks, 0), np.float32)
        self._accuracy = None  # known at the end

    def _playing(self) -> int:
        if self._depth is None:
            raise UserError("no episode is under way; call reset first")
        return self._depth

    def _drawing(self) -> Drawing:
        title = f"depth {self._playing()} of {self._n_depths}"
        if self._accuracy is not None:
            title += f", {sum(self._accuracy) / self._n_tasks:.0%} right"
        actions = action_names(self.engine.network.pass_action, self._n_actions)
        return Drawing(self._routes, list(self.engine.suite.task_names), actions, title)

    def _views(self, observation: Observation, numbers: Mapping[str, Sequence[float]]) -> tuple[ByAgent, ByAgent]:
        """Observations and infos by agent, all of them fresh: clients write into them."""
        self._depth = observation.depth
        seen = self._who_where[observation.depth].copy()
        if observation.features is not None:
            self._features = observation.features[0].cpu().numpy().copy()
            seen = np.concatenate([seen, self._features], axis=1)
        masks = observation.mask[0].cpu().numpy().astype(np.int8)
        columns = {**numbers, "illegal": self._illegal.tolist(), "route": self._routes.copy()}
        return self._by_agent(seen, masks, columns)


_NUMBERS = ("final_reward", "collaboration_reward", "accuracy", "loss")


def _box(n_ones: int, n_features: int) -> spaces.Box:
    """Numbers in [0, 1], then clipped features."""
    low, high = [0.0] * n_ones + [-FEATURE_BOUND] * n_features, [1.0] * n_ones + [FEATURE_BOUND] * n_features
    return spaces.Box(np.array(low, np.float32), np.array(high, np.float32), dtype=np.float32)
