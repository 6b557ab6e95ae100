"""Agents with networks, SARSA, actor-critic and the dispatcher: hand-computed numbers, and what is the same as what.

With no hidden layer, no features and a start at zero, a network per agent is a table: one number per (task, depth,
output). Under plain gradient descent it must learn what the tables learn, wherever those descend a gradient.
What holds for every agent (masks, seeds, saving, ...) stands in test_agents.py.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from routing_marl.agents import (
    SARSA,
    WPL,
    ActorCritic,
    ActorCriticNetwork,
    Dispatcher,
    FixedRoutes,
    PolicyGradient,
    PolicyGradientNetwork,
    QLearning,
    QNetwork,
    SARSANetwork,
    WPLNetwork,
)
from routing_marl.agents.dispatcher import collapse_measures, dispatcher_of_networks, dispatching_game, routing_game
from routing_marl.agents.networks import Perceptrons
from routing_marl.agents.targets import lambda_targets
from routing_marl.assembly import make_game
from routing_marl.config import AgentConfig, EngineConfig, NetworkConfig, RunConfig
from routing_marl.errors import UserError
from routing_marl.evaluation import evaluate
from routing_marl.methods import METHODS, check_settings
from routing_marl.paper_recipes import digits
from routing_marl.protocol import GameSpec, Observation, Trajectory, as_vectors
from routing_marl.returns import Returns
from routing_marl.synchronisation import synchronisations
from routing_marl.training import Run, play_episode

T, D, A = 3, 3, 4
LEGAL = torch.tensor([[1, 1, 1, 1], [0, 1, 1, 1], [1, 1, 0, 1]], dtype=torch.bool)
SPEC = GameSpec(LEGAL, T)
TABLE: dict[str, Any] = {"hidden_units": 0, "start_scale": 0.0}
"""Makes a network per agent a table."""


def trajectory_of(seed: int, episodes: int = 1, features: int = 0, all_active: bool = False) -> Trajectory:
    """Random legal actions; about a quarter of the decisions inactive, but never the first."""
    generator = torch.Generator().manual_seed(seed)
    masks = LEGAL[:, None, None].expand(D, episodes, T, A)
    scores = torch.where(masks, torch.rand(masks.shape, generator=generator), -1.0)
    active = torch.rand(D, episodes, T, generator=generator) < (2.0 if all_active else 0.75)
    active[0] = True
    seen = torch.randn(D, episodes, T, features, generator=generator) if features else None
    return Trajectory(scores.argmax(-1), torch.randn(D, episodes, T, generator=generator), masks, active, seen)


def route(actions: list[int], rewards: list[float]) -> Trajectory:
    """One episode of one agent that may always do two things."""
    shape = (len(actions), 1, 1)
    masks = torch.ones(*shape, 2, dtype=torch.bool)
    return Trajectory(torch.tensor(actions).view(shape), torch.tensor(rewards).view(shape), masks, masks[..., 0])


def descends(agent: Any, rate: float, *parameters: Tensor) -> Any:
    """The same agent with plain gradient descent."""
    chosen = parameters or tuple(agent.function.network.parameters())
    agent.function.optimizer = torch.optim.SGD(chosen, lr=rate)
    return agent


def start_at(depth: int, episodes: int = 1) -> Observation:
    return Observation(depth, LEGAL[depth].expand(episodes, T, A))


# --- hand-computed numbers


def test_sarsa_by_hand() -> None:
    agent = SARSA(GameSpec(torch.ones(2, 2, dtype=torch.bool), 1), alpha=0.5, gamma=0.9, trace_decay=0.0)
    agent.values = torch.tensor([[[0.0, 0.0], [2.0, 0.0]]])
    agent.learn(route([0, 1], [0.2, 1.0]))  # Q1(1) = 0.5; Q0(0) = 0.5 (0.2 + 0.9 * 0.5), where Q would hope for 2
    torch.testing.assert_close(agent.values, torch.tensor([[[0.325, 0.0], [2.0, 0.5]]]))


@pytest.mark.parametrize(("network", "first"), [(SARSANetwork, 0.1), (QNetwork, 1.0)])
def test_values_of_networks_by_hand(network, first) -> None:
    spec = GameSpec(torch.ones(2, 2, dtype=torch.bool), 1)
    agent = descends(network(spec, gamma=0.9, trace_decay=0.0, **TABLE), 0.5)
    with torch.no_grad():
        agent.function.network.depth[0, 1, 0] = 2.0
    agent.learn(route([0, 1], [0.2, 1.0]))  # Q0(0) = 0.5 (0.2 + 0.9 * 0), or 0.5 (0.2 + 0.9 * 2) where the best counts
    torch.testing.assert_close(agent.function.network.depth.detach(), torch.tensor([[[first, 0.0], [2.0, 0.5]]]))


def test_actor_critic_by_hand() -> None:
    spec = GameSpec(torch.ones(2, 2, dtype=torch.bool), 1)
    agent = ActorCritic(spec, policy_rate=0.1, baseline_rate=0.2, entropy=0.0, gamma=0.5, trace_decay=0.25)
    agent.baseline = torch.tensor([[0.1, 0.4]])
    agent.learn(route([0, 1], [0.2, 1.0]))
    # targets: 1, and 0.2 + 0.5 (0.75 * 0.4 + 0.25 * 1) = 0.475; advantages 0.6 and 0.375, half of them to each logit
    torch.testing.assert_close(agent.logits, torch.tensor([[[0.01875, -0.01875], [-0.03, 0.03]]]))
    torch.testing.assert_close(agent.baseline, torch.tensor([[0.175, 0.52]]))


def test_targets_by_hand() -> None:
    trajectory = route([0, 0, 0], [0.2, 0.3, 1.0])
    hoped = torch.tensor([9.0, 0.8, 0.6]).view(3, 1, 1)
    # 1; 0.3 + 0.5 (0.75 * 0.6 + 0.25 * 1); 0.2 + 0.5 (0.75 * 0.8 + 0.25 * 0.65)
    wanted = [0.58125, 0.65, 1.0]
    assert lambda_targets(trajectory, hoped, 0.5, 0.25).flatten().tolist() == pytest.approx(wanted)
    stopped = trajectory._replace(active=torch.tensor([True, False, False]).view(3, 1, 1))
    # nothing is hoped for where nothing is decided: 0.2 + 0.5 (0.3 + 0.5)
    assert lambda_targets(stopped, hoped, 0.5, 0.25)[0].item() == pytest.approx(0.6)
    torch.testing.assert_close(lambda_targets(trajectory, hoped, 0.5, 1.0), trajectory.returns(0.5))


def wpl_network(policy: list[float], **parameters: Any) -> WPLNetwork:
    """One agent with one decision and this policy."""
    spec = GameSpec(torch.ones(1, len(policy), dtype=torch.bool), 1)
    agent = WPLNetwork(spec, policy_rate=0.1, return_rate=0.5, **TABLE, **parameters)
    with torch.no_grad():
        agent.function.network.depth[0, 0, : len(policy)] = torch.tensor(policy).log()
    return descends(agent, 1.0)


def decision(action: int, reward: float, n_actions: int) -> Trajectory:
    masks = torch.ones(1, 1, 1, n_actions, dtype=torch.bool)
    return Trajectory(torch.full((1, 1, 1), action), torch.full((1, 1, 1), reward), masks, masks[..., 0])


def test_wpl_network_by_hand() -> None:
    agent = wpl_network([0.5, 0.3, 0.2])
    target = agent.targets(decision(1, 1.0, 3), torch.tensor([0.5, 0.3, 0.2]).view(1, 1, 1, 3), torch.zeros(1, 1, 1, 3))
    # Rhat = 0.5, Delta = 0.5, w = pi = 0.3: a step of 0.015, then divided by the sum
    wanted = torch.tensor([0.5, 0.315, 0.2]) / 1.015
    torch.testing.assert_close(target.flatten(), wanted)
    before = agent.function.network.depth.detach().clone()
    agent.learn(decision(1, 1.0, 3))
    moved = (agent.function.network.depth.detach() - before).flatten()
    torch.testing.assert_close(moved[:3], wanted - torch.tensor([0.5, 0.3, 0.2]))  # target - pi
    torch.testing.assert_close(moved[3:], torch.tensor([0.0, 1.0, 0.0]))  # return - Rhat, at a rate of 1
    seen = Observation(0, torch.ones(1, 1, 3, dtype=torch.bool))
    torch.testing.assert_close(
        agent.expected_return(seen), agent.policy(seen)[..., 1]
    )  # of the only Rhat that is not 0


def test_a_target_held_fixed_is_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = wpl_network([0.5, 0.3, 0.2])
    target = torch.tensor([0.1, 0.0, 0.9])
    monkeypatch.setattr(agent, "targets", lambda *_: target.view(1, 1, 1, 3))
    for _ in range(300):
        agent.learn(decision(1, 1.0, 3))
    policy = agent.policy(Observation(0, torch.ones(1, 1, 3, dtype=torch.bool)))
    torch.testing.assert_close(policy.flatten(), target, atol=0.01, rtol=0)


def test_collapse_measures_by_hand() -> None:
    measures = {
        "one gets everything": (torch.tensor([[1.0, 0.0], [1.0, 0.0]]), 0.0, 0.0),
        "each task has its own": (torch.eye(2), 1.0, 0.0),
        "at random": (torch.full((2, 2), 0.5), 1.0, 1.0),
    }
    for chances, overall, within in measures.values():
        found = collapse_measures(chances)
        assert found["dispatch_entropy"].item() == pytest.approx(overall)
        assert found["dispatch_entropy_given_task"].item() == pytest.approx(within)


# --- what is the same as what


@pytest.mark.parametrize("task_label", [True, False])
@pytest.mark.parametrize("hidden_units", [0, 8])
def test_a_shared_network_is_a_perceptron_over_what_agents_see(task_label, hidden_units) -> None:
    spec = GameSpec(LEGAL, T, 5)
    net = Perceptrons(
        spec, 2, share_network=True, task_label=task_label, hidden_units=hidden_units, start_scale=1.0, seed=0
    )
    assert net.features is not None
    label = torch.zeros(T, net.depth.shape[-1]) if net.label is None else net.label
    weight = torch.cat([label, net.depth[0], torch.zeros_like(net.depth[0, :1]), net.features[0]])
    seen = trajectory_of(0, episodes=2, features=5).features
    assert seen is not None
    for depth in range(D):
        x = as_vectors(spec, Observation(depth, LEGAL[depth].expand(2, T, A), seen[depth])) @ weight
        if net.output is not None and net.bias is not None:
            x = x.relu() @ net.output[0] + net.bias[0]
        torch.testing.assert_close(net(slice(depth, depth + 1), seen[depth : depth + 1])[0], x)
        torch.testing.assert_close(net(slice(None), seen)[depth], x)


def test_a_network_per_agent_is_the_network_of_a_lone_agent() -> None:
    settings: dict[str, Any] = {"task_label": True, "hidden_units": 8, "start_scale": 1.0, "seed": 0}
    all_of_them = Perceptrons(GameSpec(LEGAL, T, 5), 2, share_network=False, **settings)
    alone = Perceptrons(GameSpec(LEGAL, 1, 5), 2, share_network=False, **settings)
    seen = trajectory_of(0, episodes=2, features=5).features
    assert seen is not None
    for task in range(T):
        alone.load_state_dict({name: value[task : task + 1] for name, value in all_of_them.state_dict().items()})
        torch.testing.assert_close(all_of_them(slice(None), seen)[:, :, [task]], alone(slice(None), seen[:, :, [task]]))


@pytest.mark.parametrize(
    ("table", "network"),
    [
        (PolicyGradient, PolicyGradientNetwork),
        (lambda spec, **kw: ActorCritic(spec, trace_decay=0.7, **kw), ActorCriticNetwork),
    ],
)
@pytest.mark.parametrize("episodes", [1, 3])
def test_linear_policies_learn_as_tables_do(table, network, episodes) -> None:
    expected = table(SPEC, policy_rate=0.3, baseline_rate=0.3, entropy=0.1, gamma=0.9)
    settings = TABLE if network is PolicyGradientNetwork else TABLE | {"trace_decay": 0.7}
    agent = descends(network(SPEC, entropy=0.1, gamma=0.9, **settings), 0.3)
    for seed in range(5):
        # a table's baseline takes the mean over active episodes, a gradient that over all
        trajectory = trajectory_of(seed, episodes, all_active=episodes > 1)
        expected.learn(trajectory)
        agent.learn(trajectory)
    learned = agent.function.network.depth.detach()
    torch.testing.assert_close(learned, torch.cat([expected.logits, expected.baseline.unsqueeze(-1)], -1))
    for depth in range(D):
        seen = start_at(depth, episodes=2)
        torch.testing.assert_close(agent.expected_return(seen), expected.expected_return(seen))


@pytest.mark.parametrize(("table", "network"), [(QLearning, QNetwork), (SARSA, SARSANetwork)])
def test_linear_values_learn_from_returns_as_tables_do(table, network) -> None:
    expected = table(SPEC, alpha=0.3, gamma=0.9, trace_decay=1.0)
    agent = descends(network(SPEC, gamma=0.9, trace_decay=1.0, **TABLE), 0.3)
    for seed in range(5):
        expected.learn(trajectory_of(seed))
        agent.learn(trajectory_of(seed))
    torch.testing.assert_close(agent.function.network.depth.detach(), expected.values)


def test_linear_values_learn_from_what_they_hope_for() -> None:
    # One step ahead, a table learns its last depth first; a gradient sees all values as they were before.
    agent = descends(QNetwork(SPEC, gamma=0.9, trace_decay=0.0, **TABLE), 0.3)
    q = torch.zeros(T, D, A)
    for seed in range(5):
        trajectory = trajectory_of(seed)
        agent.learn(trajectory)
        best = torch.where(LEGAL, q, -torch.inf).amax(-1)
        new = q.clone()
        for d in range(D):
            for t in range(T):
                later = 0.0
                if d + 1 < D:  # of the decisions that follow, the next active one counts
                    later = float(best[t, d + 1])
                    if not trajectory.active[d + 1, 0, t]:
                        rest = 0.9 * float(best[t, d + 2]) if d + 2 < D else 0.0
                        if d + 2 < D and not trajectory.active[d + 2, 0, t]:
                            rest = 0.9 * float(trajectory.rewards[d + 2, 0, t])
                        later = float(trajectory.rewards[d + 1, 0, t]) + rest
                if trajectory.active[d, 0, t]:
                    a = int(trajectory.actions[d, 0, t])
                    target = float(trajectory.rewards[d, 0, t]) + 0.9 * later
                    new[t, d, a] += 0.3 * (target - q[t, d, a])
        q = new
    torch.testing.assert_close(agent.function.network.depth.detach(), q)


@pytest.mark.parametrize("weighting", ["paper", "original"])
@pytest.mark.parametrize("advantage", ["sampled", "averaged"])
@pytest.mark.parametrize("projection", ["clip", "euclidean"])
def test_the_target_of_a_wpl_network_is_where_the_table_goes(weighting, advantage, projection) -> None:
    rule = {"weighting": weighting, "advantage": advantage, "projection": projection, "floor": 0.02}
    generator = torch.Generator().manual_seed(0)
    start = torch.where(LEGAL, 0.1 + torch.rand(T, D, A, generator=generator), 0.0)
    start = start / start.sum(-1, keepdim=True)
    table = WPL(SPEC, policy_rate=0.2, return_rate=0.3, gamma=0.9, initial_policy=start, **rule)
    before = table.probabilities  # above the floor already
    table.expected = torch.randn(T, D, A, generator=generator)
    agent = WPLNetwork(SPEC, policy_rate=0.2, return_rate=0.3, gamma=0.9, **rule)
    trajectory = trajectory_of(0, all_active=True)
    target = agent.targets(trajectory, before.movedim(0, 1)[:, None], table.expected.movedim(0, 1)[:, None])
    table.learn(trajectory)
    assert not torch.equal(table.probabilities, before)
    torch.testing.assert_close(target[:, 0].movedim(0, 1), table.probabilities)


def test_sarsa_and_q_agree_under_a_greedy_policy() -> None:
    settings: dict[str, Any] = {"alpha": 0.3, "gamma": 0.9, "trace_decay": 0.4}
    q, sarsa = QLearning(SPEC, **settings), SARSA(SPEC, **settings)
    networks = [make(SPEC, gamma=0.9, trace_decay=0.4, seed=0) for make in (QNetwork, SARSANetwork)]
    for seed in range(5):
        trajectory = trajectory_of(seed, episodes=2, all_active=True)
        for one, other in ((q, sarsa), networks):
            actions = torch.stack([one.act(start_at(depth, episodes=2), greedy=True) for depth in range(D)])
            # Paid well, the best actions of a table stay the best while it is learned from behind.
            greedy = trajectory._replace(actions=actions, rewards=trajectory.rewards.abs())
            one.learn(greedy)
            other.learn(greedy)
        assert torch.equal(q.values, sarsa.values)
        for one, other in zip(*(list(agent.function.network.parameters()) for agent in networks), strict=True):
            assert torch.equal(one, other)
    for agent in (q, sarsa):
        agent.learn(trajectory_of(9))
    assert not torch.equal(q.values, sarsa.values)


def test_actor_critic_that_looks_at_whole_returns_is_policy_gradient() -> None:
    agents = PolicyGradient(SPEC), ActorCritic(SPEC, trace_decay=1.0), ActorCritic(SPEC, trace_decay=0.5)
    for agent in agents:
        for seed in range(5):
            agent.learn(trajectory_of(seed, episodes=2))
    same, other = (agent.logits for agent in agents[1:])
    torch.testing.assert_close(agents[0].logits, same)
    assert not torch.allclose(other, same, atol=0.01)


def single_agent_of_tables(make: Callable[..., Any], **settings: Any) -> tuple[Any, Tensor]:
    """An agent that all tasks share, and its weights as the tables that they are, ``[task * depth, output]``.

    A linear function of the two one-hots adds what a task means to what a depth means. A hidden unit for each pair, 1
    where both are there, makes the pair's entry out of them: ``relu(label + depth - 1)``.
    """
    agent = make(SPEC, share_network=True, hidden_units=T * D, start_scale=0.0, gamma=0.9, seed=0, **settings)
    network = agent.function.network
    pairs = torch.eye(T * D).view(T, D, T * D)
    with torch.no_grad():
        network.label.copy_(pairs.sum(1))
        network.depth.copy_(pairs.sum(0)[None] - 1)
    descends(agent, 0.3, network.output)
    return agent, network.output[0]


def test_a_single_agent_with_the_task_one_hot_is_a_table_per_task() -> None:
    table = PolicyGradient(SPEC, policy_rate=0.3, baseline_rate=0.3, gamma=0.9)
    agent, weights = single_agent_of_tables(PolicyGradientNetwork)
    for seed in range(5):
        trajectory = trajectory_of(seed, episodes=2, all_active=True)
        table.learn(trajectory)
        agent.learn(trajectory)
    wanted = torch.cat([table.logits, table.baseline.unsqueeze(-1)], -1)
    torch.testing.assert_close(weights.detach().view(T, D, -1), wanted)
    for depth in range(D):
        torch.testing.assert_close(agent.policy(start_at(depth)), table.policy(start_at(depth)))
        assert torch.equal(agent.act(start_at(depth), greedy=True), table.act(start_at(depth), greedy=True))


@pytest.mark.parametrize(("tables", "make"), [(QLearning, QNetwork), (SARSA, SARSANetwork)])
def test_a_single_agent_with_the_task_one_hot_is_a_table_of_values_per_task(tables, make) -> None:
    table = tables(SPEC, alpha=0.3, gamma=0.9, trace_decay=1.0)
    agent, weights = single_agent_of_tables(make, trace_decay=1.0)
    for seed in range(5):
        table.learn(trajectory_of(seed))
        agent.learn(trajectory_of(seed))
    torch.testing.assert_close(weights.detach().view(T, D, A), table.values)


def identity(make: Callable[..., Any]) -> Dispatcher:
    """Task t is routed by agent t."""
    dispatch = FixedRoutes(dispatching_game(SPEC, T), torch.arange(T)[None])
    return Dispatcher(SPEC, dispatch, make(routing_game(SPEC, T), seed=0), routing_agents=T)


@pytest.mark.parametrize("make", [WPL, QLearning, SARSA, QNetwork, ActorCriticNetwork])
def test_a_dispatcher_that_sends_each_task_to_its_own_agent_is_an_agent_per_task(make) -> None:
    apart, dispatched = make(SPEC, seed=0), identity(make)
    for seed in range(4):
        trajectory = trajectory_of(seed, episodes=2)
        for depth in range(D):
            seen = start_at(depth, episodes=2)
            assert torch.equal(apart.act(seen, greedy=True), dispatched.act(seen, greedy=True))
            torch.testing.assert_close(dispatched.policy(seen), apart.policy(seen).expand(2, -1, -1))
        apart.learn(trajectory)
        dispatched.learn(trajectory)
    dispatched.act(start_at(0))
    for depth in range(D):
        torch.testing.assert_close(dispatched.policy(start_at(depth)), apart.policy(start_at(depth)))
        torch.testing.assert_close(dispatched.expected_return(start_at(depth)), apart.expected_return(start_at(depth)))


def test_a_dispatcher_with_one_routing_agent_is_a_single_agent_without_a_label() -> None:
    single = descends(ActorCriticNetwork(SPEC, share_network=True, task_label=False, seed=0), 0.1)
    dispatch = FixedRoutes(dispatching_game(SPEC, 1), torch.zeros(1, T, dtype=torch.long))
    routing = descends(ActorCriticNetwork(routing_game(SPEC, 1), seed=0), 0.1 * T)  # divides by its T * E episodes
    agent = Dispatcher(SPEC, dispatch, routing, routing_agents=1)
    for seed in range(4):
        agent.act(start_at(0, episodes=2))
        for each in (single, agent):
            each.learn(trajectory_of(seed, episodes=2))
    agent.act(start_at(0))
    for depth in range(D):
        torch.testing.assert_close(agent.policy(start_at(depth)), single.policy(start_at(depth)))


# --- the dispatcher


def test_a_dispatcher_and_its_routing_agents_learn_together() -> None:
    # Two kinds of tasks, four routing agents that differ from the start; right routes pay +1, wrong ones -1.
    spec = GameSpec(torch.ones(1, 2, dtype=torch.bool), 4)
    best = torch.tensor([0, 0, 1, 1])
    agent = dispatcher_of_networks(spec, routing_agents=4, network_rate=0.003, start_scale=1.0, entropy=0.1, seed=0)
    seen = Observation(0, torch.ones(8, 4, 2, dtype=torch.bool))
    for _ in range(100):
        actions = agent.act(seen)
        rewards = torch.where(actions == best, 1.0, -1.0)[None]
        agent.learn(Trajectory(actions[None], rewards, seen.mask[None], rewards.abs() > 0))
    assert torch.equal(agent.act(seen, greedy=True)[0], best)
    assert agent.assignment is not None and len(agent.assignment[0].unique()) > 1


def test_a_dispatcher_learns_who_routes_well() -> None:
    spec = GameSpec(torch.ones(1, 2, dtype=torch.bool), 2)
    routing = FixedRoutes(routing_game(spec, 2), torch.tensor([[0, 1]]))
    dispatching = dispatching_game(spec, 2)
    dispatch = PolicyGradientNetwork(dispatching, share_network=True, start_scale=0.0, network_rate=0.01, seed=0)
    agent = Dispatcher(spec, dispatch, routing, routing_agents=2)
    seen = Observation(0, torch.ones(8, 2, 2, dtype=torch.bool))
    measures = []
    for _ in range(100):
        actions = agent.act(seen)
        right = (actions == torch.tensor([1, 0])).float()
        told = agent.learn(Trajectory(actions[None], 2 * right[None] - 1, seen.mask[None], torch.ones(1, 8, 2) > 0))
        measures.append([float(told["dispatch_entropy"]), float(told["dispatch_entropy_given_task"])])
    assert agent.act(seen, greedy=True)[0].tolist() == [1, 0]
    assert measures[0] == pytest.approx([1.0, 1.0])
    assert measures[-1][0] > 0.9 and measures[-1][1] < 0.3


def test_the_assignment_holds_for_the_whole_route() -> None:
    k = 2
    routing = FixedRoutes(routing_game(SPEC, k), torch.tensor([[0, 1], [1, 2], [0, 1]]))
    dispatch = PolicyGradientNetwork(dispatching_game(SPEC, k), share_network=True, start_scale=0.0, seed=0)
    agent = Dispatcher(SPEC, dispatch, routing, routing_agents=k)
    played = torch.stack([agent.act(start_at(depth, episodes=20)) for depth in range(D)])
    who = played[0]
    assert set(who.unique().tolist()) == {0, 1}
    assert torch.equal(played, torch.stack([who, who + 1, who]))
    assert not hasattr(agent, "expected_return")  # nor have those who route


def test_a_dispatcher_must_have_assigned_before_others_act() -> None:
    agent = dispatcher_of_networks(SPEC, seed=0)
    with pytest.raises(UserError, match="act at depth 0 first"):
        agent.act(start_at(1))
    agent.act(start_at(0, episodes=2))
    with pytest.raises(UserError, match=r"shape \(1, 3\)"):
        agent.learn(trajectory_of(0))


def test_features_that_are_missing_are_named() -> None:
    agent = QNetwork(GameSpec(LEGAL, T, 5), seed=0)
    with pytest.raises(UserError, match="no features"):
        agent.act(start_at(0))


# --- every router by name, in real games

ROUTERS = [name for name, method in METHODS.items() if method.make_agent is not None and method.network is None]
OURS = ("sarsa", "actor_critic", "single_agent", "single_agent_unlabelled", "dispatcher")
OURS += tuple(f"{name}_network" for name in ("wpl", "q", "sarsa", "policy_gradient", "actor_critic"))


def test_the_methods_are_listed() -> None:
    assert set(OURS) <= set(ROUTERS)
    assert all(METHODS[name].summary and METHODS[name].source for name in OURS)
    labelled = {name: "task_label" in METHODS[name].settings for name in ("single_agent", "single_agent_unlabelled")}
    assert labelled == {"single_agent": True, "single_agent_unlabelled": False}
    check_settings(("dispatcher",), AgentConfig(routing_agents=3, hidden_units=8))
    with pytest.raises(UserError, match="share-network means nothing to wpl"):
        check_settings(("wpl",), AgentConfig(share_network=True))


@pytest.mark.parametrize("engine", [EngineConfig(instances=1, episodes=8), EngineConfig(instances=8, episodes=1)])
@pytest.mark.parametrize("name", OURS)
def test_decisions_are_made_per_instance_or_per_batch_without_waiting(name, engine) -> None:
    stop = NetworkConfig(recursive=True, allow_stop=True, hidden=8)
    config = RunConfig(method=name, engine=engine, network=stop, agent=AgentConfig(start_scale=0.0))
    game, agent = make_game(config, digits(), "cpu")
    assert (game.spec.n_features > 0) == METHODS[name].features
    active = []
    for _ in range(8):
        play_episode(game, agent)
        active.append(game.trajectory.active)
    assert not torch.stack(active).all()
    returns = Returns(game.spec, agent)
    with synchronisations() as found:
        play_episode(game, agent, returns)
    assert found == []
    _, expected = returns.means()  # all of them say what they expect
    assert expected.isfinite().all()
    assert game.trajectory.actions.shape == (3, engine.episodes, 10)
    policy = evaluate(game, agent, "test").policy
    assert policy is not None
    torch.testing.assert_close(policy.sum(-1), torch.ones(3, 10))


@pytest.mark.slow
@pytest.mark.parametrize("engine", [EngineConfig(instances=1, episodes=8), EngineConfig(instances=8, episodes=1)])
@pytest.mark.parametrize("name", [name for name in OURS if name not in ("single_agent_unlabelled", "dispatcher")])
def test_every_router_gets_away_from_always_no(name, engine) -> None:
    # One instance at a time pays -1 or 1: tables of values have to average over more of them (docs/routers.md).
    slower = AgentConfig(alpha=0.01) if name == "sarsa" and engine.instances == 1 else AgentConfig()
    run = Run(RunConfig(method=name, engine=engine, agent=slower))
    for _ in range(5):
        run.train_epoch()
    (last,) = [r["balanced_accuracy"] for r in run.rows if (r["epoch"], r["split"], r["task"]) == (5, "test", -1)]
    assert last > 0.55
