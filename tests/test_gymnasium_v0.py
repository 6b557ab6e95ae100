"""The Gymnasium door: the official checker, the vector environment's clauses, and parity with the engine."""

import copy
import importlib
import pickle
from collections.abc import Iterator
from typing import Any

import cloudpickle
import gymnasium
import jaxtyping
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

import routing_marl.envs
from routing_marl.envs.gymnasium_v0 import SingleAgentRouting, SingleAgentRoutingVectorEnv
from routing_marl.errors import UserError
from routing_marl.suites import TaskSuite

ID = "routing_marl/SingleAgentRouting-v0"
N_TASKS = 3


def random_suite() -> TaskSuite:
    rng = np.random.default_rng(0)

    def tasks(first: int, n: int) -> dict[str, Any]:
        return {f"task{t}": (np.arange(first, first + n), rng.permutation(np.arange(n) % 2)) for t in range(N_TASKS)}

    images = rng.integers(0, 256, (40, 8, 8), dtype=np.uint8)
    return TaskSuite.from_arrays("random", images, tasks(0, 24), tasks(24, 16))


SUITE = random_suite()
GAMES: dict[str, dict[str, Any]] = {
    "index": {},
    "features": {"observation": "features", "instances": 3},
    "stop": {"recursive": True, "allow_stop": True, "depth": 4, "blocks": 2},
}
every_game = pytest.mark.parametrize("game", GAMES.values(), ids=GAMES.keys())


