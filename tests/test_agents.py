"""The agents: hand-computed updates, slow oracles, masks, determinism, saving, bad parameters."""

import copy
import io
import math
import pickle
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from routing_marl.agents import (
    SARSA,
    WPL,
    ActorCritic,
    ActorCriticNetwork,
    FixedRoutes,
    PolicyGradient,
    PolicyGradientNetwork,
    QLearning,
    QNetwork,
    RandomAgent,
    SARSANetwork,
    WPLNetwork,
    all_shared,
    per_task,
    random_groups,
)
from routing_marl.agents.dispatcher import dispatcher_of_networks
from routing_marl.errors import UserError
from routing_marl.protocol import Agent, GameSpec, Observation, Trajectory
from routing_marl.synchronisation import synchronisations

T, D, A, F = 4, 3, 5, 6
LEGAL = torch.tensor([[1, 1, 1, 1, 1], [0, 1, 1, 0, 1], [1, 1, 0, 1, 0]], dtype=torch.bool)
SPEC = GameSpec(LEGAL, T, F)

Maker = Callable[..., Agent]
TABLES: dict[str, Maker] = {
    "wpl": WPL,
    "wpl averaged": lambda spec, **kw: WPL(spec, advantage="averaged", policy_rate=0.3, **kw),
    "wpl original": lambda spec, **kw: WPL(spec, weighting="original", projection="euclidean", floor=0.02, **kw),
    "q": lambda spec, **kw: QLearning(spec, epsilon_steps=5, **kw),
    "sarsa": SARSA,
    "pg": PolicyGradient,
    "a2c": ActorCritic,
}
NETWORKS: dict[str, Maker] = {
    "wpl network": lambda spec, **kw: WPLNetwork(spec, weighting="original", advantage="averaged", **kw),
    "q network": lambda spec, **kw: QNetwork(spec, epsilon_steps=5, **kw),
    "sarsa network": lambda spec, **kw: SARSANetwork(spec, epsilon_steps=5, hidden_units=0, **kw),
    "pg network": lambda spec, **kw: PolicyGradientNetwork(spec, share_network=True, **kw),
    "a2c network": ActorCriticNetwork,
    "single agent": lambda spec, **kw: ActorCriticNetwork(spec, share_network=True, task_label=False, **kw),
    "dispatcher": lambda spec, **kw: dispatcher_of_networks(spec, routing_agents=3, **kw),
}
LEARNERS = TABLES | NETWORKS
SAMPLERS: dict[str, Maker] = LEARNERS | {"random": RandomAgent}
ROUTES = torch.tensor([[0, 1, 2, 3], [1, 1, 2, 4], [0, 1, 3, 3]])
ALL: dict[str, Maker] = SAMPLERS | {"fixed": lambda spec, seed=None: FixedRoutes(spec, ROUTES)}


def random_masks(generator: torch.Generator, *shape: int, legal: Tensor = LEGAL) -> Tensor:
    """Random non-empty subsets of the legal actions; ``legal`` broadcasts against ``shape``."""
    masks = (torch.rand(*shape, generator=generator) < 0.6) & legal
    return torch.where(masks.any(-1, keepdim=True), masks, legal)


def random_trajectory(seed: int, episodes: int = 3) -> Trajectory:
    """Legal actions under random masks; about a quarter of the decisions inactive."""
    generator = torch.Generator().manual_seed(seed)
    masks = random_masks(generator, D, episodes, T, A, legal=LEGAL[:, None, None])
    scores = torch.where(masks, torch.rand(masks.shape, generator=generator), -1.0)
    rewards = torch.randn(D, episodes, T, generator=generator)
    active = torch.rand(D, episodes, T, generator=generator) < 0.75
    features = torch.randn(D, episodes, T, F, generator=generator)
    return Trajectory(scores.argmax(-1), rewards, masks, active, features)


def single(action: int, reward: float, actions: int) -> Trajectory:
    """One episode of one agent with one decision."""
    return Trajectory(
        torch.full((1, 1, 1), action),
        torch.full((1, 1, 1), reward),
        torch.ones(1, 1, 1, actions, dtype=torch.bool),
        torch.ones(1, 1, 1, dtype=torch.bool),
    )


def observe(depth: int, episodes: int = 3, seed: int = 0) -> Observation:
    generator = torch.Generator().manual_seed(seed)
    masks = random_masks(generator, episodes, T, A, legal=LEGAL[depth])
    return Observation(depth, masks, torch.randn(episodes, T, F, generator=generator))


