"""Matrix games against numbers made by hand and against loops, and their engine against the rules, game by game."""

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from routing_marl.agents import WPL, FixedRoutes, QLearning, RandomAgent
from routing_marl.errors import UserError
from routing_marl.matrix_engine import MatrixGameEngine, play
from routing_marl.matrix_games import GAMES, MatrixGame, make_game
from routing_marl.protocol import Observation, as_vectors
from routing_marl.synchronisation import synchronisations


def policies(*rows):
    return torch.tensor(rows, dtype=torch.float32)


# -- values and gaps -------------------------------------------------------------------------------------------------

HALF, THIRD = [1 / 2] * 2, [1 / 3] * 3
EQUILIBRIA = {
    "matching_pennies": [policies(HALF, HALF)],
    "rock_paper_scissors": [policies(THIRD, THIRD)],
    "shapley": [policies(THIRD, THIRD)],
    "coordination": [policies([1, 0], [1, 0]), policies([0, 1], [0, 1]), policies(HALF, HALF)],
    "stag_hunt": [policies([1, 0], [1, 0]), policies([0, 1], [0, 1]), policies([2 / 3, 1 / 3], [2 / 3, 1 / 3])],
    "prisoners_dilemma": [policies([0, 1], [0, 1])],
    "three_player_pennies": [policies(HALF, HALF, HALF)],
}


@pytest.mark.parametrize("name", GAMES)
def test_equilibria_have_no_gap(name):
    for equilibrium in EQUILIBRIA[name]:
        assert torch.allclose(GAMES[name].nash_gap(equilibrium), torch.zeros(len(equilibrium)), atol=1e-6)


@pytest.mark.parametrize("name", GAMES)
def test_pure_profiles_are_equilibria_only_where_that_is_known(name):
    game = GAMES[name]
    pure = {
        actions
        for actions in product(*map(range, game.n_actions))
        if (game.nash_gap(one_hot(actions, max(game.n_actions))) == 0).all()
    }
    known = {tuple(e.argmax(-1).tolist()) for e in EQUILIBRIA[name] if (e.amax(-1) == 1).all()}
    assert pure == known


def one_hot(actions, n_actions):
    return torch.nn.functional.one_hot(torch.tensor(actions), n_actions).float()


@pytest.mark.parametrize(
    ("name", "profile", "values", "gaps"),
    [
        # Heads against heads: player 1 would win 1 instead of losing 1.
        ("matching_pennies", ([1, 0], [1, 0]), [1, -1], [0, 2]),
        # 3/4 against 1/4: player 0 gets -1/4, and 1/2 for tails; player 1 likewise.
        ("matching_pennies", ([0.75, 0.25], [0.25, 0.75]), [-0.25, 0.25], [0.75, 0.25]),
        # Rock against the uniform policy: nothing to gain but for the one who knows.
        ("rock_paper_scissors", ([1, 0, 0], THIRD), [0, 0], [0, 1]),
        ("stag_hunt", ([1, 0], [0, 1]), [1, 3], [2, 1]),
        ("prisoners_dilemma", ([1, 0], [1, 0]), [3, 3], [2, 2]),
        # All heads: 0 matches 1, 1 matches 2, and 2 doesn't differ from 0.
        ("three_player_pennies", ([1, 0], [1, 0], [1, 0]), [1, 1, -1], [0, 0, 2]),
    ],
)
def test_by_hand(name, profile, values, gaps):
    game, profile = GAMES[name], policies(*profile)
    assert torch.allclose(game.values(profile), policies(values)[0], atol=1e-6)
    assert torch.allclose(game.nash_gap(profile), policies(gaps)[0], atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.integers(0, 2**20))
def test_values_and_gaps_are_those_of_a_loop_over_joint_actions(sizes, seed):
    rng = np.random.default_rng(seed)
    payoffs = rng.normal(size=(len(sizes), *sizes))
    game = MatrixGame("random", torch.from_numpy(payoffs))
    profiles = np.zeros((2, len(sizes), max(sizes)))  # a batch of two, padded
    for batch, (player, size) in product(range(2), enumerate(sizes)):
        profiles[batch, player, :size] = rng.dirichlet(np.ones(size))
    action_values = np.zeros_like(profiles)
    for batch, player in product(range(2), range(len(sizes))):
        for joint in product(*map(range, sizes)):
            chances = [profiles[batch, other, action] for other, action in enumerate(joint) if other != player]
            action_values[batch, player, joint[player]] += np.prod(chances) * payoffs[(player, *joint)]
    values = (profiles * action_values).sum(-1)
    best = [[action_values[b, p, :size].max() for p, size in enumerate(sizes)] for b in range(2)]
    ours = torch.from_numpy(profiles)
    assert np.allclose(game.action_values(ours), action_values)
    assert np.allclose(game.values(ours), values)
    assert np.allclose(game.nash_gap(ours), best - values)
    assert (game.nash_gap(ours) > -1e-9).all()


def test_pay_looks_up_each_joint_action():
    payoffs = torch.arange(2.0 * 3 * 4).view(2, 3, 4)
    game = MatrixGame("numbers", payoffs)
    joint = torch.tensor(list(product(range(3), range(4)))).view(3, 4, 2)
    assert torch.equal(game.pay(joint), payoffs.movedim(0, -1))


