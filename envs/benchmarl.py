"""Routing networks as BenchMARL tasks: one per suite, for its discrete-action algorithms (MAPPO, IPPO, QMIX, IQL, ...).

A task is one of :class:`RoutingTask`, with a config of your own or the default one::

    from routing_marl.envs.benchmarl import RoutingTask
    experiment = Experiment(task=RoutingTask.DIGITS.get_task(), algorithm_config=MappoConfig.get_from_yaml(), ...)
    experiment.run()
    engine = experiment.task.env.engine  # the network that was trained

The configuration holds arguments of :func:`routing_marl.envs.building.build_engine` (``suite`` may be a suite object or
a file; ``episodes``, ``seed`` and ``device`` are BenchMARL's business), and ``evaluation_split``. BenchMARL makes an
environment for evaluation and another for training; here both play the one network, and only the latter trains it.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from routing_marl.errors import UserError

try:
    from benchmarl.environments import Task, TaskClass
    from tensordict import TensorDictBase
    from torchrl.data import Composite
    from torchrl.envs import EnvBase
except ImportError as error:
    raise UserError("these tasks need BenchMARL: pip install 'routing-marl[benchmarl]'") from error

from routing_marl.envs.torchrl import GROUP, EvaluationEnv, RoutingEnv

__all__ = ["RoutingTask", "RoutingTaskClass"]

DEFAULTS: dict[str, Any] = {"instances": 8, "evaluation_split": "test"}


class RoutingTaskClass(TaskClass):  # type: ignore[misc]
    """A suite as BenchMARL wants to see it.

    Args:
        name: of the suite, in any case.
        config: see the head of this module; what is not given is as in ``DEFAULTS``.

    Attributes:
        env: the environment that the latest experiment of this task trains in; None before there is one.
    """

    def __init__(self, name: str, config: dict[str, Any] | None = None) -> None:
        super().__init__(name, {"suite": name.lower(), **DEFAULTS, **(config or {})})
        self.env: RoutingEnv | None = None
        self._evaluation: EvaluationEnv | None = None

    def get_env_fun(
        self, num_envs: int, continuous_actions: bool, seed: int | None, device: Any
    ) -> Callable[[], EnvBase]:
        """A function that makes the environment: for evaluation at the first call, for training at the second.

        An experiment calls twice, in this order. Both environments play one network.
        """
        game = {name: value for name, value in self.config.items() if name != "evaluation_split"}
        env = RoutingEnv(**game, episodes=num_envs, seed=seed, device=device)
        if self._evaluation is None:
            view = self._evaluation = env.evaluation(self.config["evaluation_split"])
            return lambda: view
        self._evaluation.follow(env)
        self._evaluation, self.env = None, env
        return lambda: env

    def supports_continuous_actions(self) -> bool:
        """No: a block is taken or not."""
        return False

    def supports_discrete_actions(self) -> bool:
        """Yes."""
        return True

    def max_steps(self, env: EnvBase) -> int:
        """The depth of the network."""
        return int(_routing(env).engine.spec.n_depths)

    def has_render(self, env: EnvBase) -> bool:
        """No; the PettingZoo door draws routes."""
        return False

    def group_map(self, env: EnvBase) -> dict[str, list[str]]:
        """All agents are one group."""
        return dict(_routing(env).group_map)

    def observation_spec(self, env: EnvBase) -> Composite:
        """Of what each agent sees, for one episode."""
        return _part(env, (GROUP, "observation"))

    def info_spec(self, env: EnvBase) -> Composite:
        """Of the parts of the reward, accuracy and loss."""
        return _part(env, (GROUP, "info"))

    def state_spec(self, env: EnvBase) -> Composite:
        """Of the state."""
        return _part(env, "state")

    def action_mask_spec(self, env: EnvBase) -> Composite:
        """Of the action masks."""
        return _part(env, (GROUP, "action_mask"))

    def action_spec(self, env: EnvBase) -> Composite:
        """Of the actions."""
        return env.full_action_spec_unbatched

    @staticmethod
    def env_name() -> str:
        """The name that stands in BenchMARL's logs."""
        return "routing_marl"

    @staticmethod
    def log_info(batch: TensorDictBase) -> dict[str, float]:
        """Accuracy and loss of the finished episodes."""
        over = batch["next", "done"].squeeze(-1)
        infos = batch["next", GROUP, "info"]
        return {f"collection/info/{name}": float(infos[name][over].mean()) for name in ("accuracy", "loss")}

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "env": None, "_evaluation": None}  # BenchMARL saves tasks; a network is no setting


class RoutingTask(Task):  # type: ignore[misc]
    """The built-in suites; their data is looked for as everywhere else."""

    DIGITS = None
    MNIST_MTL = None
    CIFAR100_MTL = None
    FASHION_MTL = None
    MINI_IMAGENET_MTL = None
    OMNIGLOT_MTL = None
    OMNIGLOT_MTL_105 = None
    MNIST_ROTATED = None
    CLUSTERS = None
    DIGIT_CLUSTERS = None

    @staticmethod
    def associated_class() -> type[RoutingTaskClass]:
        """What a member becomes."""
        return RoutingTaskClass

    def get_from_yaml(self, path: str | None = None) -> RoutingTaskClass:
        """The task with the config of a file; without one, the default config."""
        if path is None:
            return RoutingTaskClass(self.name)
        import yaml

        return RoutingTaskClass(self.name, yaml.safe_load(Path(path).read_text()))


def _routing(env: EnvBase) -> RoutingEnv:
    """Our environment below BenchMARL's transforms."""
    while not isinstance(env, RoutingEnv):
        env = env.base_env
    return env


def _part(env: EnvBase, key: Any) -> Composite:
    """One entry of the observations' spec, of one episode, in a composite of its own."""
    whole = env.full_observation_spec_unbatched
    part = whole.empty()
    if isinstance(key, tuple):
        part[key[0]] = whole[key[0]].empty()
    part[key] = whole[key].clone()
    return part
