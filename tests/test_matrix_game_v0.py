"""The PettingZoo door to matrix games: the official checkers, then its contract, beside the engine to the bit."""

import copy
import pickle
from functools import partial
from typing import Any

import cloudpickle
import numpy as np
import pettingzoo
import pytest
import torch
from pettingzoo.test import api_test, parallel_api_test, parallel_seed_test, render_test, seed_test, state_test
from test_routing_v0 import assert_same, random_actions, untyped  # noqa: F401 (a fixture)

import routing_marl.envs
from routing_marl.envs import matrix_game_v0
from routing_marl.envs.matrix_game_v0 import MatrixGameParallelEnv, parallel_env
from routing_marl.errors import UserError
from routing_marl.matrix_engine import MatrixGameEngine
from routing_marl.matrix_games import GAMES
from routing_marl.protocol import as_vectors

UNEVEN = np.arange(12.0).reshape(2, 3, 2)
TABLE: dict[str, dict[str, Any]] = {
    **{name: {"game": name} for name in GAMES},
    "rounds": {"game": "shapley", "rounds": 4},
    "features": {"game": "three_player_pennies", "rounds": 3, "observation": "features"},
    "uneven": {"game": UNEVEN, "rounds": 2},
    "mask": {"game": UNEVEN, "rounds": 2, "observation": "features", "mask": "observation"},
}
every_row = pytest.mark.parametrize("arguments", TABLE.values(), ids=TABLE.keys())


def play(env: MatrixGameParallelEnv, episodes: int, **reset: Any) -> list[Any]:
    rng = np.random.default_rng(0)
    seen: list[Any] = []
    for _ in range(episodes):
        seen += [env.reset(**reset), env.state()]
        while env.agents:
            seen += [env.step(random_actions(env, rng)), env.state()]  # type: ignore[arg-type]
    return seen


@every_row
def test_parallel_api(arguments: dict[str, Any]) -> None:
    parallel_api_test(parallel_env(**arguments))


@pytest.mark.filterwarnings("ignore:Observation is not a NumPy array:UserWarning")
@pytest.mark.filterwarnings("ignore:Observation space for each agent probably should be:UserWarning")
@every_row
def test_aec_api(arguments: dict[str, Any]) -> None:
    api_test(matrix_game_v0.env(**arguments))


@every_row
def test_seed_and_state(arguments: dict[str, Any]) -> None:
    seed_test(partial(matrix_game_v0.env, **arguments))
    parallel_seed_test(partial(parallel_env, **arguments))
    state_test(matrix_game_v0.env(**arguments), parallel_env(**arguments))


@pytest.mark.parametrize("row", ["shapley", "rounds", "mask"])
def test_render(row: str) -> None:
    render_test(partial(matrix_game_v0.env, **TABLE[row]))


@every_row
def test_door_and_engine_are_equal_to_the_bit(arguments: dict[str, Any]) -> None:
    env = parallel_env(**arguments)
    features = arguments.get("observation") == "features"
    twin = MatrixGameEngine(arguments["game"], rounds=arguments.get("rounds", 1), features=features)
    masked = arguments.get("mask") == "observation"
    rng = np.random.default_rng(1)

    def check(observation: Any, seen: dict[str, Any], infos: dict[str, Any]) -> None:
        vectors = as_vectors(twin.spec, observation)[0].numpy()
        for player, agent in enumerate(env.possible_agents):
            shown, mask = seen[agent], (seen if masked else infos)[agent]["action_mask"]
            assert_same(shown["observation"] if masked else shown, vectors[player])
            assert_same(mask, observation.mask[0, player].numpy().astype(np.int8))
            assert env.observation_space(agent).contains(shown)
        assert env.state_space.contains(env.state())

    for episode in range(20):
        observation = twin.reset()
        check(observation, *env.reset(seed=episode))
        illegal = np.zeros(len(env.possible_agents), int)
        for depth in range(twin.spec.n_depths):
            actions = {agent: int(rng.integers(twin.spec.n_actions)) for agent in reversed(env.agents)}
            done = twin.step(torch.tensor([[actions[agent] for agent in env.possible_agents]]))
            seen, rewards, terminations, truncations, infos = env.step(actions)
            check(done.observation, seen, infos)
            illegal += done.illegal[0].numpy()
            assert list(rewards.values()) == done.reward[0].tolist()
            assert [info["route"][depth] for info in infos.values()] == done.action[0].tolist()
            assert [info["illegal"] for info in infos.values()] == illegal.tolist()
            assert set(terminations.values()) == {done.terminated} and not any(truncations.values())
        assert env.agents == []


