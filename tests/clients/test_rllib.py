"""RLlib, new API stack: PPO in a local env runner, so that there is one network; with and without action masks."""

import os
from collections.abc import Iterator
from typing import Any

import pytest
from toys import GAME, assert_learned, need, opposites

os.environ.setdefault("OMP_NUM_THREADS", "1")
need("ray", "ray.rllib.algorithms.ppo", "ray.rllib.env.wrappers.pettingzoo_env")
pytestmark = [pytest.mark.client, pytest.mark.filterwarnings("ignore")]

import numpy as np  # noqa: E402
import ray  # noqa: E402
import torch  # noqa: E402
from ray.rllib.algorithms.ppo import PPOConfig  # noqa: E402
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig  # noqa: E402
from ray.rllib.core.rl_module.rl_module import RLModuleSpec  # noqa: E402
from ray.rllib.env.wrappers.pettingzoo_env import ParallelPettingZooEnv  # noqa: E402
from ray.rllib.examples.rl_modules.classes.action_masking_rlm import ActionMaskingTorchRLModule  # noqa: E402
from ray.tune.registry import register_env  # noqa: E402

from routing_marl.agents.adapters import CallablesAgent  # noqa: E402
from routing_marl.engine import RoutingEngine  # noqa: E402
from routing_marl.envs import routing_v0  # noqa: E402
from routing_marl.envs.rllib import RoutingMultiAgentEnv  # noqa: E402

SUITE = opposites()


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, object_store_memory=100_000_000)
    yield
    ray.shutdown()


def train(make_env: Any, spec: RLModuleSpec, n_iterations: int) -> tuple[Any, Any]:
    """The trained module, and the environment that was played."""
    register_env("routing", lambda _: make_env())
    config = (
        PPOConfig()
        .environment("routing")
        .env_runners(num_env_runners=0)  # local; a remote one would train a copy
        .learners(num_learners=0)
        .multi_agent(policies={"shared"}, policy_mapping_fn=lambda agent, *_, **__: "shared")
        .rl_module(rl_module_spec=spec)
        .training(gamma=1.0, lr=3e-3, train_batch_size_per_learner=256, minibatch_size=64, num_epochs=6)
        .debugging(seed=0)
    )
    algorithm = config.build_algo()
    for _ in range(n_iterations):
        algorithm.train()
    module, env = algorithm.get_module("shared"), algorithm.env_runner.env.envs[0].unwrapped
    algorithm.stop()
    return module, env


def assert_module_learned(module: Any, engine: RoutingEngine, masked: bool) -> None:
    def act(observation: np.ndarray, mask: np.ndarray) -> int:
        seen, legal = torch.from_numpy(observation)[None], torch.from_numpy(mask)[None]
        batch = {"obs": {"observations": seen, "action_mask": legal} if masked else seen}
        logits = module.forward_inference(batch)["action_dist_inputs"]
        return int((logits if masked else torch.where(legal > 0, logits, -torch.inf)).argmax())

    assert engine.updates > 256
    assert_learned(engine, CallablesAgent(engine.spec, {"task_0": act, "task_1": act}))


MODEL = DefaultModelConfig(fcnet_hiddens=[32], vf_share_layers=False)


@pytest.mark.usefixtures("local_ray")
def test_ppo_learns() -> None:
    def make() -> ParallelPettingZooEnv:
        return ParallelPettingZooEnv(routing_v0.parallel_env(suite=SUITE, **GAME))

    module, env = train(make, RLModuleSpec(model_config=MODEL), 4)
    assert_module_learned(module, env.par_env.engine, masked=False)


@pytest.mark.usefixtures("local_ray")
def test_ppo_learns_with_rllibs_own_masks() -> None:
    spec = RLModuleSpec(module_class=ActionMaskingTorchRLModule, model_config=MODEL)
    module, env = train(lambda: RoutingMultiAgentEnv(suite=SUITE, **GAME), spec, 3)
    assert_module_learned(module, env.engine, masked=True)
    legal = env.engine.spec.legal
    assert not legal.all()
    for depth in range(env.engine.spec.n_depths):
        seen = torch.cat([torch.eye(2)[0], torch.eye(3)[depth]])  # of task_0
        batch = {"obs": {"observations": seen[None], "action_mask": legal[depth][None].to(torch.int8)}}
        chances = module.forward_exploration(batch)["action_dist_inputs"].softmax(-1)[0]
        assert torch.equal(chances > 0, legal[depth])


def test_the_masked_environment_is_the_pettingzoo_door_in_other_words() -> None:
    env, door = RoutingMultiAgentEnv(suite=SUITE, **GAME), routing_v0.parallel_env(suite=SUITE, **GAME)
    (seen, _), (plain, infos) = env.reset(seed=3, options={}), door.reset(seed=3)
    while door.agents:
        for agent in door.possible_agents:
            assert env.observation_space[agent].contains(seen[agent])
            assert np.array_equal(seen[agent]["observations"], plain[agent])
            assert np.array_equal(seen[agent]["action_mask"], infos[agent]["action_mask"])
        seen, paid, over, _, _ = env.step({"task_1": 1, "task_0": 0})
        plain, rewards, terminations, _, infos = door.step({"task_0": 0, "task_1": 1})
        assert paid == rewards
        assert over == {**terminations, "__all__": not door.agents}
