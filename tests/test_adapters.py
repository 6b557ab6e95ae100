"""Adapters: policies from elsewhere act as agents of ours, and what they say is checked."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from routing_marl.agents.adapters import CallablesAgent, SB3Agent
from routing_marl.envs import routing_v0
from routing_marl.envs.building import build_engine
from routing_marl.errors import UserError
from routing_marl.evaluation import evaluate
from routing_marl.protocol import Agent, GameSpec, Observation, as_vectors
from routing_marl.training import play_episode

SPEC = GameSpec(legal=torch.tensor([[True, True, False], [True, False, True]]), n_tasks=2)


def observe(depth: int, n_episodes: int = 3) -> Observation:
    return Observation(depth, SPEC.legal[depth].expand(n_episodes, 2, -1))


class Model:
    """As Stable-Baselines3 has them: the legal action of the highest index, or the lowest where greedy."""

    def __init__(self) -> None:
        self.policy = nn.Linear(2, 2)

    def predict(
        self, observation: np.ndarray, deterministic: bool = False, action_masks: np.ndarray | None = None
    ) -> tuple[np.ndarray, None]:
        assert action_masks is not None
        order = 1 if deterministic else -1
        chosen = action_masks[:, ::order].argmax(1)
        return chosen if deterministic else action_masks.shape[1] - 1 - chosen, None


class Unmasked(Model):
    def predict(self, observation: np.ndarray, deterministic: bool = False) -> Any:  # type: ignore[override]
        return np.full(len(observation), 2), None


def test_vectors_are_what_the_pettingzoo_door_shows() -> None:
    for observation in ("index", "features"):
        env = routing_v0.parallel_env(observation=observation, instances=2, seed=0)
        twin = build_engine(observation=observation, instances=2, seed=0)
        seen, state = env.reset()[0], twin.reset()
        for _ in range(twin.spec.n_depths):
            assert np.array_equal(np.stack(list(seen.values())), as_vectors(twin.spec, state)[0].numpy())
            seen = env.step(dict.fromkeys(env.agents, 0))[0]
            state = twin.step(torch.zeros(1, 10, dtype=torch.long)).observation


def test_sb3_models_see_masks_where_they_take_them() -> None:
    agent = SB3Agent(SPEC, Model())
    assert isinstance(agent, Agent)
    assert agent.act(observe(0), greedy=True).tolist() == [[0, 0]] * 3
    assert agent.act(observe(0)).tolist() == [[1, 1]] * 3
    assert agent.act(observe(1)).tolist() == [[2, 2]] * 3
    assert SB3Agent(SPEC, Unmasked()).act(observe(0)).tolist() == [[2, 2]] * 3


def test_callables_act_for_their_agent() -> None:
    calls: list[tuple[int, list[int]]] = []

    def second(observation: np.ndarray, mask: np.ndarray) -> np.int32:
        calls.append((int(observation[:2].argmax()), mask.tolist()))
        return np.int32(1)

    agent = CallablesAgent(SPEC, {"task_1": second, "task_0": lambda *_: 0})
    assert agent.act(observe(0)).tolist() == [[0, 1]] * 3
    assert calls == [(1, [1, 1, 0])] * 3
    greedy = dict.fromkeys(("task_0", "task_1"), lambda *_: torch.tensor(1))
    assert CallablesAgent(SPEC, {**greedy, "task_0": second}, greedy).act(observe(0), greedy=True).sum() == 6


@pytest.mark.parametrize(
    ("names", "message"), [(["task_0"], "task_1 is missing"), (["task_0", "task_1", "x"], "x is unknown")]
)
def test_one_callable_for_each_agent(names: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        CallablesAgent(SPEC, dict.fromkeys(names, lambda *_: 0))


def test_actions_of_another_kind_are_refused() -> None:
    model = Model()
    for wrong in (np.zeros(6), np.zeros(5, np.int64)):
        model.predict = lambda *_, wrong=wrong, action_masks=None, **__: (wrong, None)  # type: ignore[method-assign, assignment, misc]
        with pytest.raises(UserError, match="whole numbers of shape"):
            SB3Agent(SPEC, model).act(observe(0))


def test_an_adapter_saves_what_acts() -> None:
    one, other = SB3Agent(SPEC, Model()), SB3Agent(SPEC, Model())
    other.load_state_dict(one.state_dict())
    assert torch.equal(one.source.policy.weight, other.source.policy.weight)
    rules = CallablesAgent(SPEC, dict.fromkeys(("task_0", "task_1"), lambda *_: 0))
    rules.load_state_dict(rules.state_dict())


def test_adapters_play_our_training_loop_and_evaluation() -> None:
    engine = build_engine(instances=2, seed=0)
    learned: list[int] = []

    def learn(trajectory: Any) -> dict[str, torch.Tensor]:
        learned.append(trajectory.actions.shape[0])
        return {}

    policies = {f"task_{task}": lambda _, mask, task=task: task if mask[task] else 0 for task in range(10)}
    agent = CallablesAgent(engine.spec, policies, learn=learn)
    play_episode(engine, agent)
    assert learned == [3]
    assert CallablesAgent(engine.spec, policies).learn(engine.trajectory) == {}
    evaluation = evaluate(engine, agent, "test")
    assert evaluation.usage.argmax(-1).tolist() == [list(range(10))] * 3
