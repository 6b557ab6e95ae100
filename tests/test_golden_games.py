"""Matching pennies, where WPL's two weightings and plain policy gradient are known to end differently.

Abdallah & Lesser (JAIR 33, 2008): WPL's own weighting spirals into the mixed equilibrium (1/2, 1/2). The weighting of
Rosenbaum et al. (2018) is the opposite, and makes the vertices attract. Gradient ascent circles the equilibrium.
Five games are played side by side by ten tasks; the even one of a pair wins where the pennies match.
"""

import pytest
import torch
from torch import Tensor

from routing_marl.agents import WPL, PolicyGradient
from routing_marl.protocol import GameSpec, Observation, Trajectory

PLAYERS = 10
SPEC = GameSpec(torch.ones(1, 2, dtype=torch.bool), PLAYERS)
START = torch.tensor([0.9, 0.1]).repeat(PLAYERS, 1, 1)


def play(agent: WPL | PolicyGradient, steps: int, episodes: int) -> Tensor:
    """Returns the probability of heads, [101, players], at 100 even times and at the end."""
    mask = torch.ones(episodes, PLAYERS, 2, dtype=torch.bool)
    observation = Observation(0, mask)
    active = mask[None, ..., 0]
    history = []
    for step in range(steps):
        if step % (steps // 100) == 0:
            history.append(agent.policy(observation)[0, :, 0])
        pennies = agent.act(observation)
        match = torch.where(pennies[:, 0::2] == pennies[:, 1::2], 1.0, -1.0)
        rewards = torch.stack([match, -match], -1).flatten(1)
        agent.learn(Trajectory(pennies[None], rewards[None], mask[None], active))
    history.append(agent.policy(observation)[0, :, 0])
    return torch.stack(history)


def radius(history: Tensor) -> Tensor:
    """Distance from the equilibrium of the farther player of each game, [..., games]."""
    return (history - 0.5).abs().unflatten(-1, (PLAYERS // 2, 2)).amax(-1)


def original(policy_rate: float) -> WPL:
    # Rhat must follow the opponent faster than the policies move: with a return rate that is not far above the
    # policy rate, the estimates lag, and the spiral turns outwards to a vertex.
    return WPL(
        SPEC,
        weighting="original",
        advantage="averaged",
        policy_rate=policy_rate,
        return_rate=0.5,
        seed=0,
        initial_policy=START,
    )


def test_original_wpl_spirals_towards_the_mixed_equilibrium() -> None:
    history = play(original(3e-3), steps=600, episodes=8)
    assert radius(history[0]).min() > 0.39
    assert radius(history[-20:]).mean(0).max() < 0.12


@pytest.mark.slow
def test_original_wpl_ends_in_the_mixed_equilibrium() -> None:
    history = play(original(5e-4), steps=3000, episodes=16)
    assert radius(history[-1]).max() < 0.05


@pytest.mark.parametrize("advantage", ["sampled", "averaged"])
def test_the_papers_wpl_ends_at_a_vertex(advantage) -> None:
    agent = WPL(SPEC, advantage=advantage, return_rate=0.05, seed=0, initial_policy=START)
    history = play(agent, steps=400, episodes=8)
    assert (radius(history[0]) < 0.41).all()
    assert (radius(history[-1]) > 0.49).all()
    # Against a pure opponent returns are constant, so that the sampled Delta vanishes and the loser stalls where
    # it is; the averaged one drives both players into the corner.
    if advantage == "averaged":
        assert ((history[-1] - 0.5).abs() > 0.49).all()


def test_policy_gradient_circles_the_equilibrium() -> None:
    agent = PolicyGradient(SPEC, policy_rate=0.1, entropy=0.0, seed=0)
    agent.logits = START.log()
    history = play(agent, steps=2000, episodes=8)
    late = history[-50:]
    assert (radius(late).mean(0) > 0.25).all()
    # It is on its way round all the time: in every game, both sides of 1/2 are visited.
    games = (late > 0.5).unflatten(-1, (PLAYERS // 2, 2))
    assert (games.any(0) & ~games.all(0)).any(-1).all()
