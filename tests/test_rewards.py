import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from routing_marl.errors import UserError
from routing_marl.rewards import Agreement, final_reward


class SlowAgreement:
    """The docstring of ``Agreement``, word for word, with lists and loops."""

    def __init__(self, n_tasks, n_actions, history):
        self.n_tasks, self.n_actions, self.history = n_tasks, n_actions, history
        self.batches = {}  # depth -> one list of (task, action or None) per batch of parallel episodes

    def record(self, depth, action, active=None):
        choices = [
            [(t, int(a) if active is None or active[e][t] else None) for t, a in enumerate(row)]
            for e, row in enumerate(action)
        ]
        self.batches.setdefault(depth, []).append(choices)

    def took_lately(self, depth, task, action):
        lately = self.batches.get(depth, [])[-self.history :]
        return any((task, action) in episode for batch in lately for episode in batch)

    def empirical(self, depth, task, action):
        decay = 1 - 1 / self.history
        total = weight = 0.0
        for age, batch in enumerate(reversed(self.batches.get(depth, []))):
            share = sum((task, action) in episode for episode in batch) / len(batch)
            total, weight = total + decay**age * share, weight + decay**age
        return total / weight

    def __call__(self, depth, action, reported=None):
        """``reported[task][action]``: mean over the parallel episodes."""
        took = [t for t in range(self.n_tasks) if self.took_lately(depth, t, action)]
        given = [self.empirical(depth, t, action) if reported is None else reported[t][action] for t in took]
        return sum(given) / len(given) if given else 0.0


def make(history, n_tasks=3, n_actions=3, depths=1):
    return Agreement(torch.ones(depths, n_actions, dtype=torch.bool), n_tasks, history)


def test_the_final_reward_by_hand():
    correct = torch.tensor([[[True, True, True, True], [True, False, False, False]], [[False] * 4, [True, False] * 2]])
    assert final_reward(correct).tolist() == [[1.0, -0.5], [-1.0, 0.0]]


def play(agreement, *rounds, depth=0):
    """Records each round of actions, and returns the agreement of each."""
    out = []
    for actions in rounds:
        action = torch.tensor([actions])
        agreement.record(depth, action)
        out.append(agreement(depth, action)[0].tolist())
    return out


def test_agreement_by_hand_with_history_1_looks_at_the_present_episode_only():
    rounds = play(make(history=1), [0, 0, 1], [0, 1, 2], [2, 2, 2])
    assert rounds == [[1, 1, 1], [1, 1, 1], [1, 1, 1]]


def test_agreement_by_hand_with_history_2():
    # Decay 1/2. After the 2nd episode agent 0 gives action 0 all, agents 1 and 2 have gone from 0 to 1 and from 1
    # to 0: (2/3) to the new choice, 1/3 to the old one. All three have taken action 0 in the last two episodes.
    rounds = play(make(history=2), [0, 0, 1], [0, 1, 0], [0, 1, 0])
    zero, one = (1 + 1 / 3 + 2 / 3) / 3, (2 / 3 + 1 / 3) / 2
    assert rounds[0] == [1, 1, 1]
    assert rounds[1] == pytest.approx([zero, one, zero])
    # 3rd: weights 1, 1/2, 1/4 of 7/4. Only agents 0 and 2 took action 0 in the last two, only agent 1 action 1.
    assert rounds[2] == pytest.approx([(1 + 6 / 7) / 2, 6 / 7, (1 + 6 / 7) / 2])


def test_agreement_by_hand_with_a_long_history():
    agreement = make(history=4)  # decay 3/4
    rounds = play(agreement, [0, 1, 2], [0, 0, 2], [0, 0, 0])
    weights = [9 / 16, 3 / 4, 1]
    p1, p2 = (weights[1] + weights[2]) / sum(weights), weights[2] / sum(weights)
    assert rounds[2] == pytest.approx([(1 + p1 + p2) / 3] * 3)
    assert agreement(0, torch.tensor([[1, 1, 2]]))[0].tolist() == pytest.approx(
        [weights[0] / sum(weights)] * 2 + [(weights[0] + weights[1]) / sum(weights)]
    )


def test_an_agent_that_left_an_action_counts_for_history_episodes_and_no_longer():
    # Agent 1 has taken action 0 a thousand times, and never again.
    agreement = make(history=10, n_tasks=2, n_actions=2)
    play(agreement, *[[0, 0]] * 1000)
    rounds = [row[0] for row in play(agreement, *[[0, 1]] * 12)]
    both = [(1 + 0.9**age) / 2 for age in range(1, 10)]
    assert rounds[:9] == pytest.approx(both)
    assert rounds[9:] == pytest.approx([1, 1, 1])


