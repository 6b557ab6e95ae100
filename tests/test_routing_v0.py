"""The PettingZoo door: the official checkers on a table of arguments, then every clause of its contract."""

import copy
import importlib
import inspect
import pickle
import re
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise, product
from types import SimpleNamespace
from typing import Any

import cloudpickle
import jaxtyping
import numpy as np
import pettingzoo
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete
from pettingzoo.test import (
    api_test,
    max_cycles_test,
    parallel_api_test,
    parallel_seed_test,
    render_test,
    seed_test,
    state_test,
)

import routing_marl.envs
from routing_marl.config import EngineConfig
from routing_marl.engine import RoutingEngine
from routing_marl.envs import routing_v0
from routing_marl.envs.routing_v0 import RoutingParallelEnv, parallel_env
from routing_marl.errors import UserError
from routing_marl.network import routing_all_fc
from routing_marl.suites import TaskSuite

N_TASKS, N_IMAGES = 3, 40


def random_suite() -> TaskSuite:
    rng = np.random.default_rng(0)
    names = [f"task{t}" for t in range(N_TASKS)]

    def tasks(first: int, n: int) -> dict[str, Any]:  # of 2, 3 and 4 classes
        labels = {name: np.arange(n) % (2 + t) for t, name in enumerate(names)}
        return {name: (np.arange(first, first + n), rng.permutation(label)) for name, label in labels.items()}

    images = rng.integers(0, 256, (N_IMAGES, 8, 8), dtype=np.uint8)
    return TaskSuite.from_arrays("random", images, tasks(0, 24), tasks(24, 16))


SUITE = random_suite()
NETWORKS: dict[str, dict[str, Any]] = {
    "layered": {},
    "few_blocks": {"blocks": [2, 1, 2], "history": 5, "rho": 1.0},
    "recursive_stop": {"recursive": True, "allow_stop": True, "depth": 4, "blocks": 2},
    "own_network": {"network": partial(routing_all_fc, depth=2, hidden=8, blocks=4)},
}
SEEN = tuple(product(("index", "features"), ("info", "observation"), (1, 3)))
TABLE = {
    f"{network}-{observation}-{mask}-{instances}": {
        "suite": SUITE,
        "observation": observation,
        "mask": mask,
        "instances": instances,
        **NETWORKS[network],
    }
    for network in NETWORKS
    for observation, mask, instances in (SEEN if network != "own_network" else SEEN[-1:])
}
SOME = ("layered-index-info-1", "recursive_stop-features-observation-3")
every_row = pytest.mark.parametrize("arguments", TABLE.values(), ids=TABLE.keys())
some_rows = pytest.mark.parametrize("arguments", [TABLE[name] for name in SOME], ids=SOME)

