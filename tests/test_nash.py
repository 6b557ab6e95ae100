"""The Nash gap of a routing game against loops over agents, routes and instances; and the rewinding that it needs."""

from itertools import product

import numpy as np
import pytest
import torch
from test_routing_v0 import SUITE

from routing_marl.agents import WPL, FixedRoutes, PolicyGradient, QLearning, RandomAgent
from routing_marl.config import EngineConfig
from routing_marl.engine import Batch, RoutingEngine
from routing_marl.errors import UserError
from routing_marl.evaluation import reported
from routing_marl.nash import nash_gap
from routing_marl.network import routing_all_fc
from routing_marl.training import play_episode

NETWORKS = {
    "layered": {"blocks": 2, "depth": 2, "hidden": 8},
    "uneven": {"blocks": [1, 3, 2], "depth": 3, "hidden": 8},
    "stop": {"recursive": True, "allow_stop": True, "depth": 2, "blocks": 2, "hidden": 8},
}


def trained(network="layered", instances=6, agreement="empirical", make=WPL, features=False, episodes=15):
    config = EngineConfig(instances=instances, rho=0.5, history=5, agreement=agreement, lr=1e-2)
    engine = RoutingEngine(
        SUITE, lambda suite: routing_all_fc(suite, **NETWORKS[network]), config, features=features, seed=0
    )
    agent = make(engine.spec, seed=0)
    for _ in range(episodes):
        play_episode(engine, agent)
    return engine, agent


def played_alone(engine, agent, task, route, split):
    """Returns per instance of one agent's route, all others playing as they do; a fresh episode for each decision.

    What agents report of themselves, the deviator too, is what they report in the play that is deviated from.
    """
    values = []
    sizes = engine.suite.split(split).sizes
    for batch in engine.batches(split):
        for episode in range(batch.label.shape[0]):
            one = Batch(*(part[episode : episode + 1] for part in batch))
            observation, reports = engine.reset(split, one), []
            for _ in range(engine.spec.n_depths):
                reports.append(reported(agent, observation, engine))
                observation = engine.step(agent.act(observation, greedy=True), reports[-1]).observation
            observation = engine.reset(split, one)
            total = 0.0
            for depth in range(engine.spec.n_depths):
                actions = agent.act(observation, greedy=True)
                if route is not None:
                    actions[:, task] = route[depth]
                step = engine.step(actions, reports[depth])
                total += float(step.collaboration_reward[0, task])
                observation = step.observation
            for correct, weight in zip(
                step.outcome.correct[0, task].tolist(), one.weight[0, task].tolist(), strict=True
            ):
                if weight:
                    values.append(total + (1.0 if correct else -1.0))
    assert len(values) == sizes[task]
    return np.array(values)


@pytest.mark.parametrize(
    ("make", "network", "agreement"),
    [(WPL, "layered", "empirical"), (QLearning, "uneven", "reported"), (PolicyGradient, "stop", "reported")],
)
def test_the_gap_is_that_of_a_loop_over_agents_routes_and_instances(make, network, agreement):
    engine, agent = trained(network, agreement=agreement, make=make)
    found = nash_gap(engine, agent, "test")
    assert found.exhaustive
    legal = [legal.nonzero().flatten().tolist() for legal in engine.spec.legal]
    for task in range(engine.spec.n_tasks):
        usual = played_alone(engine, agent, task, None, "test")
        best = max(played_alone(engine, agent, task, route, "test").mean() for route in product(*legal))
        chosen = played_alone(engine, agent, task, found.route[:, task].tolist(), "test").mean()
        assert float(found.value[task]) == pytest.approx(usual.mean(), abs=1e-5)
        assert float(found.gap[task]) == pytest.approx(best - usual.mean(), abs=1e-5)
        assert chosen == pytest.approx(best, abs=1e-5)


def test_the_gain_is_chosen_on_one_half_and_measured_on_the_other():
    engine, agent = trained("layered")
    found = nash_gap(engine, agent, "test", seed=3)
    # The halves as the function draws them, one batch here, of [episode, task, instance].
    (batch,) = engine.batches("test")
    half = torch.rand(batch.label.shape, generator=torch.Generator().manual_seed(3)) < 0.5
    legal = [legal.nonzero().flatten().tolist() for legal in engine.spec.legal]
    for task in range(engine.spec.n_tasks):
        there = batch.weight[:, task].flatten() > 0
        first = half[:, task].flatten()[there].numpy()
        usual = played_alone(engine, agent, task, None, "test")
        routes = [played_alone(engine, agent, task, route, "test") for route in product(*legal)]
        best = {side: max(routes, key=lambda v, s=side: v[first == s].sum()) for side in (True, False)}
        gains = np.where(first, best[False] - usual, best[True] - usual)
        assert float(found.gain[task]) == pytest.approx(gains.mean(), abs=1e-5)
        wanted = 1.96 * gains.std(ddof=1) / np.sqrt(len(gains))
        assert float(found.half_width[task]) == pytest.approx(wanted, abs=1e-5)