@pytest.mark.parametrize(
    ("game", "message"),
    [
        ("chess", "game is 'chess'; it must be one of matching_pennies, "),
        ([[1, 2], [3, 4]], r"the payoffs of game have shape \(2, 2\); it must be \(n, A_0"),
        ([[[1.0, float("nan")]], [[0.0, 0.0]]], "the payoffs of game hold nan or inf"),
        ([["a"]], "the payoffs are no array of numbers"),
        ([[1], [2, 3]], "the payoffs are no array of numbers"),
    ],
)
def test_what_is_no_game_is_refused(game, message):
    with pytest.raises(UserError, match=message):
        make_game(game)


# -- the engine ------------------------------------------------------------------------------------------------------

UNEVEN = MatrixGame("uneven", torch.arange(12.0).view(2, 3, 2))


def test_games_side_by_side_have_nothing_to_do_with_each_other():
    engine = MatrixGameEngine(UNEVEN, n_games=3, n_episodes=4)
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        engine.reset()
        actions = torch.randint(3, (4, 6), generator=generator)
        done = engine.step(actions)
        for episode, game in product(range(4), range(3)):
            a, b = actions[episode, 2 * game : 2 * game + 2].tolist()
            b_done = b if b < 2 else 0  # player 1 has two actions only
            assert done.action[episode, 2 * game : 2 * game + 2].tolist() == [a, b_done]
            assert done.illegal[episode, 2 * game : 2 * game + 2].tolist() == [False, b == 2]
            expected = UNEVEN.payoffs[:, a, b_done]
            assert torch.equal(done.reward[episode, 2 * game : 2 * game + 2], expected)


def test_a_trajectory_holds_what_was_played():
    engine = MatrixGameEngine("rock_paper_scissors", rounds=2, n_games=2, n_episodes=3, features=True)
    observation = engine.reset()
    assert (observation.features == 0).all()
    played = torch.randint(3, (2, 3, 4), generator=torch.Generator().manual_seed(0))
    rewards, seen = [], [observation.features]
    for depth in range(2):
        done = engine.step(played[depth])
        rewards.append(done.reward)
        seen.append(done.observation.features)
        assert done.terminated == (depth == 1) and done.observation.depth == depth + 1
    trajectory = engine.trajectory
    assert torch.equal(trajectory.actions, played) and torch.equal(trajectory.rewards, torch.stack(rewards))
    assert torch.equal(trajectory.features, torch.stack(seen[:-1])) and trajectory.active.all()
    assert trajectory.masks.shape == (2, 3, 4, 3) and trajectory.masks.all()
    # Both players of a game see the last round of their own game.
    for episode, player in product(range(3), range(4)):
        game = player // 2
        both = played[0, episode, 2 * game : 2 * game + 2]
        assert torch.equal(seen[1][episode, player], torch.nn.functional.one_hot(both, 3).flatten().float())
    assert as_vectors(engine.spec, observation).shape == (3, 4, 4 + 3 + 6)


def test_an_episode_must_be_played_to_its_end_and_no_further():
    engine = MatrixGameEngine("coordination", rounds=2)
    actions = torch.zeros(1, 2, dtype=torch.long)
    with pytest.raises(UserError, match="call reset first"):
        engine.step(actions)
    engine.reset()
    engine.step(actions)
    with pytest.raises(UserError, match="play it to the end"):
        _ = engine.trajectory
    engine.step(actions)
    with pytest.raises(UserError, match="call reset first"):
        engine.step(actions)


@pytest.mark.parametrize("name", ["rounds", "n_games", "n_episodes"])
def test_numbers_are_checked(name):
    with pytest.raises(UserError, match=f"{name} is 0; it must be a whole number of at least 1"):
        MatrixGameEngine("coordination", **{name: 0})


def test_playing_and_learning_never_wait_for_a_gpu():
    engine = MatrixGameEngine("shapley", rounds=2, n_games=3, n_episodes=2, features=True)
    agent = WPL(engine.spec, seed=0)
    play(engine, agent, 1)
    with synchronisations() as found:
        play(engine, agent, 2)
    assert not found


# -- agents in games -------------------------------------------------------------------------------------------------


def test_the_history_of_policies_begins_before_and_ends_after_learning():
    engine = MatrixGameEngine("matching_pennies", n_games=2)
    agent = WPL(engine.spec, seed=0)
    history = play(engine, agent, 7, every=3)
    assert history.shape == (4, 2, 2, 2)  # at 0, 3, 6 and 7
    assert (history[0] == 0.5).all()
    last = agent.policy(Observation(0, torch.ones(1, 4, 2, dtype=torch.bool)))
    assert torch.equal(history[-1].flatten(0, 1), last[0])


def test_players_of_fixed_policies_are_paid_what_those_are_worth():
    engine = MatrixGameEngine("stag_hunt", n_episodes=4000)
    agent = RandomAgent(engine.spec, seed=0)
    engine.step(agent.act(engine.reset()))
    wanted = engine.game.values(torch.full((2, 2), 0.5))
    assert torch.allclose(engine.trajectory.rewards.mean((0, 1)), wanted, atol=0.06)
    hunters = FixedRoutes(engine.spec, torch.zeros(1, 2, dtype=torch.long))
    assert (engine.step(hunters.act(engine.reset())).reward == 4).all()


def test_the_prisoners_learn_to_defect():
    engine = MatrixGameEngine("prisoners_dilemma", n_games=5, n_episodes=4)
    history = play(engine, QLearning(engine.spec, epsilon_steps=100, epsilon_end=0.0, seed=0), 200, every=200)
    assert (history[-1, ..., 1] == 1).all()
    assert (engine.game.nash_gap(history[-1]) == 0).all()