@pytest.fixture
def untyped() -> Iterator[None]:
    """Lets wrong types through, as without the tests' type checker."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def single(**arguments: Any) -> SingleAgentRouting:
    env = gymnasium.make(ID, suite=SUITE, **arguments).unwrapped
    assert isinstance(env, SingleAgentRouting)
    return env


def batch(num_envs: int = 6, **arguments: Any) -> SingleAgentRoutingVectorEnv:
    envs = gymnasium.make_vec(ID, num_envs=num_envs, suite=SUITE, **arguments)
    assert isinstance(envs, SingleAgentRoutingVectorEnv)
    return envs


def play(env: SingleAgentRouting, episodes: int, **reset: Any) -> list[Any]:
    rng, seen = np.random.default_rng(0), []
    for _ in range(episodes):
        seen.append(env.reset(**reset))
        while True:
            seen.append(env.step(rng.integers(env.action_space.n)))
            if seen[-1][2]:
                break
        reset = {}
    return seen


@every_game
def test_gymnasium_checks_it(game: dict[str, Any]) -> None:
    check_env(single(**game))


@every_game
def test_episodes_from_one_seed_are_the_same_to_the_bit(game: dict[str, Any]) -> None:
    one, other = single(**game), single(**game, seed=7)
    assert repr(play(one, 5, seed=3)) == repr(play(other, 5, seed=3))
    for name, tensor in one.engine.network.state_dict().items():
        assert torch.equal(tensor, other.engine.network.state_dict()[name])


def test_tasks_take_turns_and_options_choose_one() -> None:
    env = single()
    assert [env.reset()[1]["task"] for _ in range(4)] == [0, 1, 2, 0]
    observation, info = env.reset(options={"task": 2})
    assert (info["task"], observation[:N_TASKS].tolist()) == (2, [0, 0, 1])
    assert env.reset()[1]["task"] == 0
    assert env.reset(seed=1)[1]["task"] == 0


def test_evaluation_leaves_training_alone() -> None:
    env, twin = single(), single()
    play(env, 4, seed=0)
    play(twin, 4, seed=0)
    weights = copy.deepcopy(env.engine.network.state_dict())
    play(env, 1, options={"split": "test"})
    assert all(torch.equal(weights[name], tensor) for name, tensor in env.engine.network.state_dict().items())
    assert repr(play(env, 4)) == repr(play(twin, 4))


@every_game
def test_the_mask_is_that_of_the_game(game: dict[str, Any]) -> None:
    env = single(**game)
    _, info = env.reset()
    for depth in range(env.engine.spec.n_depths):
        assert env.action_masks().tolist() == info["action_mask"].astype(bool).tolist()
        assert env.action_masks().tolist() == env.engine.spec.legal[depth].tolist()
        _, _, _, _, info = env.step(np.int64(0))


def test_an_illegal_action_is_counted_and_what_is_none_changes_nothing() -> None:
    env = single(blocks=[2, 1, 2])
    env.reset(seed=0)
    env.step(np.int32(0))
    assert env.step(1)[4]["illegal"] == 1
    for wrong in (3, -1, True, 0.0, "0", None):
        with pytest.raises(UserError, match="the action is"):
            env.step(wrong)
    assert env.step(0)[2] is True
    with pytest.raises(UserError, match="call reset first"):
        env.step(0)


@pytest.mark.parametrize("mode", ["ansi", "rgb_array"])
def test_it_draws_the_routes(mode: str) -> None:
    env = single(render_mode=mode)
    env.reset()
    picture = env.render()
    assert "task0" in picture if mode == "ansi" else picture.shape[2] == 3


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda e: pickle.loads(pickle.dumps(e)), cloudpickle.loads])
def test_unseeded_clones_are_games_of_their_own(clone: Any) -> None:
    for env in (single(), batch()):
        twin = clone(cloudpickle.dumps(env) if clone is cloudpickle.loads else env)
        env.reset()
        twin.reset()
        weights = twin.engine.network.state_dict()
        assert any(not torch.equal(weights[name], t) for name, t in env.engine.network.state_dict().items())


@every_game
@pytest.mark.parametrize("autoreset", ["next_step", "same_step"])
def test_the_batch_is_the_engine_to_the_bit(game: dict[str, Any], autoreset: str) -> None:
    envs = batch(autoreset=autoreset, **game)
    twin = copy.deepcopy(envs.engine)
    seen, info = envs.reset(seed=5)
    twin.start(5)
    observation, rng = twin.reset(), np.random.default_rng(0)
    n_depths, total = twin.spec.n_depths, 0
    for depth in list(range(n_depths)) * 4:
        assert seen.shape == (6, *envs.single_observation_space.shape)
        assert envs.observation_space.contains(seen)
        assert np.array_equal(info["action_mask"].astype(bool), observation.mask.flatten(0, 1).numpy())
        actions = rng.integers(envs.single_action_space.n, size=6).astype(np.int32)
        step = twin.step(torch.from_numpy(actions).view(2, N_TASKS))
        seen, reward, terminated, truncated, info = envs.step(actions)
        observation = step.observation
        assert np.array_equal(reward, step.reward.flatten().double().numpy())
        assert terminated.tolist() == [depth + 1 == n_depths] * 6
        assert not truncated.any()
        if step.terminated:
            observation = twin.reset()
            total += 1
            if autoreset == "next_step":
                seen, reward, terminated, _, info = envs.step(actions)
                assert not (reward.any() or terminated.any())
            else:
                assert info["final_obs"][0, N_TASKS + n_depths] == 1
                assert info["_final_obs"].all()
                assert (info["final_info"]["loss"] > 0).all()
        assert seen[0, N_TASKS + observation.depth] == 1
    assert twin.updates == envs.engine.updates == total


def test_sub_environments_are_tasks_of_one_network() -> None:
    envs = batch()
    seen, info = envs.reset()
    assert info["task"].tolist() == [0, 1, 2, 0, 1, 2]
    assert seen[:, :N_TASKS].argmax(1).tolist() == info["task"].tolist()
    assert envs.engine.config.episodes == 2
    assert envs.action_masks().shape == (6, envs.single_action_space.n)


def test_it_runs_under_gymnasiums_statistics() -> None:
    envs = gymnasium.wrappers.vector.RecordEpisodeStatistics(batch())
    envs.reset(seed=0)
    for _ in range(3):
        _, _, _, _, info = envs.step(np.zeros(6, np.int64))
    assert info["episode"]["l"].tolist() == [3] * 6


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: batch(4), "multiple of 3"),
        (lambda: batch(autoreset="never"), "autoreset is 'never'"),
        (lambda: batch().reset(seed=[1] * 6), "one network"),
        (lambda: batch().reset(options={"reset_mask": np.arange(6) < 3}), "begin and end together"),
        (lambda: batch().step(np.zeros(6, np.int64)), "call reset first"),
        (lambda: single().reset(options={"task": 3}), "from 0 to 2"),
        (lambda: single().reset(options={"split": "tst"}), "tst"),
        (lambda: single(observation="pixels"), "observation is 'pixels'"),
        (lambda: SingleAgentRouting(suite=SUITE, render_mode="human"), "render_mode is 'human'"),
    ],
)
def test_bad_input_is_one_line(call: Any, message: str, untyped: None) -> None:
    with pytest.raises(UserError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("wrong", [np.zeros(5, np.int64), np.zeros(6), np.full(6, 9), np.full(6, -1)])
def test_a_batch_of_no_actions_changes_nothing(wrong: Any) -> None:
    envs = batch()
    envs.reset()
    with pytest.raises(UserError, match="action"):
        envs.step(wrong)
    assert not envs.step(np.zeros(6, np.int64))[2].any()


def test_the_package_may_be_loaded_twice() -> None:
    importlib.reload(routing_marl.envs)