make = partial(parallel_env, suite=SUITE)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def untyped() -> Iterator[None]:
    """Lets wrong types through, as without the tests' type checker."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def assert_same(one: Any, other: Any) -> None:
    """Equal in structure, types and bits."""
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            assert_same(left, right)
    elif isinstance(one, np.ndarray):
        assert one.dtype == other.dtype
        assert np.array_equal(one, other)
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    else:
        assert one == other


def differ(one: RoutingParallelEnv, other: RoutingParallelEnv) -> bool:
    return any(not torch.equal(a, b) for a, b in zip(weights(one), weights(other), strict=True))


def weights(env: RoutingParallelEnv) -> list[torch.Tensor]:
    return [tensor.clone() for tensor in env.engine.network.state_dict().values()]


def saved(env: RoutingParallelEnv) -> dict[str, Any]:
    """All that the game has learned and drawn, as it is now."""
    return copy.deepcopy(env.engine.state_dict())


def random_actions(env: RoutingParallelEnv, rng: np.random.Generator) -> dict[str, int]:
    return {agent: int(rng.integers(env.engine.spec.n_actions)) for agent in env.possible_agents}


def play(env: RoutingParallelEnv, episodes: int, rng_seed: int = 0, **reset: Any) -> list[Any]:
    """All that the client sees over some episodes of random actions, legal and illegal."""
    rng = np.random.default_rng(rng_seed)
    seen: list[Any] = []
    for _ in range(episodes):
        seen += [env.reset(**reset), env.state()]
        while env.agents:
            seen += [env.step(random_actions(env, rng)), env.state()]
        reset = {}
    return seen


# -- PettingZoo's own checkers ---------------------------------------------------------------------------------------


@every_row
def test_parallel_api(arguments: dict[str, Any]) -> None:
    parallel_api_test(parallel_env(**arguments))


# The checker wants arrays, but for PettingZoo's own games with a mask in the observation, which it knows by name.
@pytest.mark.filterwarnings("ignore:Observation is not a NumPy array:UserWarning")
@pytest.mark.filterwarnings("ignore:Observation space for each agent probably should be:UserWarning")
@every_row
def test_aec_api(arguments: dict[str, Any]) -> None:
    api_test(routing_v0.env(**arguments))


@every_row
def test_seed(arguments: dict[str, Any]) -> None:
    seed_test(partial(routing_v0.env, **arguments))
    parallel_seed_test(partial(parallel_env, **arguments))


@every_row
def test_state(arguments: dict[str, Any]) -> None:
    state_test(routing_v0.env(**arguments), parallel_env(**arguments))


@some_rows
def test_render(arguments: dict[str, Any]) -> None:
    render_test(partial(routing_v0.env, **arguments))


@pytest.mark.parametrize("recursive", [False, True])
def test_an_episode_lasts_as_long_as_the_network_is_deep(recursive: bool) -> None:
    def with_depth(make: Callable[..., Any]) -> Callable[..., Any]:
        return lambda max_cycles: make(suite=SUITE, depth=max_cycles, recursive=recursive)

    max_cycles_test(SimpleNamespace(parallel_env=with_depth(parallel_env), env=with_depth(routing_v0.env)))


# -- determinism and copies ------------------------------------------------------------------------------------------


@every_row
def test_five_episodes_from_one_seed_are_the_same_to_the_bit(arguments: dict[str, Any]) -> None:
    one, other = parallel_env(**arguments), parallel_env(**arguments)
    seen = play(one, 5, seed=3)
    torch.manual_seed(99)  # noise in the global generators
    np.random.seed(99)  # noqa: NPY002
    assert_same(seen, play(other, 5, seed=3))
    assert_same(saved(one), saved(other))


@some_rows
def test_door_and_engine_are_equal_to_the_bit_over_200_episodes(arguments: dict[str, Any]) -> None:
    env, twin = parallel_env(**arguments), parallel_env(**arguments).engine
    rng = np.random.default_rng(1)
    depths = np.eye(twin.spec.n_depths + 1, dtype=np.float32)

    def check(observation: Any, seen: dict[str, Any], infos: dict[str, Any]) -> None:
        for task, agent in enumerate(env.possible_agents):
            shown = seen[agent]
            mask = (shown if arguments["mask"] == "observation" else infos[agent])["action_mask"]
            vector = shown["observation"] if arguments["mask"] == "observation" else shown
            expected = [np.eye(N_TASKS, dtype=np.float32)[task], depths[observation.depth]]
            if observation.features is not None:
                expected.append(observation.features[0, task].numpy())
            assert_same(vector, np.concatenate(expected))
            assert_same(mask, observation.mask[0, task].numpy().astype(np.int8))

    twin.start(5)
    for episode in range(200):
        observation = twin.reset()
        check(observation, *env.reset(seed=None if episode else 5))
        for depth in range(twin.spec.n_depths):
            actions = random_actions(env, rng)
            step = twin.step(torch.tensor([list(actions.values())]))
            seen, rewards, terminations, _, infos = env.step(actions)
            check(step.observation, seen, infos)
            columns = {name: [info[name] for info in infos.values()] for name in infos["task_0"]}
            assert list(rewards.values()) == step.reward[0].tolist()
            assert columns["final_reward"] == step.final_reward[0].tolist()
            assert columns["collaboration_reward"] == step.collaboration_reward[0].tolist()
            assert [route[depth] for route in columns["route"]] == step.action[0].tolist()
            assert all(terminations.values()) == step.terminated
        assert step.outcome is not None
        assert columns["accuracy"] == step.outcome.correct[0].float().mean(-1).tolist()
        assert columns["loss"] == step.outcome.loss[0].mean(-1).tolist()
    assert_same(saved(env), copy.deepcopy(twin.state_dict()))


CLONE = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda env: pickle.loads(pickle.dumps(env)),
    "cloudpickle": lambda env: cloudpickle.loads(cloudpickle.dumps(env)),
}
every_clone = pytest.mark.parametrize("clone", CLONE.values(), ids=CLONE.keys())


@every_clone
def test_unseeded_clones_are_games_of_their_own(clone: Callable[[Any], Any]) -> None:
    env = make()
    twin = clone(env)
    env.reset()
    twin.reset()
    assert differ(env, twin)
    orders = [game.engine.state_dict()["orders"]["train"]["order"] for game in (env, twin)]
    assert not torch.equal(*orders)


@every_clone
def test_seeded_clones_are_the_same_game(clone: Callable[[Any], Any]) -> None:
    env = make(seed=4)
    twin = clone(env)
    assert_same(play(env, 2), play(twin, 2))


@every_clone
def test_a_clone_goes_on_to_the_bit_and_on_its_own(clone: Callable[[Any], Any]) -> None:
    env = make(observation="features", instances=2)
    play(env, 3)
    twin = clone(env)
    seen = play(env, 5, rng_seed=1)
    assert_same(seen, play(twin, 5, rng_seed=1))
    assert_same(saved(env), saved(twin))


@pytest.mark.parametrize("clone", [copy.copy, copy.deepcopy])
def test_copies_share_the_images(clone: Callable[[Any], Any]) -> None:
    env = make()
    env.reset()
    twin = clone(env)
    assert twin.engine.suite.images.data_ptr() == env.engine.suite.images.data_ptr()
    assert twin.engine.network is not env.engine.network


@every_clone
def test_a_clone_made_within_an_episode_begins_with_a_reset(clone: Callable[[Any], Any]) -> None:
    env = make(seed=0)
    env.reset()
    env.step(dict.fromkeys(env.agents, 0))
    twin = clone(env)
    assert twin.agents == []
    for call in (twin.state, partial(twin.step, dict.fromkeys(env.agents, 0))):
        with pytest.raises(UserError, match="call reset first"):
            call()
    twin.reset()
    env.step(dict.fromkeys(env.agents, 0))


def test_an_aec_game_can_be_copied() -> None:
    env = routing_v0.env(suite=SUITE)
    twin = pickle.loads(pickle.dumps(copy.deepcopy(env)))
    env.reset()
    twin.reset()
    assert differ(env.unwrapped, twin.unwrapped)


def test_the_global_generators_are_left_alone() -> None:
    before, before_numpy = torch.get_rng_state(), np.random.get_state()[1]  # noqa: NPY002
    play(make(), 1, seed=0)
    assert torch.equal(before, torch.get_rng_state())
    assert np.array_equal(before_numpy, np.random.get_state()[1])  # noqa: NPY002


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_caller_may_have_gradients_off(mode: Callable[[], Any]) -> None:
    one, other = make(), make()
    with mode():
        seen = play(one, 3, seed=0)
    assert_same(seen, play(other, 3, seed=0))
    assert_same(saved(one), saved(other))


# -- reset -----------------------------------------------------------------------------------------------------------


@some_rows
def test_evaluation_changes_nothing(arguments: dict[str, Any]) -> None:
    env, twin = parallel_env(**arguments), parallel_env(**arguments)
    for game in (env, twin):
        play(game, 3, seed=0)
    before = saved(env)
    for _ in range(2):
        play(env, 1, rng_seed=8, options={"split": "test"})
    after = saved(env)
    for name in ("network", "optimizer", "agreement", "updates", "failed_at"):
        assert_same(before[name], after[name])
    for name in ("streams", "orders"):
        assert_same(before[name]["train"], after[name]["train"])
    assert_same(play(env, 4, rng_seed=2), play(twin, 4, rng_seed=2))
    assert_same(weights(env), weights(twin))


def test_evaluation_plays_images_of_its_split() -> None:
    env = make(instances=8)
    for split in ("train", "test"):
        env.reset(options={"split": split})
        assert set(env.engine.batch.image.flatten().tolist()) <= set(env.engine.suite.split(split).image.tolist())


def test_a_seed_begins_anew() -> None:
    env = make(seed=6)
    first = play(env, 3)
    assert_same(first, play(env, 3, seed=6))
    assert_same(first, play(make(), 3, seed=6))
    assert_same(first, play(make(), 3, seed=np.int64(6)))
    before = weights(env)
    env.reset(seed=7)
    assert any(not torch.equal(a, b) for a, b in zip(before, weights(env), strict=True))


def test_reset_goes_on_with_the_next_minibatch_and_keeps_what_was_learned() -> None:
    env = make(instances=4)
    seen = []
    for _ in range(env.engine.steps_per_epoch):
        play(env, 1)
        seen.append(env.engine.batch.image[0])
    per_task = torch.cat(seen, dim=1)
    assert all(len(set(images)) == 24 for images in per_task.tolist())
    assert env.engine.updates == env.engine.steps_per_epoch
    before = weights(env)
    env.reset()
    batch_norm = [name for name in env.engine.network.state_dict() if "running" in name or "num_batches" in name]
    for name, old, new in zip(env.engine.network.state_dict(), before, weights(env), strict=True):
        assert torch.equal(old, new) or name in batch_norm


def test_keep_blocks_reseeds_the_data_order_only() -> None:
    env, fresh = make(instances=4), make(instances=4)
    play(env, 3, seed=0)
    learned = {name: value for name, value in saved(env).items() if name in ("optimizer", "agreement", "updates")}
    old = {name: tensor.clone() for name, tensor in env.engine.network.named_parameters()}
    env.reset(seed=7, options={"keep_blocks": True})
    fresh.reset(seed=7)
    assert torch.equal(env.engine.batch.image, fresh.engine.batch.image)
    now = saved(env)
    assert_same(learned, {name: now[name] for name in learned})
    assert_same(old, {name: tensor.detach().clone() for name, tensor in env.engine.network.named_parameters()})


def test_options_may_be_none_empty_or_unknown() -> None:
    for options in (None, {}, {"something": "else"}):
        env = make(seed=0)
        assert_same(make(seed=0).reset(), env.reset(seed=None, options=options))


@pytest.mark.parametrize(
    ("reset", "message"),
    [
        ({"options": {"split": "tset"}}, "split 'tset'"),
        ({"options": {"split": "validation"}}, "no validation split"),
        ({"options": {"keep_blocks": "yes"}}, "keep_blocks"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 1.5}, r"seed is 1\.5"),
    ],
)
@pytest.mark.usefixtures("untyped")
def test_a_wrong_reset_raises_and_changes_nothing(reset: dict[str, Any], message: str) -> None:
    env, twin = make(seed=0), make(seed=0)
    for game in (env, twin):
        play(game, 1)
        game.reset()
    with pytest.raises(UserError, match=message):
        env.reset(**{"seed": 5, **reset})
    actions = dict.fromkeys(env.agents, 0)
    assert_same(env.step(actions), twin.step(actions))


# -- actions ---------------------------------------------------------------------------------------------------------


def test_actions_of_every_integer_type_in_any_order_are_the_same() -> None:
    seen = []
    for form in (int, np.int32, np.int64, np.uint8, np.array, lambda n: np.array(n, np.int32), torch.tensor):
        env = make(seed=0)
        env.reset()
        seen.append([env.step({agent: form(t) for t, agent in enumerate(env.agents)}) for _ in range(3)])
        env.reset(seed=0)
        backwards = reversed(list(enumerate(env.possible_agents)))
        seen[-1].append(env.step({agent: form(t) for t, agent in backwards}))
    for other in seen[1:]:
        assert_same(seen[0], other)
    assert_same(seen[0][0], seen[0][3])


def test_an_illegal_action_acts_as_pass_or_as_the_first_legal_and_is_counted() -> None:
    env, twin = make(blocks=[3, 2, 1], seed=0), make(blocks=[3, 2, 1], seed=0)
    passing, _, infos = 3, env.reset(), twin.reset()[1]
    # PASS does not fit at depths 0 and 2; block 2 is not there at depths 1 and 2.
    for count, (wrong, acts_as) in enumerate([(passing, 0), (2, passing), (2, 0)], start=1):
        assert infos["task_0"]["action_mask"][acts_as] == 1
        assert infos["task_0"]["action_mask"][wrong] == 0
        seen = env.step(dict.fromkeys(env.agents, wrong))
        expected = twin.step(dict.fromkeys(twin.agents, acts_as))
        infos = expected[4]
        for agent, info in seen[4].items():
            assert info.pop("illegal") == count
            assert expected[4][agent].pop("illegal") == 0
        assert_same(seen, expected)
    assert seen[4]["task_0"]["route"].tolist() == [0, passing, 0]
    assert_same(saved(env), saved(twin))


def test_stop_leaves_only_stop() -> None:
    env = make(recursive=True, allow_stop=True, depth=3, blocks=2)
    env.reset()
    stop = env.engine.network.stop_action
    *_, infos = env.step(dict.fromkeys(env.agents, stop))
    assert infos["task_0"]["action_mask"].tolist() == [0, 0, 0, 1]
    *_, infos = env.step({**dict.fromkeys(env.agents, stop), "task_1": 0})
    assert [infos[agent]["illegal"] for agent in env.agents] == [0, 1, 0]
    assert infos["task_1"]["route"].tolist() == [stop, stop, -1]


def valued(value: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda actions: {**actions, "task_1": value}


NONSENSE: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "empty": (lambda actions: {}, "no action for task_0, task_1, task_2"),
    "missing": (lambda actions: {"task_0": 0, "task_2": 0}, "no action for task_1"),
    "unknown": (lambda actions: {**actions, "task_3": 0}, "unknown agents 'task_3'"),
    "renamed": (lambda actions: {"task_0": 0, "task_1": 0, "task2": 0}, "unknown agents 'task2'"),
    "unnamed": (lambda actions: {0: 0, 1: 0, 2: 0}, "unknown agents 0, 1, 2"),
    "list": (lambda actions: [0, 0, 0], "actions are a list"),
    "none": (lambda actions: None, "actions are a NoneType"),
    "no_value": (valued(None), "action of task_1 is None"),
    "float": (valued(1.0), r"action of task_1 is 1\.0"),
    "numpy_float": (valued(np.float32(1)), "action of task_1"),
    "nan": (valued(float("nan")), "action of task_1 is nan"),
    "text": (valued("1"), "action of task_1 is '1'"),
    "bool": (valued(True), "action of task_1 is True"),
    "numpy_bool": (valued(np.bool_(True)), "action of task_1"),
    "negative": (valued(-1), "is -1; it must be a whole number from 0 to 3"),
    "too_large": (valued(4), "is 4; it must be a whole number from 0 to 3"),
    "huge": (valued(10**30), "it must be a whole number from 0 to 3"),
    "vector": (valued(np.array([1])), "action of task_1"),
    "float_array": (valued(np.array(1.0)), "action of task_1"),
}


@pytest.mark.parametrize(("broken", "message"), NONSENSE.values(), ids=NONSENSE.keys())
@pytest.mark.usefixtures("untyped")
def test_nonsense_raises_and_changes_nothing(broken: Callable[[dict[str, Any]], Any], message: str) -> None:
    env, twin = make(seed=0), make(seed=0)
    env.reset()
    twin.reset()
    actions = dict.fromkeys(env.agents, 0)
    for _ in range(3):
        with pytest.raises(UserError, match=message) as error:
            env.step(broken(actions))
        assert "\n" not in str(error.value)
        assert_same(env.state(), twin.state())
        assert_same(env.step(actions), twin.step(actions))
    assert_same(saved(env), saved(twin))


def test_stepping_out_of_an_episode_raises() -> None:
    env = make()
    actions = dict.fromkeys(env.possible_agents, 0)
    with pytest.raises(UserError, match="no episode is under way; call reset first"):
        env.step(actions)
    play(env, 1)
    before = saved(env)
    for wrong in (actions, {}):
        with pytest.raises(UserError, match="the episode is over; call reset first"):
            env.step(wrong)
    assert_same(before, saved(env))


def test_aec_nonsense_raises_at_once_and_changes_nothing() -> None:
    env = routing_v0.env(suite=SUITE, seed=0)
    env.reset()
    env.step(0)
    for nonsense in (17, 1.0, None, "0"):
        with pytest.raises(UserError, match="the action of task_1 is"):
            env.step(nonsense)
        assert env.agent_selection == "task_1"


@some_rows
def test_aec_and_parallel_are_the_same_game(arguments: dict[str, Any]) -> None:
    parallel, turns = parallel_env(**arguments, seed=0), routing_v0.env(**arguments, seed=0)
    rng = np.random.default_rng(0)
    for _ in range(3):
        parallel.reset()
        turns.reset()
        while parallel.agents:
            actions = random_actions(parallel, rng)
            observations, rewards, terminations, truncations, infos = parallel.step(actions)
            for agent in actions:
                assert turns.agent_selection == agent
                turns.step(actions[agent])
            assert_same(observations, {agent: turns.observe(agent) for agent in actions})
            assert_same([rewards, terminations, truncations, infos],
                        [turns.rewards, turns.terminations, turns.truncations, turns.infos])  # fmt: skip
    assert_same(saved(parallel), saved(turns.unwrapped))


# -- what comes back -------------------------------------------------------------------------------------------------


@every_row
def test_what_comes_back_is_as_documented(arguments: dict[str, Any]) -> None:
    env = parallel_env(**arguments)
    spec, rng = env.engine.spec, np.random.default_rng(0)
    names = [f"task_{t}" for t in range(N_TASKS)]
    n_ones = N_TASKS + spec.n_depths + 1
    assert env.possible_agents == names
    assert env.agents == []
    assert not hasattr(env, "max_cycles")
    assert env.render_mode is None
    for agent in names:
        space = env.observation_space(agent)
        assert space is env.observation_space(agent)
        assert env.action_space(agent) is env.action_space(agent)
        assert space == env.observation_space("task_0")
        assert env.action_space(agent) == Discrete(spec.n_actions)
        box = space["observation"] if isinstance(space, Dict) else space
        assert isinstance(box, Box)
        assert (box.shape, box.dtype) == ((n_ones + spec.n_features,), np.float32)
        assert np.isfinite(box.low).all()
        assert np.isfinite(box.high).all()
    length = spec.n_depths + 1 + N_TASKS * (spec.n_depths + spec.n_features)
    assert (env.state_space.shape, env.state_space.dtype) == ((length,), np.float32)
    assert (spec.n_features > 0) == (arguments["observation"] == "features")

    for split in ("train", "test"):
        observations, infos = env.reset(options={"split": split})
        shapes = None
        for depth in range(spec.n_depths + 1):
            if depth:
                actions = random_actions(env, rng)
                observations, rewards, terminations, truncations, infos = env.step(actions)
                for given in (rewards, terminations, truncations):
                    assert list(given) == names
                assert {type(reward) for reward in rewards.values()} == {float}
                assert all(done is (depth == spec.n_depths) for done in terminations.values())
                assert all(cut is False for cut in truncations.values())
            assert env.agents == (names if depth < spec.n_depths else [])
            assert list(observations) == list(infos) == names
            state = env.state()
            assert env.state_space.contains(state)
            assert state[: spec.n_depths + 1].tolist() == [float(d == depth) for d in range(spec.n_depths + 1)]
            routes = state[spec.n_depths + 1 :][: N_TASKS * spec.n_depths] * spec.n_actions - 1
            assert routes.round().astype(int).tolist() == np.concatenate([i["route"] for i in infos.values()]).tolist()
            for task, agent in enumerate(names):
                seen, info = observations[agent], infos[agent]
                assert env.observation_space(agent).contains(seen)
                assert ("action_mask" in info) == (arguments["mask"] == "info")
                mask = (info if arguments["mask"] == "info" else seen)["action_mask"]
                assert (mask.dtype, mask.shape) == (np.int8, (spec.n_actions,))
                assert mask.any()
                vector = seen if arguments["mask"] == "info" else seen["observation"]
                assert np.flatnonzero(vector[:n_ones]).tolist() == [task, N_TASKS + depth]
                now = {key: (type(v), getattr(v, "dtype", None), np.shape(v)) for key, v in info.items()}
                shapes = shapes or now
                assert now == shapes
                assert (info["route"][depth:] == -1).all()
                assert (info["route"][:depth] >= 0).all()
                if depth > 0:
                    parts = info["final_reward"] + info["collaboration_reward"]
                    assert rewards[agent] == pytest.approx(parts, abs=1e-6)
                    assert 0 <= info["collaboration_reward"] <= env.engine.config.rho + 1e-6
                if depth < spec.n_depths:
                    assert info["final_reward"] == info["accuracy"] == info["loss"] == 0
                else:
                    assert info["final_reward"] == pytest.approx(2 * info["accuracy"] - 1)
                    assert info["loss"] > 0


@some_rows
def test_clients_may_write_into_all_that_they_get(arguments: dict[str, Any]) -> None:
    def scribble(given: Any) -> None:
        if isinstance(given, np.ndarray):
            given.fill(77)
        elif isinstance(given, dict | tuple):
            for value in given.values() if isinstance(given, dict) else given:
                scribble(value)
            if isinstance(given, dict):
                given.clear()

    env, twin = parallel_env(**arguments), parallel_env(**arguments)
    rng = np.random.default_rng(0)
    for episode in range(3):
        seed = None if episode else 0
        returned = [env.reset(seed=seed), env.state()]
        assert_same(returned, [twin.reset(seed=seed), twin.state()])
        while twin.agents:
            scribble(tuple(returned))
            actions = random_actions(env, rng)
            returned = [env.step(actions), env.state()]
            assert_same(returned, [twin.step(actions), twin.state()])
    assert_same(saved(env), saved(twin))


@some_rows
def test_agents_share_no_array(arguments: dict[str, Any]) -> None:
    env = parallel_env(**arguments)
    observations, infos = env.reset()
    *_, later = env.step(dict.fromkeys(env.agents, 0))
    arrays = [
        array
        for given in (*observations.values(), *infos.values(), *later.values())
        for array in (given.values() if isinstance(given, dict) else [given])
        if isinstance(array, np.ndarray)
    ]
    for one in range(len(arrays)):
        assert not any(np.shares_memory(arrays[one], arrays[other]) for other in range(one))


# -- pictures --------------------------------------------------------------------------------------------------------


def test_the_text_shows_the_routes(capsys: pytest.CaptureFixture[str]) -> None:
    expected = [
        ["depth", "2", "of", "4"],
        ["0", "1", "2", "3"],
        ["task0", "0", "1", ".", "."],
        ["task1", "1", "PASS", ".", "."],
        ["task2", "STOP", "STOP", ".", "."],
    ]
    for mode in ("ansi", "human"):
        env = make(recursive=True, allow_stop=True, depth=4, blocks=2, render_mode=mode)
        env.reset()
        env.step({"task_0": 0, "task_1": 1, "task_2": 3})
        env.step({"task_0": 1, "task_1": 2, "task_2": 3})
        text = env.render()
        assert (text is None) == (mode == "human")
        text = text or capsys.readouterr().out
        assert [line.split() for line in text.splitlines()] == expected
    env.step(dict.fromkeys(env.agents, 3))
    env.step(dict.fromkeys(env.agents, 3))
    assert re.match(r"depth 4 of 4, \d+% right", capsys.readouterr().out)


def test_the_picture_shows_the_routes() -> None:
    env = make(render_mode="rgb_array")
    env.reset()
    pictures = [env.render()]
    for _ in range(3):
        env.step({"task_0": 0, "task_1": 1, "task_2": 1})
        pictures.append(env.render())
    for before, after in pairwise(pictures):
        assert after.dtype == np.uint8
        assert after.shape == before.shape
        assert (before != after).any()
    blue, orange = (31, 119, 180), (255, 127, 14)
    counts = [(pictures[-1] == np.array(colour)).all(-1).sum() for colour in (blue, orange)]
    assert counts[1] == pytest.approx(2 * counts[0], rel=0.1)


def test_render_without_a_mode_warns_and_before_reset_raises() -> None:
    with pytest.warns(UserWarning, match="render_mode"):
        assert make().render() is None
    with pytest.raises(UserError, match="call reset first"):
        make(render_mode="ansi").render()


# -- making one ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"suite": "digts"}, "no suite 'digts'.*did you mean digits"),
        ({"suite": "/nowhere/own.npz"}, "nowhere"),
        ({"observation": "pixels"}, "observation is 'pixels'; it must be one of 'index', 'features'"),
        ({"mask": "nowhere"}, "mask is 'nowhere'; it must be one of 'info', 'observation'"),
        ({"render_mode": "3d"}, "render_mode is '3d'"),
        ({"device": "abacus"}, "device is 'abacus'"),
        ({"precision": "fp8"}, "precision is 'fp8'"),
        ({"instances": 0}, "instances is 0"),
        ({"rho": 2.0}, r"rho is 2\.0"),
        ({"history": 0}, "history is 0"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"blocks": 0}, "blocks is 0"),
        ({"blocks": [1, 2]}, r"blocks is \[1, 2\]"),
        ({"depth": 0}, "depth is 0"),
        ({"allow_stop": True}, "STOP needs a recursive network"),
        ({"seed": -1}, "seed is -1"),
        ({"blocks": 2, "network": routing_all_fc}, "network is given, and so is one of blocks"),
    ],
)
@pytest.mark.usefixtures("untyped")
def test_wrong_arguments_raise_one_clear_line(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        make(**arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("config", [EngineConfig(episodes=2), EngineConfig(agreement="reported")])
def test_an_engine_that_pettingzoo_cannot_play_is_refused(config: EngineConfig) -> None:
    with pytest.raises(UserError, match="parallel episodes or reported agreement"):
        RoutingParallelEnv(RoutingEngine(SUITE, routing_all_fc, config))


def test_the_documentation_page_names_every_argument_and_its_default() -> None:
    page = routing_v0.__doc__ or ""
    listed = dict(re.findall(r"^- `(\w+)=([^`]+)`:", page, flags=re.MULTILINE))
    parameters = inspect.signature(parallel_env).parameters
    assert listed.keys() == parameters.keys()
    for name, parameter in parameters.items():
        assert eval(listed[name]) == parameter.default


needs_registry = pytest.mark.skipif(not hasattr(pettingzoo, "register"), reason="this PettingZoo has no registry")


@needs_registry
def test_the_registry_makes_both_views() -> None:
    for name in ("routing_marl/routing-v0", "routing_marl/routing_v0", "routing_marl/routing"):
        parallel = pettingzoo.make("parallel", name, suite=SUITE, blocks=2)
        assert isinstance(parallel, RoutingParallelEnv)
        assert parallel.engine.spec.n_actions == 3
        turns = pettingzoo.make("aec", name, suite=SUITE)
        assert isinstance(turns, pettingzoo.AECEnv)
        assert isinstance(turns.unwrapped, RoutingParallelEnv)


def test_importing_again_or_without_a_registry_is_no_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    importlib.reload(routing_marl.envs)
    for name in ("register", "aec_registry", "parallel_registry"):
        monkeypatch.delattr(pettingzoo, name, raising=False)
    importlib.reload(routing_marl.envs)


def test_digits_by_default() -> None:
    env = parallel_env(instances=2, seed=0)
    assert env.max_num_agents == 10
    assert str(env) == "routing_v0"
    assert play(env, 1)[-2][2] == dict.fromkeys(env.possible_agents, True)
