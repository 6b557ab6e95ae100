"""Repeated matrix games as a PettingZoo game: where the equilibrium is known, one can see what an agent does about it.

All players act at once, in each of some rounds, and are paid by a payoff tensor. To agents it looks like a routing game
without blocks: what they are told, masks, infos and errors are those of `routing_v0`.

| Fact                  | Value                                                                                  |
|-----------------------|----------------------------------------------------------------------------------------|
| Import                | `from routing_marl.envs import matrix_game_v0`                                         |
| Parallel API          | `matrix_game_v0.parallel_env()`                                                        |
| AEC API               | `matrix_game_v0.env()`                                                                 |
| In the registry       | `pettingzoo.make("parallel" or "aec", "routing_marl/matrix-game-v0")`                   |
| Actions               | Discrete, all players at each step                                                     |
| Agents                | `player_0` .. `player_<n-1>`, the same throughout; n = 2 for `matching_pennies`         |
| Episode               | as many steps as there are rounds, then all players terminate; nothing is truncated     |
| Action values         | `Discrete(A)`, A of the player that has most                                            |
| Observation shape     | `(n + rounds + 1,)`; with features `(n + rounds + 1 + n * A,)`; float32                  |
| Observation values    | [0, 1]                                                                                 |
| State shape           | `(rounds + 1 + n * rounds,)`; float32                                                   |
| State values          | [0, 1]                                                                                 |

### Observations

One-hot of the player (n), one-hot of the round (rounds + 1; the last one: the episode has ended) and, with
`observation="features"`, what all players did in the last round (one-hot each; zeros before the first round). With
`mask="observation"` all that stands under `"observation"` of a dict, next to `"action_mask"`.

`state()` is one-hot of the round, and the actions so far as scaled whole numbers (player by player, one per round:
`(action + 1) / A`, 0 where none has been taken).

### Actions

Where players have different numbers of actions, see the mask. An action that a player doesn't have acts as its first
one, and is counted. `int`, numpy integers and 0-d integer arrays are actions; what is none (wrong type, out of range,
unknown or missing player) raises `UserError` and changes nothing.

### Rewards

Those of the payoff tensor, in each round.

### Infos

The same keys for all players, from reset on:

- `action_mask`: int8 `(A,)`, 1 for the player's actions (with `mask="observation"` it stands there instead).
- `illegal`: number of illegal actions so far in this episode.
- `route`: int64 `(rounds,)`, what has been done so far (an illegal action stands as what it was replaced by), else -1.

### Reset

Nothing is random: `reset(seed=s)` checks the seed, and begins an episode as `reset()` does. Options are ignored. A copy
is a game of its own. `env.game` has the payoffs, and `env.game.nash_gap(policies)` says how far policies are from an
equilibrium; `env.engine` is the tensor-native game, which plays many games side by side.

### Arguments

- `game="matching_pennies"`: a name of `routing_marl.matrix_games.GAMES` (`matching_pennies`, `rock_paper_scissors`,
  `shapley`, `coordination`, `stag_hunt`, `prisoners_dilemma`, `three_player_pennies`), a `MatrixGame`, or a payoff
  tensor of shape `(n, A_0, ..., A_{n-1})`.
- `rounds=1`: rounds of an episode.
- `observation="index"`: or `"features"`.
- `mask="info"`: or `"observation"`.
- `render_mode=None`: `"rgb_array"` and `"ansi"` return a picture or a text of the actions; `"human"` prints the text at
  the end of each episode.

### Version history

- v0: first version.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from pettingzoo import AECEnv

from routing_marl.envs.parallel import ByAgent, Door, Drawing, Mask, among, one_by_one, whole
from routing_marl.errors import UserError
from routing_marl.matrix_engine import MatrixGameEngine
from routing_marl.matrix_games import Game, MatrixGame
from routing_marl.protocol import Observation, as_vectors
from routing_marl.randomness import check_seed

__all__ = ["MatrixGameParallelEnv", "env", "parallel_env"]


def parallel_env(
    *,
    game: Game = "matching_pennies",
    rounds: int = 1,
    observation: Literal["index", "features"] = "index",
    mask: Mask = "info",
    render_mode: str | None = None,
) -> "MatrixGameParallelEnv":
    """The game for all players at once; the arguments are described at the head of this module.

    Raises:
        UserError: an argument is not as described there.
    """
    among("observation", observation, ("index", "features"))
    engine = MatrixGameEngine(game, rounds=rounds, features=observation == "features")
    return MatrixGameParallelEnv(engine, mask=mask, render_mode=render_mode)


def env(**arguments: Any) -> AECEnv:
    """The game for one player after the other; takes the arguments of :func:`parallel_env`."""
    return one_by_one(parallel_env(**arguments))


class MatrixGameParallelEnv(Door):
    """One episode at a time of one matrix game, as PettingZoo wants to see it.

    Args:
        engine: the game, with one game and one parallel episode.
        mask: where the action mask stands, ``"info"`` or ``"observation"``.
        render_mode: one of ``metadata["render_modes"]``, or None.

    Attributes:
        engine: as given.
        possible_agents: ``player_0 .. player_<n-1>``.
        agents: the same during an episode; none before and after it.
        observation_spaces: one per player, all equal.
        action_spaces: one per player, all equal.
        state_space: of :meth:`state`.
    """

    metadata: ClassVar[dict[str, Any]] = {**Door.metadata, "name": "matrix_game_v0"}

    _round: int | None

    def __init__(self, engine: MatrixGameEngine, *, mask: Mask = "info", render_mode: str | None = None) -> None:
        spec = engine.spec
        self._n_players, self._rounds = engine.game.n_players, spec.n_depths
        if spec.n_tasks != self._n_players or len(engine.reset().mask) != 1:
            raise UserError("the engine has parallel games or episodes; PettingZoo plays one at a time")
        agents = [f"player_{player}" for player in range(self._n_players)]
        seen = spaces.Box(0.0, 1.0, (spec.n_tasks + spec.n_depths + 1 + spec.n_features,), np.float32)
        super().__init__(agents, seen, spec.n_actions, mask, render_mode)
        self.engine = engine
        self.state_space = spaces.Box(0.0, 1.0, (self._rounds + 1 + self._n_players * self._rounds,), np.float32)
        self._begin()

    @property
    def game(self) -> MatrixGame:
        """Payoffs, and exact Nash gaps."""
        return self.engine.game

    def reset(
        self, seed: int | np.integer[Any] | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[ByAgent, ByAgent]:
        """Begins an episode.

        Args:
            seed: checked; nothing here is random.
            options: ignored.

        Returns:
            Observations and infos, by player.

        Raises:
            UserError: the seed is none; nothing has changed then.
        """
        check_seed(whole(seed))
        self.agents = self.possible_agents[:]
        self._begin()
        return self._views(self.engine.reset())

    def step(self, actions: Mapping[str, Any]) -> tuple[ByAgent, ByAgent, ByAgent, ByAgent, ByAgent]:
        """Plays a round.

        Args:
            actions: one for each player, in any order.

        Returns:
            Observations, rewards, terminations, truncations and infos, by player.

        Raises:
            UserError: no episode is under way, or an action is none; nothing has changed then.
        """
        chosen = self._checked(actions)
        done = self.engine.step(torch.tensor([chosen], device=self.engine.spec.device))
        self._routes[:, self._playing()] = done.action[0].cpu().numpy()
        self._illegal += done.illegal[0].cpu().numpy()
        observations, infos = self._views(done.observation)
        return self._stepped(observations, done.reward[0].tolist(), done.terminated, infos)

    def state(self) -> npt.NDArray[np.float32]:
        """The round, and what all players have done, as one vector."""
        where = np.eye(self._rounds + 1, dtype=np.float32)[self._playing()]
        routes = (self._routes + np.float32(1)) / np.float32(self._n_actions)
        return np.concatenate([where, routes.ravel()], dtype=np.float32)

    # -- inside ------------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        self._round = None
        self._routes = np.full((self._n_players, self._rounds), -1, np.int64)
        self._illegal = np.zeros(self._n_players, np.int64)

    def _playing(self) -> int:
        if self._round is None:
            raise UserError("no episode is under way; call reset first")
        return self._round

    def _drawing(self) -> Drawing:
        title = f"{self.game.name}, round {self._playing()} of {self._rounds}"
        actions = [str(action) for action in range(self._n_actions)]
        return Drawing(self._routes, self.possible_agents, actions, title)

    def _views(self, observation: Observation) -> tuple[ByAgent, ByAgent]:
        self._round = observation.depth
        seen = as_vectors(self.engine.spec, observation)[0].cpu().numpy()
        masks = observation.mask[0].cpu().numpy().astype(np.int8)
        return self._by_agent(seen, masks, {"illegal": self._illegal.tolist(), "route": self._routes.copy()})
