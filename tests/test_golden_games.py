"""Matching pennies, where WPL's two weightings and plain policy gradient are known to end differently.

Abdallah & Lesser (JAIR 33, 2008): WPL's own weighting spirals into the mixed equilibrium (1/2, 1/2). The weighting of
Rosenbaum et al. (2018) is the opposite, and makes the vertices attract. Gradient ascent circles the equilibrium.
Five games are played side by side by ten tasks; player 0 of each wins where the pennies match.
"""

import pytest
import torch
from torch import Tensor

from routing_marl.agents import WPL, PolicyGradient
from routing_marl.matrix_engine import MatrixGameEngine
from routing_marl.matrix_engine import play as play_games

GAMES = 5
SPEC = MatrixGameEngine("matching_pennies", n_games=GAMES).spec
START = torch.tensor([0.9, 0.1]).repeat(2 * GAMES, 1, 1)


def play(agent: WPL | PolicyGradient, steps: int, episodes: int) -> Tensor:
    """Returns the probability of heads, [101, game, player], at 100 even times and at the end."""
    engine = MatrixGameEngine("matching_pennies", n_games=GAMES, n_episodes=episodes)
    return play_games(engine, agent, steps, every=steps // 100)[..., 0]


def radius(history: Tensor) -> Tensor:
    """Distance from the equilibrium of the farther player of each game, [..., games]."""
    return (history - 0.5).abs().amax(-1)


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
    heads = late > 0.5
    assert (heads.any(0) & ~heads.all(0)).any(-1).all()


def biased(advantage: str) -> Tensor:
    """The policies after a long play of biased pennies, where the equilibrium is heads with 2/5; [game, player]."""
    engine = MatrixGameEngine([[[2, -1], [-1, 1]], [[-2, 1], [1, -1]]], n_games=GAMES, n_episodes=8)
    agent = WPL(
        SPEC, weighting="original", advantage=advantage, policy_rate=3e-3, return_rate=0.5, seed=0, initial_policy=START
    )
    history = play_games(engine, agent, 700, every=10)
    return history[-15:].mean(0)[..., 0]


@pytest.mark.slow
def test_an_equilibrium_that_is_not_uniform_is_found_by_the_averaged_advantage_only() -> None:
    assert (biased("averaged").mean(0) - 0.4).abs().max() < 0.06
    # Sampled, an action's mean Delta is zero; what is left is noise, that the weighting takes to 1/2 in any game.
    assert (biased("sampled").mean(0) - 0.5).abs().max() < 0.03
