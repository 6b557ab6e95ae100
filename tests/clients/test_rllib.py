"""RLlib, new API stack: PPO on the PettingZoo door, in a local env runner, so that there is one network."""

import os

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
from ray.rllib.env.wrappers.pettingzoo_env import ParallelPettingZooEnv  # noqa: E402
from ray.tune.registry import register_env  # noqa: E402

from routing_marl.agents.adapters import CallablesAgent  # noqa: E402
from routing_marl.envs import routing_v0  # noqa: E402


def test_ppo_learns() -> None:
    suite = opposites()
    register_env("routing", lambda _: ParallelPettingZooEnv(routing_v0.parallel_env(suite=suite, **GAME)))
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, object_store_memory=100_000_000)
    config = (
        PPOConfig()
        .environment("routing")
        .env_runners(num_env_runners=0)  # local; a remote one would train a copy
        .learners(num_learners=0)
        .multi_agent(policies={"shared"}, policy_mapping_fn=lambda agent, *_, **__: "shared")
        .rl_module(model_config=DefaultModelConfig(fcnet_hiddens=[32], vf_share_layers=False))
        .training(gamma=1.0, lr=3e-3, train_batch_size_per_learner=256, minibatch_size=64, num_epochs=6)
        .debugging(seed=0)
    )
    algorithm = config.build_algo()
    try:
        for _ in range(8):
            algorithm.train()
        module = algorithm.get_module("shared")
        engine = algorithm.env_runner.env.envs[0].unwrapped.par_env.engine  # the very network that was trained
    finally:
        algorithm.stop()
        ray.shutdown()

    def act(observation: np.ndarray, mask: np.ndarray) -> int:
        logits = module.forward_inference({"obs": torch.from_numpy(observation)[None]})["action_dist_inputs"][0]
        return int(torch.where(torch.from_numpy(mask) > 0, logits, -torch.inf).argmax())

    assert engine.updates > 256
    assert_learned(engine, CallablesAgent(engine.spec, {"task_0": act, "task_1": act}))