def tables(agent: Agent) -> dict[str, Tensor]:
    """All tensors that an agent has learned, by their place in its state."""

    def flat(state: Mapping[str, object], prefix: str = "") -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for name, value in state.items():
            if isinstance(value, Tensor):
                found[f"{prefix}{name}"] = value
            elif isinstance(value, Mapping) and name != "stream":
                found |= flat({str(key): part for key, part in value.items()}, f"{prefix}{name}.")
        return found

    return flat(agent.state_dict())


def assert_same(first: Agent, second: Agent) -> None:
    one, other = tables(first), tables(second)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def play_and_learn(agent: Agent, rounds: range) -> Tensor:
    """Acts and learns; returns every action, so that two agents can be compared to the bit."""
    actions = []
    for i in rounds:
        actions += [agent.act(observe(depth, seed=i)) for depth in range(D)]
        agent.learn(random_trajectory(i))
    return torch.stack(actions)


# --- hand-computed numbers


def one_agent(**parameters: object) -> WPL:
    policy = torch.tensor([[[0.5, 0.3, 0.2]]])
    spec = GameSpec(torch.ones(1, 3, dtype=torch.bool), 1)
    return WPL(spec, policy_rate=0.1, return_rate=0.5, initial_policy=policy, **parameters)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("parameters", "action", "reward", "expected"),
    [
        # Rhat = 0.5, Delta = 0.5; w = pi = 0.3, step 0.015
        ({}, 1, 1.0, [0.5 / 1.015, 0.315 / 1.015, 0.2 / 1.015]),
        # w = 1 - pi = 0.7, step 0.035
        ({"weighting": "original"}, 1, 1.0, [0.5 / 1.035, 0.335 / 1.035, 0.2 / 1.035]),
        # Rhat = -0.5, Delta = -0.5
        ({}, 1, -1.0, [0.5 / 0.965, 0.265 / 0.965, 0.2 / 0.965]),
        ({"weighting": "original"}, 1, -1.0, [0.5 / 0.985, 0.285 / 0.985, 0.2 / 0.985]),
        # the step of 0.015 is taken from all three alike
        ({"projection": "euclidean"}, 1, 1.0, [0.495, 0.31, 0.195]),
        # Rhat = (0, 0.5, 0), its mean 0.15; Delta = (-0.15, 0.35, -0.15); w = (0.5, 0.3, 0.8)
        ({"advantage": "averaged"}, 1, 1.0, [0.4925 / 0.991, 0.3105 / 0.991, 0.188 / 0.991]),
        # w = (0.5, 0.7, 0.2)
        (
            {"advantage": "averaged", "weighting": "original"},
            1,
            1.0,
            [0.4925 / 1.014, 0.3245 / 1.014, 0.197 / 1.014],
        ),
        ({"advantage": "averaged", "projection": "euclidean"}, 1, 1.0, [0.4955, 0.3135, 0.191]),
        # (0.525, 0.3, 0.2): above the floor stand (0.325, 0.1, 0), to be scaled from 0.425 to 0.4
        ({"floor": 0.2}, 0, 1.0, [0.2 + 0.13 / 0.425, 0.2 + 0.04 / 0.425, 0.2]),
        # the third is at its floor already, so the two others share 0.025
        ({"floor": 0.2, "projection": "euclidean"}, 0, 1.0, [0.5125, 0.2875, 0.2]),
        ({"floor": 0.2}, 2, -1.0, [0.5, 0.3, 0.2]),
    ],
)
def test_wpl_by_hand(parameters, action, reward, expected) -> None:
    agent = one_agent(**parameters)
    agent.learn(single(action, reward, 3))
    torch.testing.assert_close(agent.probabilities, torch.tensor([[expected]]))
    wanted = torch.zeros(1, 1, 3)
    wanted[..., action] = reward / 2
    torch.testing.assert_close(agent.expected, wanted)


def test_wpl_averages_over_the_actions_legal_at_the_decision() -> None:
    agent = one_agent(advantage="averaged")
    mask = torch.tensor([True, True, False])
    agent.learn(single(1, 1.0, 3)._replace(masks=mask.reshape(1, 1, 1, 3)))
    # restricted policy (5/8, 3/8): mean 0.1875, Delta = (-0.1875, 0.3125, 0); w = (0.5, 0.3, -)
    moved = torch.tensor([0.5 - 0.1 * 0.1875 * 0.5, 0.3 + 0.1 * 0.3125 * 0.3, 0.2])
    torch.testing.assert_close(agent.probabilities[0, 0], moved / moved.sum())


