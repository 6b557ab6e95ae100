"""The tensor-native engine of matrix games: many of them side by side, in many parallel episodes.

They are played by the agents that play routing games too (:class:`routing_marl.protocol.Agent`), so that an agent can
be watched where the equilibrium is known.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from routing_marl.errors import UserError
from routing_marl.matrix_games import Game, make_game
from routing_marl.protocol import Agent, GameSpec, Observation, Trajectory


class Round(NamedTuple):
    """What one round gave.

    Attributes:
        observation: what players see next.
        reward: what each player gets.
        illegal: True where a player has no such action, and the first one took its place.
        terminated: whether this was the last round.
        action: what was done.
    """

    observation: Observation
    reward: Float[Tensor, "episode task"]
    illegal: Bool[Tensor, "episode task"]
    terminated: bool
    action: Int[Tensor, "episode task"]


class MatrixGameEngine:
    """Matrix games, played over and over: ``reset``, then one ``step`` per round, then ``trajectory`` to learn from.

    To the agents it is a routing game without blocks: a round is a depth, a player is a task. Task ``g * n + i`` is
    player ``i`` of game ``g``; games have nothing to do with each other. Nothing here is random.

    Args:
        game: a game, its name, or its payoffs.
        rounds: rounds of an episode (the depths of the trajectory).
        n_games: games side by side, each with players of its own.
        n_episodes: parallel episodes E, played by the same players.
        features: whether players see what all players of their game did in the last round (one-hot each, zeros at
            first): then they can play strategies with a memory.
        device: where everything lives.

    Attributes:
        game: on the device.
        spec: the facts that agents are built from.
    """

    def __init__(
        self,
        game: Game,
        *,
        rounds: int = 1,
        n_games: int = 1,
        n_episodes: int = 1,
        features: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        for name, number in (("rounds", rounds), ("n_games", n_games), ("n_episodes", n_episodes)):
            if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                raise UserError(f"{name} is {number!r}; it must be a whole number of at least 1")
        self.game = make_game(game).to(device)
        n_players, widest = self.game.n_players, max(self.game.n_actions)
        self.spec = GameSpec(
            legal=torch.ones(rounds, widest, dtype=torch.bool, device=device),
            n_tasks=n_games * n_players,
            n_features=n_players * widest if features else 0,
            device=torch.device(device),
        )
        self._mask = self.game.legal.repeat(n_games, 1).expand(n_episodes, -1, -1)
        self._one_hot = torch.eye(widest, device=device)
        self._rewards: list[Tensor] = []
        self._actions: list[Tensor] = []
        self._features: list[Tensor] = []

    def reset(self) -> Observation:
        """Begins an episode."""
        self._rewards, self._actions = [], []
        self._features = [self._mask.new_zeros((*self._mask.shape[:2], self.spec.n_features), dtype=torch.float32)]
        return self._observe()

    def step(self, actions: Int[Tensor, "episode task"]) -> Round:
        """Plays a round; an action that a player doesn't have acts as its first one."""
        if not self._features or len(self._actions) == self.spec.n_depths:
            raise UserError("no episode is under way; call reset first")
        has = self._mask.gather(-1, actions.long()[..., None])[..., 0]
        action = torch.where(has, actions.long(), 0)
        reward = self.game.pay(self._by_game(action)).flatten(1)
        self._actions.append(action)
        self._rewards.append(reward)
        if self.spec.n_features:
            done = self._one_hot[self._by_game(action)].flatten(2)
            self._features.append(done.repeat_interleave(self.game.n_players, 1))
        return Round(self._observe(), reward, ~has, len(self._actions) == self.spec.n_depths, action)

    @property
    def trajectory(self) -> Trajectory:
        """The episodes that have just finished."""
        if not self._actions or len(self._actions) < self.spec.n_depths:
            raise UserError("the episode is running; play it to the end")
        actions = torch.stack(self._actions)
        masks = self._mask.expand(len(actions), -1, -1, -1)
        features = torch.stack(self._features[:-1]) if self.spec.n_features else None
        return Trajectory(actions, torch.stack(self._rewards), masks, torch.ones_like(actions).bool(), features)

    def _by_game(self, by_task: Tensor) -> Tensor:
        return by_task.view(len(by_task), -1, self.game.n_players)

    def _observe(self) -> Observation:
        return Observation(len(self._actions), self._mask, self._features[-1] if self.spec.n_features else None)


@torch.no_grad()
def play(
    engine: MatrixGameEngine, agent: Agent, episodes: int, *, every: int = 1
) -> Float[Tensor, "time game player action"]:
    """Has agents play and learn.

    Args:
        engine: the games.
        agent: has a ``policy``.
        episodes: times that they play (in parallel episodes) and then learn.
        every: episodes between two looks at the policies.

    Returns:
        The policies of the first round: before the first episode, after every ``every`` of them, and in the end.
    """
    history = []
    for episode in range(episodes + 1):
        observation = engine.reset()
        if episode % every == 0 or episode == episodes:
            policy: Tensor = agent.policy(observation)  # type: ignore[attr-defined]
            history.append(policy[0].reshape(-1, engine.game.n_players, engine.spec.n_actions))
        if episode < episodes:
            for _ in range(engine.spec.n_depths):
                observation = engine.step(agent.act(observation)).observation
            agent.learn(engine.trajectory)
    return torch.stack(history)
