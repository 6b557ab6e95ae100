"""Routing networks as a native TorchRL environment: tensors in and out, on the device, E episodes at once.

It is the game of :mod:`routing_marl.envs.routing_v0` with ``batch_size=[E]`` and one group, ``agents``::

    from routing_marl.envs.torchrl import RoutingEnv
    env = RoutingEnv(suite="digits", episodes=64, device="cuda")
    rollout = env.rollout(env.spec.n_depths)

| Key                         | Shape          | What                                                          |
|-----------------------------|----------------|---------------------------------------------------------------|
| `("agents", "observation")` | `[E, T, n]`    | as `routing_v0`: task, depth and features; float32            |
| `("agents", "action_mask")` | `[E, T, A]`    | True for legal actions                                        |
| `("agents", "action")`      | `[E, T]`       | `Categorical(A)`; an illegal action is replaced               |
| `("agents", "reward")`      | `[E, T, 1]`    | final and collaboration reward                                |
| `("agents", "info", ...)`   | `[E, T, 1]`    | the parts of the reward, `accuracy`, `loss`, `illegal`        |
| `"state"`                   | `[E, n_state]` | as `routing_v0.state()`                                       |
| `"done"`, `"terminated"`    | `[E, 1]`       | True at the last depth; all episodes begin and end together   |
| `("agents", "done")`, ...   | `[E, T, 1]`    | the same for each agent, as plain TorchRL losses want it      |

One environment is one network. Batch episodes with ``episodes``, not with ``ParallelEnv`` or ``SerialEnv``, which would
make a network each; and play held-out data on the same network with :meth:`RoutingEnv.evaluation`.
"""

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from routing_marl.engine import FEATURE_BOUND, Batch, RoutingEngine, SplitName, Step
from routing_marl.envs.building import build_engine
from routing_marl.errors import UserError
from routing_marl.minibatches import Minibatches
from routing_marl.protocol import Observation, as_vectors
from routing_marl.randomness import RandomStream

try:
    from tensordict import TensorDict, TensorDictBase
    from torchrl.data import Binary, Bounded, Categorical, Composite, Unbounded
    from torchrl.envs import EnvBase
except ImportError as error:
    raise UserError("this environment needs TorchRL: pip install 'routing-marl[torchrl]'") from error

__all__ = ["EvaluationEnv", "RoutingEnv"]

GROUP = "agents"
_INFOS = ("final_reward", "collaboration_reward", "accuracy", "loss", "illegal")