def test_q_learning_by_hand() -> None:
    spec = GameSpec(torch.ones(2, 2, dtype=torch.bool), 1)
    agent = QLearning(spec, alpha=0.5, gamma=0.9)
    episode = Trajectory(
        torch.tensor([0, 1]).reshape(2, 1, 1),
        torch.tensor([0.2, 1.0]).reshape(2, 1, 1),
        torch.ones(2, 1, 1, 2, dtype=torch.bool),
        torch.ones(2, 1, 1, dtype=torch.bool),
    )
    agent.learn(episode)  # last depth first: Q1 = 0.5, then Q0 = 0.5 (0.2 + 0.9 * 0.5)
    torch.testing.assert_close(agent.values, torch.tensor([[[0.325, 0.0], [0.0, 0.5]]]))
    agent.learn(episode)  # Q1 = 0.75, Q0 = 0.325 + 0.5 (0.2 + 0.675 - 0.325)
    torch.testing.assert_close(agent.values, torch.tensor([[[0.6, 0.0], [0.0, 0.75]]]))


def test_q_learning_with_traces_by_hand() -> None:
    spec = GameSpec(torch.ones(2, 2, dtype=torch.bool), 1)
    agent = QLearning(spec, alpha=0.5, gamma=0.9, trace_decay=0.25)
    agent.values = torch.tensor([[[0.0, 0.0], [0.0, 2.0]]])
    episode = Trajectory(
        torch.tensor([0, 0]).reshape(2, 1, 1),
        torch.tensor([0.2, 1.0]).reshape(2, 1, 1),
        torch.ones(2, 1, 1, 2, dtype=torch.bool),
        torch.ones(2, 1, 1, dtype=torch.bool),
    )
    agent.learn(episode)  # Q0 = 0.5 (0.2 + 0.9 (0.75 * 2 + 0.25 * 1))
    torch.testing.assert_close(agent.values, torch.tensor([[[0.8875, 0.0], [0.5, 2.0]]]))


def test_q_learning_pays_the_last_decision_for_what_comes_after_stopping() -> None:
    spec = GameSpec(torch.ones(3, 2, dtype=torch.bool), 1)
    agent = QLearning(spec, alpha=0.5, gamma=0.5)
    episode = Trajectory(
        torch.zeros(3, 1, 1, dtype=torch.long),
        torch.tensor([0.2, 0.3, 1.0]).reshape(3, 1, 1),
        torch.ones(3, 1, 1, 2, dtype=torch.bool),
        torch.tensor([True, False, False]).reshape(3, 1, 1),
    )
    agent.learn(episode)  # 0.5 (0.2 + 0.5 (0.3 + 0.5 * 1))
    torch.testing.assert_close(agent.values[0, :, 0], torch.tensor([0.3, 0.0, 0.0]))


def test_policy_gradient_by_hand() -> None:
    spec = GameSpec(torch.ones(1, 2, dtype=torch.bool), 1)
    agent = PolicyGradient(spec, policy_rate=0.1, baseline_rate=0.2, entropy=0.0)
    agent.learn(single(0, 1.0, 2))  # advantage 1, gradient (0.5, -0.5)
    torch.testing.assert_close(agent.logits, torch.tensor([[[0.05, -0.05]]]))
    torch.testing.assert_close(agent.baseline, torch.tensor([[0.2]]))
    agent.learn(single(1, -1.0, 2))  # advantage -1.2, pi_0 = sigmoid(0.1)
    pull = 0.1 * 1.2 / (1 + math.exp(-0.1))
    torch.testing.assert_close(agent.logits, torch.tensor([[[0.05 + pull, -0.05 - pull]]]))
    torch.testing.assert_close(agent.baseline, torch.tensor([[-0.04]]))


# --- slow loops over single decisions, as oracles


def decisions(trajectory: Trajectory, gamma: float):
    """Every active decision with its return, episode by episode, depth by depth."""
    for e in range(trajectory.actions.shape[1]):
        for d in range(D):
            for t in range(T):
                if trajectory.active[d, e, t]:
                    later = trajectory.rewards[d:, e, t].double()
                    value = sum(gamma**k * reward.item() for k, reward in enumerate(later))
                    yield t, d, int(trajectory.actions[d, e, t]), value, trajectory.masks[d, e, t]