def test_the_search_by_depth_never_beats_all_routes_and_never_loses_to_the_route_that_is_taken():
    engine, agent = trained("layered")
    whole, by_depth = nash_gap(engine, agent, "test"), nash_gap(engine, agent, "test", max_routes=3)
    assert whole.exhaustive and not by_depth.exhaustive
    assert torch.equal(whole.value, by_depth.value)
    assert (by_depth.gap <= whole.gap + 1e-6).all() and (by_depth.gap >= -1e-6).all()
    # It ends where no change of one action helps.
    for task, (depth, legal) in product(range(3), enumerate(engine.spec.legal)):
        best = played_alone(engine, agent, task, by_depth.route[:, task].tolist(), "test").mean()
        for action in legal.nonzero().flatten().tolist():
            route = by_depth.route[:, task].tolist()
            route[depth] = action
            assert played_alone(engine, agent, task, route, "test").mean() <= best + 1e-5


def test_measuring_the_gap_changes_nothing():
    engine, agent = trained("layered", features=True)
    twin, other = trained("layered", features=True)
    nash_gap(engine, agent, "test")
    nash_gap(engine, agent, "test", greedy=False, max_routes=1)
    for game, learner in ((engine, agent), (twin, other)):
        learner.load_state_dict({**learner.state_dict(), "stream": WPL(engine.spec, seed=1).state_dict()["stream"]})
        play_episode(game, learner)
    for ours, theirs in zip(engine.network.state_dict().values(), twin.network.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(agent.probabilities, other.probabilities)


def test_the_best_route_leaves_nothing_to_gain():
    engine, agent = trained("layered")
    best = FixedRoutes(engine.spec, nash_gap(engine, agent, "test").route)
    again = nash_gap(engine, best, "test")
    assert torch.allclose(again.gap, torch.zeros(3), atol=1e-6)
    assert (again.value >= nash_gap(engine, agent, "test").value - 1e-6).all()


def test_sampled_play_is_worth_less_than_the_best_route():
    engine, _ = trained("layered")
    found = [nash_gap(engine, RandomAgent(engine.spec, seed=seed), "test", greedy=False) for seed in range(8)]
    assert (torch.stack([gap.gap for gap in found]).mean(0) > 0.02).all()


def test_training_data_and_missing_splits_are_refused():
    engine, agent = trained("layered", episodes=1)
    with pytest.raises(UserError, match="split is 'train'; deviations are measured on validation or test"):
        nash_gap(engine, agent, "train")
    with pytest.raises(UserError, match="no validation split"):
        nash_gap(engine, agent)


# -- rewinding -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", NETWORKS)
def test_a_rewound_episode_is_the_one_that_took_the_new_route_at_once(network):
    engine, _ = trained(network, features=True)
    (batch,) = engine.batches("test")
    generator = torch.Generator().manual_seed(0)
    shape = (engine.spec.n_depths, *batch.label.shape[:2])
    engine.reset("test", batch)
    done = torch.randint(engine.spec.n_actions, shape, generator=generator)
    for actions in done:
        engine.step(actions)
    for depth in (engine.spec.n_depths, 1, 1, 0):
        observation = engine.rewind(depth)
        done = torch.cat([done[:depth], torch.randint(engine.spec.n_actions, shape, generator=generator)[depth:]])
        steps = [engine.step(actions) for actions in done[depth:]]
        ours = engine.trajectory
        twin = RoutingEngine(
            SUITE, lambda suite: routing_all_fc(suite, **NETWORKS[network]), engine.config, features=True, seed=0
        )
        twin.load_state_dict(engine.state_dict())
        seen = [twin.reset("test", batch)]
        theirs = [twin.step(actions) for actions in done]
        seen += [step.observation for step in theirs]
        assert observation.depth == depth
        assert torch.equal(observation.mask, seen[depth].mask)
        assert torch.equal(observation.features, seen[depth].features)
        for one, other in zip(ours, twin.trajectory, strict=True):
            assert torch.equal(one, other)
        if steps:
            assert torch.equal(steps[-1].outcome.loss, theirs[-1].outcome.loss)


def test_what_cannot_be_rewound_is_refused():
    engine, _ = trained("layered", episodes=1)
    with pytest.raises(UserError, match="blocks learn in this episode"):
        engine.reset("train")
        engine.rewind(0)
    engine.reset("test")
    with pytest.raises(UserError, match="depth is 1; the episode has gone from 0 to 0"):
        engine.rewind(1)