class RoutingEnv(EnvBase):  # type: ignore[misc]
    """E parallel episodes of one network; described at the head of this module.

    ``set_seed(s)`` begins the game anew with the next reset: weights, optimizers, data order and running averages, all
    from the seed. Without it, resets go on with the next minibatch and keep what was learned.

    Args:
        engine: the game, with empirical agreement; None to build it of ``game``.
        game: arguments of :func:`~routing_marl.envs.building.build_engine`, ``episodes`` among them.

    Attributes:
        engine: the game itself: network, suite, ``state_dict()``.
        group_map: the agents ``task_0 .. task_<T-1>`` of the one group.
    """

    batch_locked = True
    _next_seed: int | None

    def __init__(self, engine: RoutingEngine | None = None, **game: Any) -> None:
        if engine is not None and game:
            raise UserError(f"engine is given, and so is {', '.join(game)}; give the one or the others")
        engine = engine or build_engine(**game)
        if engine.config.agreement != "empirical":
            raise UserError("the engine has reported agreement; TorchRL policies don't report their probabilities")
        self._open(engine, engine.config.episodes)

    def evaluation(self, split: SplitName = "test", episodes: int | None = None) -> "EvaluationEnv":
        """A view of this very network that plays another split: nothing learns, whatever its client does.

        The view draws its own minibatches (its ``set_seed`` reseeds just them), and follows this environment when that
        begins anew.

        Args:
            split: what it plays.
            episodes: its batch size; None for that of this environment.
        """
        return EvaluationEnv(self, split, episodes or self.batch_size[0])

    # -- what TorchRL calls --------------------------------------------------------------------------------------------

    def _reset(self, tensordict: TensorDictBase | None = None, **_: Any) -> TensorDictBase:
        if tensordict is not None and "_reset" in tensordict and not tensordict["_reset"].all():
            raise UserError("a reset of some episodes only; all episodes begin and end together")
        observation = self._begin()
        self._routes.fill_(-1)
        seen = self._see(observation, None)
        seen.update(self._dones(False))
        return seen

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        action = tensordict[GROUP, "action"]
        step = self.engine.step(action)
        self._routes[..., step.observation.depth - 1] = step.action
        seen = self._see(step.observation, step)
        seen[GROUP, "reward"] = step.reward.unsqueeze(-1)
        seen.update(self._dones(step.terminated))
        return seen

    def _set_seed(self, seed: int | None) -> None:
        self._next_seed = seed

    # -- inside --------------------------------------------------------------------------------------------------------

    def _open(self, engine: RoutingEngine, n_episodes: int) -> None:
        super().__init__(device=engine.device, batch_size=torch.Size([n_episodes]))
        self.engine = engine
        self.group_map = {GROUP: [f"task_{task}" for task in range(engine.spec.n_tasks)]}
        self._next_seed = None
        game, agents = engine.spec, (n_episodes, engine.spec.n_tasks)
        self._routes = torch.full((*agents, game.n_depths), -1, device=engine.device)

        def floats(shape: tuple[int, ...], n_ones: int, n_features: int) -> Bounded:
            ones, features = torch.ones(n_ones), torch.full((n_features,), FEATURE_BOUND)
            low, high = torch.cat([0 * ones, -features]), torch.cat([ones, features])
            shape = (*shape, n_ones + n_features)
            return Bounded(low.expand(shape), high.expand(shape), shape, device=engine.device, dtype=torch.float32)

        def one_each(spec: Any, names: Iterable[str]) -> Composite:
            return Composite({name: spec.clone() for name in names}, shape=agents)

        number = Unbounded((*agents, 1), device=engine.device, dtype=torch.float32)
        flag = Categorical(2, (*agents, 1), device=engine.device, dtype=torch.bool)
        seen = Composite(
            {
                "observation": floats(agents, game.n_tasks + game.n_depths + 1, game.n_features),
                "action_mask": Binary(game.n_actions, (*agents, game.n_actions), engine.device, torch.bool),
                "info": one_each(number, _INFOS),
            },
            shape=agents,
        )
        n_ones = game.n_depths + 1 + game.n_tasks * game.n_depths
        state = floats((n_episodes,), n_ones, game.n_tasks * game.n_features)
        self.observation_spec = Composite({GROUP: seen, "state": state}, shape=(n_episodes,))
        action = Categorical(game.n_actions, agents, device=engine.device, dtype=torch.int64)
        self.action_spec = Composite({GROUP: Composite({"action": action}, shape=agents)}, shape=(n_episodes,))
        self.reward_spec = Composite({GROUP: one_each(number, ["reward"])}, shape=(n_episodes,))
        names = ("done", "terminated")
        over = {name: Categorical(2, (n_episodes, 1), device=engine.device, dtype=torch.bool) for name in names}
        self.done_spec = Composite({GROUP: one_each(flag, names), **over}, shape=(n_episodes,))

    def _begin(self) -> Observation:
        """The first observation of the next episodes."""
        if self._next_seed is not None:
            self.engine.start(self._next_seed)
            self._next_seed = None
        return self.engine.reset()

    def _see(self, observation: Observation, step: Step | None) -> TensorDict:
        where = torch.zeros(self.batch_size[0], self.engine.spec.n_depths + 1, device=self.device)
        where[:, observation.depth] = 1.0
        state = [where, ((self._routes + 1) / self.engine.spec.n_actions).flatten(1)]
        if observation.features is not None:
            state.append(observation.features.flatten(1))
        agents = observation.mask.shape[:2]
        seen = TensorDict(
            {
                "observation": as_vectors(self.engine.spec, observation),
                "action_mask": observation.mask.clone(),
                "info": TensorDict(self._infos(agents, step), agents, device=self.device),
            },
            agents,
            device=self.device,
        )
        return TensorDict({GROUP: seen, "state": torch.cat(state, 1)}, self.batch_size, device=self.device)

    def _infos(self, agents: torch.Size, step: Step | None) -> dict[str, Tensor]:
        infos = dict(zip(_INFOS, torch.zeros(len(_INFOS), *agents, 1, device=self.device), strict=True))
        if step is not None:
            known = {
                "final_reward": step.final_reward,
                "collaboration_reward": step.collaboration_reward,
                "illegal": step.illegal.float(),
            }
            if step.outcome is not None:
                known["accuracy"] = step.outcome.correct.float().mean(-1)
                known["loss"] = step.outcome.loss.mean(-1)
            infos |= {name: values.unsqueeze(-1) for name, values in known.items()}
        return infos

    def _dones(self, over: bool) -> TensorDict:
        n_episodes, n_tasks = self.batch_size[0], self.engine.spec.n_tasks
        flags = {n: torch.full((n_episodes, n_tasks, 1), over, device=self.device) for n in ("done", "terminated")}
        agents = TensorDict(flags, (n_episodes, n_tasks), device=self.device)
        flags = {name: torch.full((n_episodes, 1), over, device=self.device) for name in ("done", "terminated")}
        return TensorDict({GROUP: agents, **flags}, self.batch_size, device=self.device)


class EvaluationEnv(RoutingEnv):
    """Plays one split on the network of another environment; see :meth:`RoutingEnv.evaluation`."""

    def __init__(self, source: RoutingEnv, split: SplitName, n_episodes: int) -> None:
        self._open(source.engine, n_episodes)
        self.follow(source)
        self._split: SplitName = split
        self._stream = RandomStream()
        suite, instances = source.engine.suite, source.engine.config.instances
        self._minibatches = Minibatches(suite.split(split), n_episodes, instances, self._stream)

    def follow(self, source: RoutingEnv) -> None:
        """From the next reset on, this is a view of another environment, of the same game."""
        source.engine.state_dict()  # a game that has not begun would begin twice, as two networks
        self._source = source

    def _set_seed(self, seed: int | None) -> None:
        if seed is not None:
            self._stream.reseed(seed)
            self._minibatches.restart()

    def _begin(self) -> Observation:
        # A shallow copy: an episode of its own over the same network, which may be under way elsewhere.
        self.engine = copy.copy(self._source.engine)
        self._was_training = self.engine.network.training
        return self.engine.reset(self._split, Batch(*self._minibatches.draw()))

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        seen = super()._step(tensordict)
        if bool(seen["done"].all()):
            self.engine.network.train(self._was_training)
        return seen