def slow_projection(values: list[float], legal: list[bool], floor: float, euclidean: bool) -> list[float]:
    spare = 1 - floor * sum(legal)
    if euclidean:
        low, high = -10.0, 10.0
        for _ in range(100):
            middle = (low + high) / 2
            total = sum(max(v - floor - middle, 0) for v, ok in zip(values, legal, strict=True) if ok)
            low, high = (middle, high) if total > spare else (low, middle)
        return [floor + max(v - floor - low, 0) if ok else 0.0 for v, ok in zip(values, legal, strict=True)]
    above = [max(floor, min(1, v)) - floor if ok else 0.0 for v, ok in zip(values, legal, strict=True)]
    return [floor + x * spare / sum(above) if ok else 0.0 for x, ok in zip(above, legal, strict=True)]


@pytest.mark.parametrize("weighting", ["paper", "original"])
@pytest.mark.parametrize("advantage", ["sampled", "averaged"])
@pytest.mark.parametrize(("projection", "floor"), [("clip", 0.0), ("clip", 0.05), ("euclidean", 0.05)])
def test_wpl_equals_a_loop_over_decisions(weighting, advantage, projection, floor) -> None:
    agent = WPL(
        SPEC,
        weighting=weighting,
        advantage=advantage,
        projection=projection,
        floor=floor,
        policy_rate=0.05,
        return_rate=0.2,
        gamma=0.9,
    )
    policy = [[[float(ok) / int(row.sum()) for ok in row] for row in LEGAL] for _ in range(T)]
    expected = [[[0.0] * A for _ in range(D)] for _ in range(T)]
    for seed in range(5):
        trajectory = random_trajectory(seed)
        agent.learn(trajectory)
        for t, d, action, value, mask in decisions(trajectory, 0.9):
            pi, rhat = policy[t][d], expected[t][d]
            rhat[action] = 0.8 * rhat[action] + 0.2 * value
            delta = [0.0] * A
            if advantage == "sampled":
                delta[action] = value - rhat[action]
            else:
                legal_now = [a for a in range(A) if mask[a]]
                mass = sum(pi[a] for a in legal_now)
                mean = sum(pi[a] / mass * rhat[a] for a in legal_now)
                for a in legal_now:
                    delta[a] = rhat[a] - mean
            moved = []
            for a in range(A):
                gain = delta[a] > 0
                weight = pi[a] if gain == (weighting == "paper") else 1 - pi[a]
                moved.append(pi[a] + 0.05 * delta[a] * weight)
            policy[t][d] = slow_projection(moved, LEGAL[d].tolist(), floor, projection == "euclidean")
    torch.testing.assert_close(agent.expected, torch.tensor(expected), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(agent.probabilities, torch.tensor(policy), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("trace_decay", [0.0, 0.7, 1.0])
def test_q_learning_equals_a_loop_over_decisions(trace_decay) -> None:
    agent = QLearning(SPEC, alpha=0.3, gamma=0.9, trace_decay=trace_decay)
    q = [[[0.0] * A for _ in range(D)] for _ in range(T)]

    def target(trajectory: Trajectory, d: int, e: int, t: int) -> float:
        """What is paid until the next active decision, and what is hoped for from there."""
        reward = trajectory.rewards[d, e, t].item()
        if d + 1 == D:
            return reward
        later = target(trajectory, d + 1, e, t)
        if trajectory.active[d + 1, e, t]:
            best = max(q[t][d + 1][a] for a in range(A) if trajectory.masks[d + 1, e, t, a])
            later = (1 - trace_decay) * best + trace_decay * later
        return reward + 0.9 * later

    for seed in range(5):
        trajectory = random_trajectory(seed)
        agent.learn(trajectory)
        for e in range(3):
            for t in range(T):
                for d in reversed(range(D)):
                    if trajectory.active[d, e, t]:
                        action = int(trajectory.actions[d, e, t])
                        q[t][d][action] += 0.3 * (target(trajectory, d, e, t) - q[t][d][action])
    torch.testing.assert_close(agent.values, torch.tensor(q), atol=1e-5, rtol=1e-4)


def test_policy_gradient_equals_autograd_over_decisions() -> None:
    agent = PolicyGradient(SPEC, policy_rate=0.3, baseline_rate=0.2, entropy=0.1, gamma=0.9)
    logits = torch.zeros(T, D, A, dtype=torch.double, requires_grad=True)
    baseline = torch.zeros(T, D, dtype=torch.double)
    for seed in range(5):
        trajectory = random_trajectory(seed)
        agent.learn(trajectory)
        objective = torch.zeros((), dtype=torch.double)
        seen: dict[tuple[int, int], list[float]] = {}
        for t, d, action, value, mask in decisions(trajectory, 0.9):
            logp = logits[t, d][mask].log_softmax(-1)
            chosen = logp[int(mask[:action].sum())]
            objective = objective + (value - baseline[t, d]) * chosen - 0.1 * (logp.exp() * logp).sum()
            seen.setdefault((t, d), []).append(value)
        (gradient,) = torch.autograd.grad(objective / 3, logits)
        logits = (logits + 0.3 * gradient).detach().requires_grad_()
        for (t, d), values in seen.items():
            baseline[t, d] += 0.2 * (sum(values) / len(values) - baseline[t, d])
    torch.testing.assert_close(agent.logits.double(), logits.detach(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(agent.baseline.double(), baseline, atol=1e-5, rtol=1e-4)


# --- what holds for every agent


@pytest.mark.parametrize("name", TABLES)
def test_inactive_decisions_change_nothing_to_the_bit(name) -> None:
    agent = LEARNERS[name](SPEC, seed=0)
    play_and_learn(agent, range(3))
    before = tables(agent)
    trajectory = random_trajectory(7, episodes=1)
    agent.learn(trajectory)
    idle = ~trajectory.active[:, 0].T
    assert idle.any()
    for key, table in tables(agent).items():
        if key != "batches":
            assert torch.equal(table[idle], before[key][idle])
            assert not torch.equal(table, before[key])


@pytest.mark.parametrize("name", ["wpl", "wpl averaged", "wpl original", "q", "sarsa"])
def test_parallel_episodes_are_learned_one_after_the_other(name) -> None:
    together, apart = (LEARNERS[name](SPEC, seed=0) for _ in range(2))
    trajectory = random_trajectory(0)
    together.learn(trajectory)
    for e in range(3):
        apart.learn(Trajectory(*(field[:, e : e + 1] for field in trajectory[:4])))
    for key, table in tables(together).items():
        if key != "batches":
            assert torch.equal(table, tables(apart)[key])


@pytest.mark.parametrize("name", ALL)
def test_only_legal_actions_are_taken_and_get_probability(name) -> None:
    agent = ALL[name](SPEC, seed=0)
    assert isinstance(agent, Agent)
    for i in range(8 if name in NETWORKS else 30):
        for depth in range(D):
            observation = observe(depth, seed=i)
            policy = agent.policy(observation)  # type: ignore[attr-defined]
            assert (policy[~observation.mask] == 0).all()
            torch.testing.assert_close(policy.sum(-1), torch.ones(3, T))
            for greedy in (False, True):
                action = agent.act(observation, greedy=greedy).unsqueeze(-1)
                assert observation.mask.gather(-1, action).all()
                assert greedy or (policy.gather(-1, action) > 0).all()
        agent.learn(random_trajectory(i))


@pytest.mark.parametrize("name", LEARNERS)
def test_learning_reports_finite_scalars(name) -> None:
    agent = LEARNERS[name](SPEC, seed=0)
    agent.act(observe(0))
    metrics = agent.learn(random_trajectory(0))
    assert metrics["return"] == random_trajectory(0).returns()[0].mean()
    assert all(value.shape == () and value.isfinite() for value in metrics.values())


@pytest.mark.parametrize("name", SAMPLERS)
def test_one_seed_gives_one_history_whatever_the_global_generator_does(name) -> None:
    first = SAMPLERS[name](SPEC, seed=5)
    before = torch.get_rng_state()
    actions = play_and_learn(first, range(10))
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(17)
    second, other = SAMPLERS[name](SPEC, seed=5), SAMPLERS[name](SPEC, seed=6)
    assert torch.equal(play_and_learn(second, range(10)), actions)
    assert_same(first, second)
    assert not torch.equal(play_and_learn(other, range(10)), actions)


@pytest.mark.parametrize("name", ALL)
def test_a_saved_agent_goes_on_to_the_bit(name) -> None:
    agent = ALL[name](SPEC, seed=5)
    play_and_learn(agent, range(5))
    file = io.BytesIO()
    torch.save(agent.state_dict(), file)
    file.seek(0)
    expected = play_and_learn(agent, range(5, 10))
    restored = ALL[name](SPEC, seed=99)
    restored.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(play_and_learn(restored, range(5, 10)), expected)
    assert_same(agent, restored)


@pytest.mark.parametrize("name", LEARNERS)
def test_a_state_is_a_copy_and_a_foreign_one_is_refused(name) -> None:
    agent = LEARNERS[name](SPEC, seed=0)
    play_and_learn(agent, range(2))
    state = agent.state_dict()
    kept = copy.deepcopy(state)
    play_and_learn(agent, range(2, 4))
    assert str(state) == str(kept)
    assert str(state) != str(agent.state_dict())
    learned = tables(agent)
    foreign = LEARNERS[name](GameSpec(LEGAL, T + 1), seed=0).state_dict()
    for bad in (foreign, {}, dict(list(state.items())[:-1])):
        with pytest.raises(UserError, match="needs"):
            agent.load_state_dict(bad)
    assert all(torch.equal(table, learned[key]) for key, table in tables(agent).items())


CLONES = {"copy": copy.copy, "deepcopy": copy.deepcopy, "pickle": lambda agent: pickle.loads(pickle.dumps(agent))}


@pytest.mark.parametrize("clone", CLONES)
@pytest.mark.parametrize("name", [*SAMPLERS])
def test_clones_of_an_unseeded_agent_act_differently_and_learn_apart(name, clone) -> None:
    if name in NETWORKS and clone == "copy":
        pytest.skip("a shallow copy shares the networks")
    # With their usual start, networks may be so sure of themselves that twins can't but agree.
    agent = SAMPLERS[name](SPEC, **({"start_scale": 0.3} if name in NETWORKS else {}))
    twin = CLONES[clone](agent)
    one, other = ([each.act(observe(0, 20)) for _ in range(3)] for each in (agent, twin))
    assert not torch.equal(torch.stack(one), torch.stack(other))
    before = tables(agent)
    twin.act(observe(0))
    twin.learn(random_trajectory(0))
    assert all(torch.equal(table, before[name]) for name, table in tables(agent).items())


@pytest.mark.parametrize("name", ALL)
def test_acting_and_learning_never_wait_for_the_device(name) -> None:
    agent = ALL[name](SPEC, seed=0)
    agent.act(observe(0))
    observation, trajectory = observe(1), random_trajectory(0)
    with synchronisations() as found:
        agent.act(observation)
        agent.act(observation, greedy=True)
        agent.policy(observation)  # type: ignore[attr-defined]
        agent.learn(trajectory)
    assert found == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("name", ALL)
def test_agents_live_on_the_device_of_the_game(name) -> None:
    device = torch.device("cuda")
    agent = ALL[name](GameSpec(LEGAL.to(device), T, F, device=device), seed=0)
    for depth in range(D):
        _, mask, features = observe(depth)
        assert agent.act(Observation(depth, mask.to(device), features.to(device))).device.type == "cuda"
    agent.learn(Trajectory(*(field.to(device) for field in random_trajectory(0))))


# --- particular agents


def test_wpl_starts_uniform_over_the_legal_actions_or_where_it_is_told() -> None:
    policy = WPL(SPEC, seed=0).policy(Observation(1, LEGAL[1].expand(1, T, A)))
    torch.testing.assert_close(policy[0, 0], torch.tensor([0, 1, 1, 0, 1]) / 3)
    start = torch.zeros(T, D, A)
    start[..., 1] = 1.0
    assert torch.equal(WPL(SPEC, initial_policy=start).probabilities, start)
    # all mass on action 1, which a decision may forbid
    mask = torch.tensor([True, False, True, False, False]).expand(1, T, A)
    policy = WPL(SPEC, initial_policy=start).policy(Observation(0, mask))
    assert policy[0, 0].tolist() == [0.5, 0.0, 0.5, 0.0, 0.0]


@pytest.mark.parametrize("projection", ["clip", "euclidean"])
def test_wpl_keeps_its_floor_whatever_happens(projection) -> None:
    agent = WPL(SPEC, projection=projection, floor=0.05, policy_rate=2.0)
    for seed in range(30):
        agent.learn(random_trajectory(seed))
    assert (agent.probabilities[:, LEGAL] >= 0.05 - 1e-6).all()
    assert (agent.probabilities[:, ~LEGAL] == 0).all()


def test_q_learning_explores_without_bias_and_its_epsilon_falls_linearly() -> None:
    agent = QLearning(SPEC, seed=0, epsilon_start=0.8, epsilon_end=0.2, epsilon_steps=4)
    full = Observation(0, LEGAL[0].expand(5000, T, A))
    share = agent.act(full).flatten().bincount(minlength=A) / (5000 * T)
    assert (share - 0.2).abs().max() < 0.02
    assert (agent.act(full, greedy=True) == 0).all()
    epsilons = []
    for seed in range(6):
        epsilons.append(agent.epsilon.item())
        agent.learn(random_trajectory(seed))
    assert epsilons == pytest.approx([0.8, 0.65, 0.5, 0.35, 0.2, 0.2])


def test_q_learning_reports_clipped_values() -> None:
    agent = QLearning(SPEC)
    agent.values = torch.tensor([-1.0, 0.3, 2.0, 0.4, 1.0]).repeat(T, D, 1)
    reported = agent.reported(Observation(1, LEGAL[1].expand(2, T, A)))
    torch.testing.assert_close(reported[1, 2], torch.tensor([0.0, 0.3, 1.0, 0.0, 1.0]))


def test_fixed_routes_play_their_table() -> None:
    agent = FixedRoutes(SPEC, ROUTES)
    played = torch.stack([agent.act(Observation(d, LEGAL[d].expand(2, T, A))) for d in range(D)])
    assert torch.equal(played, ROUTES[:, None].expand(D, 2, T))


@pytest.mark.parametrize(("depth", "task", "action"), [(1, 2, 0), (2, 3, 4), (0, 1, 5), (0, 0, -1)])
def test_an_illegal_route_is_named(depth, task, action) -> None:
    table = ROUTES.clone()
    table[depth, task] = action
    with pytest.raises(UserError, match=f"task {task} has action {action} at depth {depth}"):
        FixedRoutes(SPEC, table)


def test_route_tables() -> None:
    assert per_task(3, 2, 3).tolist() == [[0, 1, 2], [0, 1, 2]]
    assert all_shared(3, 2, block=1).tolist() == [[1, 1, 1], [1, 1, 1]]
    groups = random_groups(10, (3, 3, 3, 5), seed=1)
    assert groups.shape == (4, 10)
    assert all(sorted(row.bincount(minlength=3).tolist()) == [3, 3, 4] for row in groups[:3])
    assert groups[3].bincount().tolist() == [2, 2, 2, 2, 2]
    assert torch.equal(groups, random_groups(10, (3, 3, 3, 5), seed=1))
    assert len({tuple(row.tolist()) for row in groups}) > 1
    with pytest.raises(UserError, match="n_blocks is 2"):
        per_task(3, 2, 2)
    with pytest.raises(UserError, match="n_groups is 0"):
        random_groups(3, (2, 0))


@pytest.mark.parametrize(
    ("maker", "parameter", "value"),
    [
        (WPL, "weighting", "papers"),
        (WPL, "advantage", "mean"),
        (WPL, "projection", None),
        (WPL, "floor", 0.21),
        (WPL, "floor", -0.1),
        (WPL, "policy_rate", -1.0),
        (WPL, "policy_rate", math.inf),
        (WPL, "return_rate", 1.5),
        (WPL, "gamma", math.nan),
        (WPL, "seed", -1),
        (WPL, "initial_policy", torch.ones(T, D, A) / A),
        (WPL, "initial_policy", torch.ones(T, D, A + 1) / (A + 1)),
        (QLearning, "alpha", 2.0),
        (QLearning, "gamma", -0.1),
        (QLearning, "trace_decay", 1.1),
        (QLearning, "epsilon_start", 1.1),
        (QLearning, "epsilon_end", -0.1),
        (QLearning, "epsilon_steps", 0),
        (PolicyGradient, "policy_rate", -0.1),
        (PolicyGradient, "baseline_rate", 1.1),
        (PolicyGradient, "entropy", -0.01),
        (PolicyGradient, "gamma", 1.01),
        (RandomAgent, "seed", 1.5),
        (SARSA, "trace_decay", -0.1),
        (ActorCritic, "trace_decay", 1.1),
        (QNetwork, "hidden_units", -1),
        (QNetwork, "network_rate", -0.1),
        (QNetwork, "trace_decay", 1.1),
        (SARSANetwork, "epsilon_steps", 0),
        (ActorCriticNetwork, "task_label", False),
        (ActorCriticNetwork, "entropy", -0.1),
        (PolicyGradientNetwork, "gamma", 1.1),
        (WPLNetwork, "weighting", "papers"),
        (WPLNetwork, "floor", 0.21),
        (WPLNetwork, "return_rate", -1.0),
        (dispatcher_of_networks, "routing_agents", 0),
        (dispatcher_of_networks, "gamma", 2.0),
    ],
)
def test_bad_parameters_are_named(maker, parameter, value) -> None:
    with pytest.raises(Exception, match=parameter) as caught:
        maker(SPEC, **{parameter: value})
    # a value of the wrong type is caught by the tests' own type checker first
    assert isinstance(caught.value, UserError) or "Type-check" in str(caught.value)


def test_a_table_of_the_wrong_shape_is_refused() -> None:
    with pytest.raises(UserError, match="shape"):
        FixedRoutes(SPEC, ROUTES[:2])


# --- a game that every learner solves


INDIFFERENT: dict[str, Any] = {"start_scale": 0.0, "network_rate": 0.01}
EXPLORING: dict[str, Any] = INDIFFERENT | {"epsilon_start": 1.0}
SOLVERS: dict[str, Maker] = {
    # Slow enough to find out before it commits: rich gets richer.
    "wpl": lambda spec, **kw: WPL(spec, policy_rate=0.01, **kw),
    "wpl averaged": lambda spec, **kw: WPL(spec, policy_rate=0.01, advantage="averaged", **kw),
    "wpl original": lambda spec, **kw: WPL(
        spec, weighting="original", advantage="averaged", projection="euclidean", policy_rate=0.01, floor=0.02, **kw
    ),
    "q": lambda spec, **kw: QLearning(spec, alpha=0.05, trace_decay=1.0, epsilon_steps=100, **kw),
    "sarsa": lambda spec, **kw: SARSA(spec, alpha=0.05, trace_decay=1.0, epsilon_steps=100, **kw),
    "pg": lambda spec, **kw: PolicyGradient(spec, policy_rate=0.5, **kw),
    "a2c": lambda spec, **kw: ActorCritic(spec, policy_rate=0.5, **kw),
    "wpl network": lambda spec, **kw: WPLNetwork(spec, weighting="original", advantage="averaged", **INDIFFERENT, **kw),
    "q network": lambda spec, **kw: QNetwork(spec, trace_decay=1.0, epsilon_steps=100, **EXPLORING, **kw),
    "sarsa network": lambda spec, **kw: SARSANetwork(spec, trace_decay=1.0, epsilon_steps=100, **EXPLORING, **kw),
    "pg network": lambda spec, **kw: PolicyGradientNetwork(spec, **INDIFFERENT, **kw),
    "a2c network": lambda spec, **kw: ActorCriticNetwork(spec, **INDIFFERENT, **kw),
    "single agent": lambda spec, **kw: ActorCriticNetwork(
        spec, share_network=True, entropy=0.05, **INDIFFERENT | {"network_rate": 0.003}, **kw
    ),
}


def solve(agent: Agent, spec: GameSpec, best: Tensor, *, steps: int, episodes: int, seed: int) -> Tensor:
    """Pays +1 with a chance of 0.1 to 0.9, by how much of a route is right, at the end; returns the greedy routes.

    Where the game has features, they tell tasks apart.
    """
    noise = torch.Generator().manual_seed(seed)
    mask = torch.ones(episodes, spec.n_tasks, spec.n_actions, dtype=torch.bool)
    active = torch.ones(spec.n_depths, episodes, spec.n_tasks, dtype=torch.bool)
    who = torch.eye(spec.n_tasks).expand(episodes, -1, -1) if spec.n_features else None
    seen = [Observation(depth, mask, who) for depth in range(spec.n_depths)]
    features = None if who is None else who.expand(spec.n_depths, -1, -1, -1)
    for _ in range(steps):
        played = torch.stack([agent.act(observation) for observation in seen])
        chance = 0.1 + 0.8 * (played == best[:, None]).float().mean(0)
        rewards = torch.zeros(active.shape)
        rewards[-1] = torch.where(torch.rand(chance.shape, generator=noise) < chance, 1.0, -1.0)
        agent.learn(Trajectory(played, rewards, mask.expand(spec.n_depths, -1, -1, -1), active, features))
    return torch.stack([agent.act(observation, greedy=True)[0] for observation in seen])


@pytest.mark.parametrize("name", SOLVERS)
def test_every_learner_finds_the_best_routes(name) -> None:
    spec = GameSpec(torch.ones(2, 4, dtype=torch.bool), 4)
    best = torch.tensor([[0, 1, 2, 3], [3, 3, 0, 1]])
    assert torch.equal(solve(SOLVERS[name](spec, seed=0), spec, best, steps=300, episodes=8, seed=0), best)


@pytest.mark.parametrize("n_features", [0, 4])
def test_a_single_agent_without_a_label_tells_tasks_apart_by_their_features_only(n_features) -> None:
    spec = GameSpec(torch.ones(2, 4, dtype=torch.bool), 4, n_features)
    best = torch.tensor([[0, 1, 2, 3], [3, 3, 0, 1]])
    agent = ActorCriticNetwork(spec, share_network=True, task_label=False, **INDIFFERENT, seed=0)
    found = solve(agent, spec, best, steps=300, episodes=8, seed=0)
    assert torch.equal(found, best) == bool(n_features)
    assert n_features or (found == found[:, :1]).all()