def test_two_rounds_of_shapley_by_hand() -> None:
    env = parallel_env(game="shapley", rounds=2, observation="features", render_mode="ansi")
    seen, infos = env.reset()
    assert seen["player_1"].tolist() == [0, 1, 1, 0, 0, *[0] * 6]
    assert infos["player_0"]["action_mask"].tolist() == [1, 1, 1]
    seen, rewards, *_ = env.step({"player_0": np.int32(1), "player_1": np.array(2)})
    assert rewards == {"player_0": 0.0, "player_1": 1.0}
    assert seen["player_1"].tolist() == [0, 1, 0, 1, 0, *[0, 1, 0, 0, 0, 1]]
    assert env.state().tolist() == pytest.approx([0, 1, 0, 2 / 3, 0, 1, 0])
    seen, rewards, terminations, _, infos = env.step({"player_0": 2, "player_1": 2})
    assert rewards == {"player_0": 1.0, "player_1": 0.0} and all(terminations.values())
    assert infos["player_0"]["route"].tolist() == [1, 2]
    text = env.render()
    assert (
        isinstance(text, str)
        and "shapley, round 2 of 2" in text
        and text.splitlines()[2].split()
        == [
            "player_0",
            "1",
            "2",
        ]
    )


@every_row
def test_clients_may_write_into_what_they_get(arguments: dict[str, Any]) -> None:
    env, twin = parallel_env(**arguments), parallel_env(**arguments)
    rng = np.random.default_rng(0)
    for _ in range(3):
        for result, clean in zip((env.reset(), env.state()), (twin.reset(), twin.state()), strict=True):
            assert_same(result, clean)
        while env.agents:
            actions = random_actions(env, rng)  # type: ignore[arg-type]
            seen, *_, infos = result = env.step(actions)
            assert_same(result, twin.step(actions))
            for agent in env.possible_agents:
                for array in (seen[agent] if isinstance(seen[agent], dict) else {"": seen[agent]}).values():
                    array[...] = 9
                infos[agent]["route"][...] = 9
                infos[agent].clear()


@pytest.mark.parametrize(
    "clone",
    [
        copy.copy,
        copy.deepcopy,
        lambda e: pickle.loads(pickle.dumps(e)),
        lambda e: cloudpickle.loads(cloudpickle.dumps(e)),
    ],
)
def test_a_clone_is_a_game_of_its_own(clone: Any) -> None:
    env = parallel_env(game="shapley", rounds=3)
    env.reset()
    twin = clone(env)
    env.step(dict.fromkeys(env.agents, 1))
    assert_same(play(twin, 2), play(env, 2))


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        ({"player_0": 0}, "no action for player_1"),
        ({"player_0": 0, "player_1": 3}, "the action of player_1 is 3; it must be a whole number from 0 to 2"),
        ({"player_0": 0, "player_1": 0.5}, "the action of player_1 is 0.5"),
        ({"player_0": 0, "player_1": True}, "the action of player_1 is True"),
        ({"player_0": 0, "task_1": 0}, "actions for unknown agents 'task_1'"),
    ],
)
def test_what_is_no_action_raises_and_changes_nothing(actions: dict[str, Any], message: str) -> None:
    env = parallel_env(game="shapley")
    env.reset()
    before = env.state()
    with pytest.raises(UserError, match=message):
        env.step(actions)
    assert_same(before, env.state())
    env.step({"player_0": 0, "player_1": 0})
    with pytest.raises(UserError, match="call reset first"):
        env.step({"player_0": 0, "player_1": 0})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"game": "go"}, "game is 'go'; it must be one of"),
        ({"rounds": 0}, "rounds is 0"),
        ({"observation": "all"}, "observation is 'all'; it must be one of 'index', 'features'"),
        ({"mask": "nowhere"}, "mask is 'nowhere'"),
        ({"render_mode": "3d"}, "render_mode is '3d'"),
    ],
)
@pytest.mark.usefixtures("untyped")
def test_bad_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parallel_env(**arguments)


def test_bad_seeds_and_engines_are_refused() -> None:
    with pytest.raises(UserError, match="seed is -1"):
        parallel_env().reset(seed=-1)
    with pytest.raises(UserError, match="one at a time"):
        MatrixGameParallelEnv(MatrixGameEngine("shapley", n_games=2))


@pytest.mark.skipif(not hasattr(pettingzoo, "register"), reason="this PettingZoo has no registry")
def test_the_registry_makes_both_views() -> None:
    assert routing_marl.envs.__name__  # whose import registers
    parallel = pettingzoo.make("parallel", "routing_marl/matrix-game-v0", game="shapley")
    turns = pettingzoo.make("aec", "routing_marl/matrix-game-v0", game="shapley")
    for env in (parallel, turns):
        env.reset(seed=1)
        assert env.agents == ["player_0", "player_1"]
