"""What clients are known to do to environments, none of which may matter."""

import copy
from typing import Any

import cloudpickle
import numpy as np
import pytest
import torch
from toys import GAME, opposites

from routing_marl.envs import routing_v0
from routing_marl.envs.routing_v0 import RoutingParallelEnv

pytestmark = pytest.mark.client

SUITE = opposites()


def make(**changes: Any) -> RoutingParallelEnv:
    return routing_v0.parallel_env(**{**GAME, "suite": SUITE, **changes})


def play(env: RoutingParallelEnv, spoil: bool = False, convert: Any = int, backwards: bool = False) -> list[Any]:
    """Three episodes; a client that spoils writes into all that it is given."""
    rng, seen = np.random.default_rng(0), []
    for _ in range(3):
        given: tuple[Any, ...] = env.reset(seed=None, options={})
        while True:
            seen.append(copy.deepcopy(given))
            over = len(given) == 5 and all(given[2].values())
            if spoil:
                for by_agent in given:
                    for value in by_agent.values():
                        if isinstance(value, np.ndarray):
                            value[...] = -7
                        elif isinstance(value, dict):
                            value.clear()
                    by_agent["__all__"] = True
            if over:
                break
            chosen = {agent: convert(rng.integers(3)) for agent in env.possible_agents}
            given = env.step(dict(reversed(chosen.items())) if backwards else chosen)
            chosen.clear()
    return seen


@pytest.mark.parametrize(
    "habit",
    [
        {"spoil": True},
        {"backwards": True},
        {"convert": np.int32},
        {"convert": np.int64},
        {"convert": np.array},
        {"spoil": True, "backwards": True, "convert": np.int32},
    ],
)
@pytest.mark.parametrize("mask", ["info", "observation"])
def test_a_clients_habits_change_nothing(habit: dict[str, Any], mask: str) -> None:
    plain, env = make(seed=0, mask=mask), make(seed=0, mask=mask)
    assert repr(play(env, **habit)) == repr(play(plain))
    for name, tensor in plain.engine.network.state_dict().items():
        assert torch.equal(tensor, env.engine.network.state_dict()[name])


def test_cloudpickled_clones_are_networks_of_their_own() -> None:
    env = make()
    twin = cloudpickle.loads(cloudpickle.dumps(env))
    env.reset(seed=None)
    twin.reset(seed=None)
    pairs = zip(env.engine.network.parameters(), twin.engine.network.parameters(), strict=True)
    assert any(not torch.equal(one, other) for one, other in pairs)


def test_clones_can_be_given_the_trained_network_with_its_blocks_frozen() -> None:
    env = make(seed=0)
    play(env)
    clone = cloudpickle.loads(cloudpickle.dumps(env))
    before = copy.deepcopy(clone.engine.network.state_dict())
    for _ in range(3):
        clone.reset(options={"split": "test"})
        while clone.agents:
            clone.step(dict.fromkeys(clone.agents, 0))
    assert all(torch.equal(before[name], value) for name, value in clone.engine.network.state_dict().items())
    clone.engine.load_state_dict(env.engine.state_dict())  # what the trainer has learned meanwhile
    assert clone.reset()[0].keys() == env.reset()[0].keys()
