"""Matrix games, where the equilibrium is known: payoffs, values of actions, and exact Nash gaps."""

from collections.abc import Mapping
from dataclasses import dataclass
from string import ascii_lowercase
from types import MappingProxyType
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from routing_marl.errors import UserError

Policies = Float[Tensor, "*batch player action"]


@dataclass(frozen=True, eq=False)
class MatrixGame:
    """A game in which all players act once, at the same time.

    Players may have different numbers of actions; policies are padded with zeros to the largest.

    Args:
        name: what it is called.
        payoffs: ``payoffs[i, a_0, ..., a_{n-1}]`` is what player ``i`` of ``n`` gets for the joint action.

    Raises:
        UserError: the tensor has not one axis for the players and one more for each of them, or is not finite.
    """

    name: str
    payoffs: Float[Tensor, "player ..."]

    def __post_init__(self) -> None:
        shape = tuple(self.payoffs.shape)
        if len(shape) < 2 or shape[0] != len(shape) - 1 or 0 in shape:
            right = "it must be (n, A_0, ..., A_{n-1}) for n players, (2, A_0, A_1) for two"
            raise UserError(f"the payoffs of {self.name} have shape {shape}; {right}")
        if not bool(self.payoffs.isfinite().all()):
            raise UserError(f"the payoffs of {self.name} hold nan or inf; they must be finite numbers")

    @property
    def n_players(self) -> int:
        """Number of players."""
        return len(self.payoffs)

    @property
    def n_actions(self) -> tuple[int, ...]:
        """Actions of each player."""
        return tuple(self.payoffs.shape[1:])

    @property
    def legal(self) -> Bool[Tensor, "player action"]:
        """True where a player has the action."""
        counts = torch.tensor(self.n_actions, device=self.payoffs.device)
        return torch.arange(max(self.n_actions), device=counts.device) < counts[:, None]

    def to(self, device: torch.device | str) -> "MatrixGame":
        """The same game on another device."""
        return MatrixGame(self.name, self.payoffs.to(device))

    def pay(self, actions: Int[Tensor, "*batch player"]) -> Float[Tensor, "*batch player"]:
        """What each player gets for joint actions."""
        sizes = (*self.n_actions[1:], 1)
        strides = [int(np.prod(sizes[player:])) for player in range(self.n_players)]
        joint = sum(actions[..., player] * stride for player, stride in enumerate(strides))
        return self.payoffs.flatten(1).T[joint]

    def action_values(self, policies: Policies) -> Policies:
        """What each action is worth to a player while all others keep to their policies; 0 for padding."""
        letters = ascii_lowercase[: self.n_players]
        parts = [policies[..., player, :count] for player, count in enumerate(self.n_actions)]
        rows = []
        for player, own in enumerate(letters):
            others = [other for other in range(self.n_players) if other != player]
            terms = ",".join([letters, *(f"...{letters[other]}" for other in others)])
            values = torch.einsum(f"{terms}->...{own}", self.payoffs[player], *(parts[other] for other in others))
            values = values.expand(*policies.shape[:-2], -1)  # of one player alone, nothing brings the batch in
            rows.append(torch.nn.functional.pad(values, (0, policies.shape[-1] - values.shape[-1])))
        return torch.stack(rows, dim=-2)

    def values(self, policies: Policies) -> Float[Tensor, "*batch player"]:
        """What each player gets on average."""
        return (policies * self.action_values(policies)).sum(-1)

    def nash_gap(self, policies: Policies) -> Float[Tensor, "*batch player"]:
        """What each player's best deviation would gain: exactly 0 for all in a Nash equilibrium, and only there."""
        values = self.action_values(policies)
        best = values.masked_fill(~self.legal, -torch.inf).amax(-1)
        return best - (policies * values).sum(-1)


def _zero_sum(name: str, rows: list[list[int]]) -> MatrixGame:
    payoffs = torch.tensor(rows, dtype=torch.float32)
    return MatrixGame(name, torch.stack([payoffs, -payoffs]))


def _two(name: str, first: list[list[int]], second: list[list[int]]) -> MatrixGame:
    return MatrixGame(name, torch.tensor([first, second], dtype=torch.float32))


def _three_player_pennies() -> MatrixGame:
    sides = torch.cartesian_prod(*[torch.tensor([1.0, -1.0])] * 3)
    first, second, third = sides.T
    return MatrixGame(
        "three_player_pennies", torch.stack([first * second, second * third, -third * first]).view(3, 2, 2, 2)
    )


GAMES: Mapping[str, MatrixGame] = MappingProxyType(
    {
        game.name: game
        for game in (
            # The only equilibrium: both at 1/2. Player 0 wins where the pennies match.
            _zero_sum("matching_pennies", [[1, -1], [-1, 1]]),
            # The only equilibrium: all at 1/3.
            _zero_sum("rock_paper_scissors", [[0, -1, 1], [1, 0, -1], [-1, 1, 0]]),
            # Shapley 1964: not zero-sum, the only equilibrium at 1/3; best responses cycle for ever.
            _two("shapley", [[1, 0, 0], [0, 1, 0], [0, 0, 1]], [[0, 1, 0], [0, 0, 1], [1, 0, 0]]),
            # Equilibria: both at action 0, both at action 1, and both at 1/2 (which pays half).
            _two("coordination", [[1, 0], [0, 1]], [[1, 0], [0, 1]]),
            # Equilibria: both hunt the stag (pays most), both the hare (risks nothing), and stag with 2/3.
            _two("stag_hunt", [[4, 1], [3, 3]], [[4, 3], [1, 3]]),
            # The only equilibrium: both defect (action 1), although both would be better off cooperating.
            _two("prisoners_dilemma", [[3, 0], [5, 1]], [[3, 5], [0, 1]]),
            # Jordan 1993: 0 wants to match 1, 1 wants to match 2, 2 wants to differ from 0. All at 1/2.
            _three_player_pennies(),
        )
    }
)
"""Games by name."""


Game: TypeAlias = "str | MatrixGame | npt.ArrayLike | Tensor"


def make_game(game: Game) -> MatrixGame:
    """The game of a name (see :data:`GAMES`), or of a payoff tensor."""
    if isinstance(game, MatrixGame):
        return game
    if isinstance(game, str):
        if game not in GAMES:
            raise UserError(f"game is {game!r}; it must be one of {', '.join(GAMES)}, or a payoff tensor")
        return GAMES[game]
    try:
        payoffs = torch.as_tensor(np.asarray(game), dtype=torch.float32)
    except (TypeError, ValueError) as error:
        raise UserError(f"the payoffs are no array of numbers ({error})") from error
    return MatrixGame("game", payoffs)