def actions_of(draw, n_tasks, n_actions, episodes, length):
    numbers = st.integers(0, n_actions - 1)
    row = st.lists(numbers, min_size=n_tasks, max_size=n_tasks)
    batch = st.lists(row, min_size=episodes, max_size=episodes)
    return draw(st.lists(batch, min_size=1, max_size=length))


@st.composite
def games(draw):
    n_tasks, n_actions, episodes = draw(st.integers(1, 4)), draw(st.integers(2, 4)), draw(st.integers(1, 3))
    history = draw(st.sampled_from([1, 2, 3, 5, 100]))
    rounds = actions_of(draw, n_tasks, n_actions, episodes, 12)
    return n_tasks, n_actions, episodes, history, rounds, draw(st.integers(0, 999))


@settings(deadline=None, max_examples=100)
@given(games(), st.booleans())
def test_agreement_equals_a_slow_oracle(game, with_stop):
    n_tasks, n_actions, episodes, history, rounds, seed = game
    generator = torch.Generator().manual_seed(seed)
    fast = make(history, n_tasks, n_actions, depths=2)
    slow = SlowAgreement(n_tasks, n_actions, history)
    for actions in rounds:
        action = torch.tensor(actions)
        for depth in (0, 1):
            active = torch.rand(action.shape, generator=generator) < 0.7 if with_stop and depth else None
            fast.record(depth, action, active)
            slow.record(depth, actions, active)
            reported = torch.rand(episodes, n_tasks, n_actions, generator=generator)
            for given_, mean in ((None, None), (reported, reported.mean(0).tolist())):
                for asked in range(n_actions):
                    got = fast(depth, torch.full_like(action, asked), given_)
                    torch.testing.assert_close(got, torch.full(got.shape, slow(depth, asked, mean)), atol=1e-5, rtol=0)


@settings(deadline=None, max_examples=60)
@given(games())
def test_agreement_lies_between_0_and_1_and_is_positive_for_what_was_just_taken(game):
    n_tasks, n_actions, _episodes, history, rounds, _ = game
    agreement = make(history, n_tasks, n_actions)
    for actions in rounds:
        action = torch.tensor(actions)
        agreement.record(0, action)
        value = agreement(0, action)
        assert value.min() > 0 and value.max() <= 1 + 1e-6


@pytest.mark.parametrize("history", [1, 2, 50])
@pytest.mark.parametrize("action", [0, 2])  # 2: PASS, an action like the others
def test_everyone_agreeing_is_worth_1(history, action):
    agreement = make(history, n_tasks=4)
    for _ in range(5):
        actions = torch.full((2, 4), action)
        agreement.record(0, actions)
        torch.testing.assert_close(agreement(0, actions), torch.ones(2, 4))


def test_nothing_recorded_is_worth_0():
    assert make(history=3)(0, torch.tensor([[0, 1, 2]])).tolist() == [[0, 0, 0]]


def test_renaming_the_actions_changes_nothing():
    generator = torch.Generator().manual_seed(0)
    one, other = make(5, n_tasks=4, n_actions=5), make(5, n_tasks=4, n_actions=5)
    names = torch.tensor([3, 4, 0, 2, 1])
    for _ in range(20):
        action = torch.randint(0, 5, (1, 4), generator=generator)
        one.record(0, action)
        other.record(0, names[action])
        torch.testing.assert_close(one(0, action), other(0, names[action]))


def test_depths_have_histories_of_their_own():
    agreement = make(3, depths=2)
    play(agreement, [0, 0, 0], [0, 0, 0], depth=0)
    assert agreement(1, torch.tensor([[0, 0, 0]])).tolist() == [[0, 0, 0]]
    assert play(agreement, [1, 1, 0], depth=1) == [[1, 1, 1]]


def test_a_state_goes_on_to_the_bit_and_is_a_copy():
    generator = torch.Generator().manual_seed(0)
    rounds = torch.randint(0, 3, (30, 2, 3), generator=generator)
    one, other = make(3, depths=2), make(3, depths=2)
    for action in rounds[:15]:
        one.record(1, action)
    state = one.state_dict()
    saved = copy.deepcopy(state)
    other.record(0, rounds[0])  # must be gone afterwards
    other.load_state_dict(state)
    for action in rounds[15:]:
        for depth in (0, 1):
            one.record(depth, action)
            other.record(depth, action)
            assert torch.equal(one(depth, action), other(depth, action))
    assert str(state) == str(saved)


def test_a_history_of_no_episode_is_refused():
    with pytest.raises(UserError, match="history is 0"):
        make(history=0)
