"""Every measure against numbers made by hand, and a run's table against the routes that it is derived from."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import mutual_info_score
from test_training import config, npz, suite  # noqa: F401 (fixtures)

from routing_marl import diagnostics
from routing_marl.agents import WPL, PolicyGradient, QLearning, RandomAgent
from routing_marl.diagnostics import ALL, MEASURES, diagnose
from routing_marl.errors import UserError
from routing_marl.protocol import GameSpec, Observation, Trajectory
from routing_marl.returns import Returns
from routing_marl.routes import ROUTES, Routes, read_routes
from routing_marl.synchronisation import synchronisations
from routing_marl.training import Run, play_episode, train


def one_hot(actions, n_actions):
    return np.eye(n_actions, dtype=np.float32)[np.asarray(actions)]


# -- by hand ---------------------------------------------------------------------------------------------------------


def test_relative_entropy():
    legal = np.array([[True, True, False, False], [True] * 4, [True, False, False, False]])
    policy = np.array([[[0.5, 0.5, 0, 0]], [[0.5, 0.5, 0, 0]], [[1.0, 0, 0, 0]]])
    assert diagnostics.relative_entropy(policy, legal).ravel() == pytest.approx([1.0, 0.5, 0.0])


def test_kl():
    new, old = np.array([[0.5, 0.5, 0.0]]), np.array([[0.25, 0.5, 0.25]])
    assert diagnostics.kl(new, old) == pytest.approx([0.5 * math.log(2)])
    assert diagnostics.kl(old, new) == math.inf  # the third action comes back
    assert diagnostics.kl(new, new) == 0


def test_flip():
    old = np.array([[1.0, 0, 0], [0.5, 0.5, 0], [0, 0, 1]])
    new = np.array([[0.0, 1, 0], [0.25, 0.5, 0.25], [0, 0, 1]])
    assert diagnostics.flip(new, old) == pytest.approx([1, 0.25, 0])


def test_settled_after():
    # epoch x task, one depth: never changes; changes to epoch 3; changes in epoch 2 and back in 4.
    actions = np.array([[0, 0, 1], [0, 1, 2], [0, 2, 2], [0, 2, 1]])
    usage = one_hot(actions, 3)[:, None]
    assert diagnostics.settled_after(usage).tolist() == [[1, 3, 4]]
    assert diagnostics.settled_after(usage[:1]).tolist() == [[1, 1, 1]]


def test_blocks_in_use():
    # Two blocks and PASS. Tasks: block 0, block 0, block 1, PASS.
    usage = one_hot([0, 0, 1, 2], 3)
    shares = (2 / 3, 1 / 3)
    assert diagnostics.blocks_in_use(usage, 2) == pytest.approx(math.exp(-sum(p * math.log(p) for p in shares)))
    assert diagnostics.blocks_in_use(one_hot([0, 1], 3), 2) == pytest.approx(2)
    assert diagnostics.blocks_in_use(one_hot([2, 2], 3), 2) == 0


def test_mutual_information():
    # Each task its own action: log 2. All the same one: 0. Both at random: 0, and entropy is left given the task.
    assert diagnostics.mutual_information(one_hot([0, 1], 2)) == pytest.approx(math.log(2))
    assert diagnostics.mutual_information(one_hot([1, 1], 2)) == pytest.approx(0)
    assert diagnostics.mutual_information(np.full((2, 2), 0.5)) == pytest.approx(0)
    half = np.array([[0.5, 0.5], [1, 0]])
    marginal = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert diagnostics.mutual_information(half) == pytest.approx(marginal - math.log(2) / 2)


@settings(max_examples=30, deadline=None)
@given(arrays(np.int64, st.tuples(st.integers(1, 6), st.integers(1, 20)), elements=st.integers(0, 3)))
def test_mutual_information_is_that_of_counted_decisions(actions):
    usage = one_hot(actions, 4).mean(1)
    tasks = np.repeat(np.arange(len(actions)), actions.shape[1])
    assert diagnostics.mutual_information(usage) == pytest.approx(mutual_info_score(tasks, actions.ravel()), abs=1e-5)


def test_route_similarity_and_its_tree():
    # Two depths, three tasks: 0 and 1 share one of two actions, 1 and 2 none, 0 and 2 half of the second.
    usage = one_hot([[0, 0, 1], [0, 1, 0]], 2)
    usage[1, 2] = [0.5, 0.5]
    wanted = [[1, 0.5, 0.25], [0.5, 1, 0.25], [0.25, 0.25, 1]]
    similarity = diagnostics.route_similarity(usage)
    assert np.allclose(similarity, wanted)
    tree = diagnostics.route_tree(similarity)
    assert set(tree[0, :2]) == {0, 1} and tree[0, 2] == pytest.approx(0.5)
    assert tree[1, 2] == pytest.approx(0.75)


def test_structure_found():
    clusters = np.array([0, 0, 1, 1])
    same = one_hot([[2, 2, 0, 0], [1, 1, 1, 1]], 3)  # depth 0 has the structure, depth 1 knows nothing of it
    whole, by_depth = diagnostics.structure_found(same, clusters)
    assert whole == pytest.approx(1) and by_depth == pytest.approx([1, 0])
    crossed = one_hot([[0, 1, 0, 1]], 2)
    assert diagnostics.structure_found(crossed, clusters)[0] < 0.01


# -- the table of a run ----------------------------------------------------------------------------------------------

LEGAL = np.array([[True, True, False], [True, True, True]])


def toy(**changes):
    # Three epochs, two depths, three tasks, two blocks and PASS.
    actions = np.array([[[0, 0, 1], [0, 1, 2]], [[0, 1, 1], [0, 1, 2]], [[0, 1, 1], [2, 2, 2]]])
    usage = one_hot(actions, 3)
    policy = 0.8 * usage + 0.2 * (LEGAL / LEGAL.sum(-1, keepdims=True))[:, None]
    returns = np.stack([np.full((2, 2, 3), 0.1 * epoch) for epoch in range(3)]).astype(np.float32)
    names = np.array(["a", "b", "c"])
    routes = Routes(usage, LEGAL, np.array(2), names, policy.astype(np.float32), returns, np.array([0, 1, 1]))
    return routes._replace(**changes)


def pick(frame, measure, **where):
    rows = frame[frame["measure"] == measure]
    for column, value in where.items():
        rows = rows[rows[column] == value]
    return rows["value"].tolist()


def test_the_table_has_every_measure_at_its_place():
    frame = diagnose(toy())
    assert list(frame.columns) == ["epoch", "depth", "task", "measure", "value"]
    assert set(frame["measure"]) == set(MEASURES)
    assert not frame.duplicated(["epoch", "depth", "task", "measure"]).any()
    # Task 1 changed at depth 0 in epoch 2; tasks 0 and 1 at depth 1 in epoch 3.
    assert pick(frame, "flip", epoch=2, depth=0) == [0, 1, 0]
    assert pick(frame, "flip", epoch=3, depth=1) == [1, 1, 0]
    assert pick(frame, "flip", epoch=1) == pick(frame, "kl", epoch=1) == []
    assert pick(frame, "settled_after", epoch=3) == [1, 2, 1, 3, 3, 1]
    assert pick(frame, "settled_after", epoch=2) == []
    entropy = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1)) / math.log(2)
    assert pick(frame, "entropy", depth=0) == pytest.approx([entropy] * 9, abs=1e-6)
    assert pick(frame, "kl", epoch=2, depth=0, task=1) == pytest.approx([0.8 * math.log(9)], abs=1e-5)
    assert pick(frame, "pass_share", task=ALL) == pytest.approx([0, 1 / 3, 0, 1 / 3, 0, 1])
    assert pick(frame, "blocks_in_use", epoch=3) == pytest.approx([math.exp(math.log(3) - 2 / 3 * math.log(2)), 0])
    assert pick(frame, "mutual_information", epoch=3) == pytest.approx([math.log(3) - 2 / 3 * math.log(2), 0], abs=1e-6)
    assert pick(frame, "action_entropy_given_task") == pytest.approx([0] * 6)
    # Epoch 3: at depth 0 only 1 and 2 agree, at depth 1 all: (1/2 + 1/2 + 1) / 3.
    assert pick(frame, "route_overlap", epoch=3, depth=ALL, task=ALL) == pytest.approx([2 / 3])
    assert pick(frame, "adjusted_mutual_information", epoch=3) == pytest.approx([1, 1, 0])
    assert pick(frame, "realised_return", epoch=3) == pytest.approx([0.2] * 6)


def test_what_a_run_does_not_know_is_left_out():
    without = diagnose(toy(policy=None, returns=toy().returns[:, :1], clusters=None))
    missing = set(MEASURES) - set(without["measure"])
    assert missing == {"entropy", "kl", "expected_return", "adjusted_mutual_information"}
    lonely = toy()
    lonely = lonely._replace(
        usage=lonely.usage[:1, :, :1], policy=lonely.policy[:1, :, :1], returns=None, clusters=np.array([0])
    )
    frame = diagnose(lonely)
    assert {"route_overlap", "adjusted_mutual_information", "flip"}.isdisjoint(frame["measure"])


@pytest.mark.parametrize("method", ["wpl", "q_learning", "actor_critic_network", "random", "cross_stitch"])
def test_a_run_is_diagnosed_from_its_folder(method, config, suite, tmp_path):  # noqa: F811
    run = train(dataclasses.replace(config, method=method, epochs=3), tmp_path, suite=suite)
    routes = read_routes(tmp_path)
    assert np.array_equal(routes.usage, torch.stack(run.usage).numpy())
    assert np.array_equal(routes.legal, run.engine.spec.legal.numpy())
    assert routes.task_names.tolist() == list(suite.task_names)
    assert int(routes.n_blocks) == run.engine.network.pass_action
    frame = diagnose(tmp_path)
    assert np.isfinite(frame["value"][frame["measure"] != "kl"]).all()
    told = method in ("wpl", "q_learning", "actor_critic_network")
    assert ("expected_return" in set(frame["measure"])) == told


def test_gates_are_diagnosed_by_the_blocks_that_they_mix(config, suite, tmp_path):  # noqa: F811
    """Their agents have nothing to choose: what they do is neither a policy nor PASS."""
    train(dataclasses.replace(config, method="mmoe"), tmp_path, suite=suite)
    routes = read_routes(tmp_path)
    n_experts = suite.n_tasks  # by default
    assert int(routes.n_blocks) == n_experts and routes.policy is None
    assert routes.legal.tolist() == [[True] * n_experts + [False]]
    frame = diagnose(routes)
    assert min(pick(frame, "blocks_in_use")) > 1 and set(pick(frame, "pass_share")) == {0.0}
    assert {"entropy", "kl"}.isdisjoint(frame["measure"])


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="is not there; give the folder of a run"):
        diagnose(tmp_path)
    (tmp_path / ROUTES).write_bytes(b"PK nonsense")
    with pytest.raises(UserError, match="is not a readable"):
        diagnose(tmp_path)
    np.savez(tmp_path / ROUTES, usage=np.zeros((1, 1, 1, 1)))
    with pytest.raises(UserError, match="has no legal, n_blocks, task_names; train the run again"):
        diagnose(tmp_path)


# -- returns ---------------------------------------------------------------------------------------------------------

SPEC = GameSpec(torch.ones(2, 2, dtype=torch.bool), 1)


def trajectory(rewards, active=None):
    rewards = torch.tensor(rewards)[..., None]  # depth, episode, one task
    actions = torch.zeros(rewards.shape, dtype=torch.long)
    masks = torch.ones(*rewards.shape, 2, dtype=torch.bool)
    playing = torch.ones_like(actions).bool() if active is None else torch.tensor(active)[..., None]
    return Trajectory(actions, rewards, masks, playing)


def test_returns_are_means_over_decisions():
    returns = Returns(SPEC, RandomAgent(SPEC), gamma=0.5)
    returns.add(trajectory([[1.0, 2.0], [4.0, 8.0]]))
    # 1 + 2, 2 + 4 and then 4, 8; a stopped agent's second decision is none.
    assert returns.means().tolist() == [[[4.5], [6.0]]]
    returns.add(trajectory([[3.0, 0.0], [0.0, 0.0]], [[True, False], [False, False]]))
    assert returns.means().tolist() == [[[4.0], [6.0]]]


def test_what_agents_expect_is_what_they_say():
    observation = Observation(1, torch.ones(1, 1, 2, dtype=torch.bool))
    wpl, q, gradient = WPL(SPEC), QLearning(SPEC), PolicyGradient(SPEC)
    wpl.probabilities = torch.tensor([[[0.5, 0.5], [0.25, 0.75]]])
    wpl.expected = torch.tensor([[[0.0, 0.0], [1.0, 3.0]]])
    assert wpl.expected_return(observation).tolist() == [[2.5]]
    q.values = torch.tensor([[[0.0, 0.0], [1.0, 3.0]]])
    q.batches = torch.tensor(300)  # epsilon 0.05: 0.025 of the worse action
    assert q.expected_return(observation).tolist() == [[pytest.approx(0.025 * 1 + 0.975 * 3)]]
    gradient.baseline = torch.tensor([[7.0, -1.0]])
    assert gradient.expected_return(observation).tolist() == [[-1.0]]
    returns = Returns(SPEC, wpl)
    returns.add(trajectory([[0.0, 0.0], [1.0, 1.0]]))
    assert returns.means().tolist() == [[[1.0], [1.0]], [[0.0], [2.5]]]


def test_counting_returns_never_waits_for_a_gpu(config, suite):  # noqa: F811
    run = Run(config, suite)
    returns = Returns(run.engine.spec, run.agent)
    play_episode(run.engine, run.agent, returns)
    with synchronisations() as found:
        play_episode(run.engine, run.agent, returns)
    assert not found
