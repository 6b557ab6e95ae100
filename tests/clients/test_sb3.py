"""Stable-Baselines3: PPO and MaskablePPO on the Gymnasium door, and PPO through SuperSuit on the PettingZoo door."""

import pytest
from toys import GAME, assert_learned, need, opposites

need("stable_baselines3", "sb3_contrib")
pytestmark = [pytest.mark.client, pytest.mark.filterwarnings("ignore")]

import gymnasium  # noqa: E402
import numpy as np  # noqa: E402
from sb3_contrib import MaskablePPO  # noqa: E402
from stable_baselines3 import PPO  # noqa: E402
from stable_baselines3.common.env_checker import check_env  # noqa: E402
from stable_baselines3.common.utils import set_random_seed  # noqa: E402

import routing_marl.envs  # noqa: E402, F401
from routing_marl.agents.adapters import SB3Agent  # noqa: E402
from routing_marl.envs import routing_v0  # noqa: E402
from routing_marl.envs.sb3 import RoutingVecEnv  # noqa: E402

SUITE = opposites()
SETTINGS = {"n_epochs": 8, "learning_rate": 3e-3, "gamma": 1.0, "seed": 0, "device": "cpu", "ent_coef": 0.01}


def test_sb3_checks_it() -> None:
    check_env(gymnasium.make("routing_marl/SingleAgentRouting-v0", suite=SUITE).unwrapped)


@pytest.mark.parametrize("algorithm", [PPO, MaskablePPO])
def test_it_learns_on_the_gymnasium_door(algorithm: type[PPO]) -> None:
    env = gymnasium.make("routing_marl/SingleAgentRouting-v0", suite=SUITE, **GAME)
    model = algorithm("MlpPolicy", env, n_steps=128, batch_size=64, **SETTINGS).learn(768)
    engine = env.unwrapped.engine
    assert_learned(engine, SB3Agent(engine.spec, model))


@pytest.mark.parametrize("algorithm", [PPO, MaskablePPO])
def test_it_learns_on_the_native_batch(algorithm: type[PPO]) -> None:
    envs = RoutingVecEnv(4, suite=SUITE, **GAME)
    model = algorithm("MlpPolicy", envs, n_steps=32, batch_size=64, **SETTINGS).learn(1536)
    assert_learned(envs.engine, SB3Agent(envs.engine.spec, model))


def test_the_native_batch_reports_its_episodes() -> None:
    envs = RoutingVecEnv(4, suite=SUITE, **GAME)
    envs.seed(3)
    seen = envs.reset()
    assert seen.shape == (4, *envs.observation_space.shape)
    _, _, done, _ = envs.step(np.zeros(4, np.int64))
    seen, rewards, done, infos = envs.step(np.zeros(4, np.int64))
    assert done.all()
    assert rewards.dtype == np.float32
    assert [info["terminal_observation"].shape for info in infos] == [seen.shape[1:]] * 4
    assert all(info["loss"] > 0 for info in infos)
    assert np.array(envs.env_method("action_masks")).shape == (4, 3)


def test_it_learns_through_supersuit() -> None:
    need("supersuit")
    import supersuit

    set_random_seed(0)
    env = routing_v0.parallel_env(suite=SUITE, **GAME, seed=0)
    # One environment, one network: no concat_vec_envs of more than one; each agent is a sub-environment.
    venv = supersuit.pettingzoo_env_to_vec_env_v1(env)
    venv = supersuit.concat_vec_envs_v1(venv, 1, num_cpus=0, base_class="stable_baselines3")
    model = PPO("MlpPolicy", venv, n_steps=64, batch_size=64, **{**SETTINGS, "seed": None}).learn(1600)
    engine = venv.unwrapped.vec_envs[0].par_env.unwrapped.engine
    assert engine.updates > 250  # SuperSuit trains a copy: `env` itself has not played
    assert_learned(engine, SB3Agent(engine.spec, model))
