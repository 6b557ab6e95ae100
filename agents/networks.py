"""Functions of what agents see: one small network per agent, or one that all share.

Rosenbaum et al. 2018 (arXiv 1711.01239), section 3.2, have policies as tables or as approximations over the task and
the representation. Here both are one thing: with no hidden layer and no features, a network per agent is a table.
"""

import copy
import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from routing_marl.agents.checks import check_count, check_number
from routing_marl.errors import UserError
from routing_marl.protocol import GameSpec, Observation, Trajectory
from routing_marl.randomness import RandomStream

LABEL_SCALE = 3.0

Outputs = Float[Tensor, "depth episode task output"]


class Perceptrons(nn.Module):
    """Perceptrons of one hidden layer (ReLU) over :func:`routing_marl.protocol.as_vectors`, all computed at once.

    A one-hot times a matrix is a row of that matrix, so the one-hots are never built.

    New agents prefer some actions: their first outputs are about as large as ``start_scale``. Where they all start
    uniform, blocks learn what suits all tasks at once, then every route pays the same, and nothing tells an agent to
    leave (one-against-rest tasks are such a game, "always no" such an optimum). A shared network starts with
    preferences of each task's own only as far as the task decides them, hence the weight of its label,
    ``LABEL_SCALE`` times that of the depth and of all features together.

    Args:
        spec: the game.
        n_outputs: numbers that each agent gets at each decision.
        share_network: one network for all agents, instead of one each.
        task_label: whether the shared network sees the task.
        hidden_units: width of the hidden layer; 0 for a linear function.
        start_scale: about how large the first outputs are; 0 for none at all, as tables start.
        seed: of the first weights; None for fresh entropy.
    """

    label: nn.Parameter | None
    features: nn.Parameter | None

    def __init__(
        self,
        spec: GameSpec,
        n_outputs: int,
        *,
        share_network: bool,
        task_label: bool,
        hidden_units: int,
        start_scale: float,
        seed: int | None,
    ) -> None:
        super().__init__()
        generator = RandomStream(seed).generator
        n_networks = 1 if share_network else spec.n_tasks
        width = hidden_units or n_outputs

        def drawn(*shape: int, scale: float) -> nn.Parameter:
            return nn.Parameter(scale * torch.randn(shape, generator=generator))

        first = 1.0 if hidden_units else start_scale
        self.depth = drawn(n_networks, spec.n_depths, width, scale=first)
        self.label = drawn(spec.n_tasks, width, scale=LABEL_SCALE * first) if share_network and task_label else None
        per_feature = first / math.sqrt(max(spec.n_features, 1))
        self.features = drawn(n_networks, spec.n_features, width, scale=per_feature) if spec.n_features else None
        per_unit = start_scale / math.sqrt(width)
        self.output = drawn(n_networks, width, n_outputs, scale=per_unit) if hidden_units else None
        self.bias = nn.Parameter(torch.zeros(n_networks, n_outputs)) if hidden_units else None

    def forward(
        self, depths: slice, features: Float[Tensor, "depth episode task feature"] | None
    ) -> Float[Tensor, "depth _ _ output"]:
        """The outputs at some depths; episodes and tasks that all get the same may be one."""
        x = self.depth[:, depths].transpose(0, 1).unsqueeze(1)
        if self.label is not None:
            x = x + self.label
        if self.features is not None:
            if features is None:
                raise UserError("the observation has no features, but the game that the agents were built for has")
            x = x + _per_agent(features, self.features)
        if self.output is not None:
            assert self.bias is not None
            x = _per_agent(x.relu(), self.output) + self.bias
        return x


def _per_agent(
    x: Float[Tensor, "depth _ _ input"], weight: Float[Tensor, "network input output"]
) -> Float[Tensor, "depth _ _ output"]:
    """``x`` times the matrix of each agent's network, or of the only one."""
    return x @ weight[0] if len(weight) == 1 else torch.einsum("deti,tio->deto", x, weight)


class Approximator:
    """A network of the agents' and its optimizer (Adam).

    Args:
        spec: the game.
        n_outputs: numbers that each agent gets at each decision.
        share_network: one network for all agents, instead of one each.
        task_label: whether a shared network sees the task; without, all agents act alike on what they see.
        hidden_units: width of the hidden layer; 0 for a linear function.
        start_scale: about how large the first outputs are.
        network_rate: learning rate.
        seed: of the first weights; None for fresh entropy.

    Attributes:
        network: the network.
        optimizer: any torch optimizer of its parameters will do.

    Raises:
        UserError: a parameter is out of range, or a label is kept from agents that have networks of their own.
    """

    def __init__(
        self,
        spec: GameSpec,
        n_outputs: int,
        *,
        share_network: bool,
        task_label: bool,
        hidden_units: int,
        start_scale: float,
        network_rate: float,
        seed: int | None,
    ) -> None:
        if not (share_network or task_label):
            raise UserError("task_label is False; that needs share_network, an agent's own network knows whose it is")
        self.network = Perceptrons(
            spec,
            n_outputs,
            share_network=share_network,
            task_label=task_label,
            hidden_units=check_count("hidden_units", hidden_units, low=0),
            start_scale=check_number("start_scale", start_scale),
            seed=seed,
        ).to(spec.device)
        rate = check_number("network_rate", network_rate)
        self.optimizer: torch.optim.Optimizer = torch.optim.Adam(self.network.parameters(), lr=rate, fused=True)

    def at(self, observation: Observation) -> Float[Tensor, "episode task output"]:
        """The outputs for what all agents see at one depth."""
        depth, features = observation.depth, observation.features
        outputs = self.network(slice(depth, depth + 1), None if features is None else features[None])[0]
        return outputs.expand(*observation.mask.shape[:2], -1)  # type: ignore[no-any-return]

    def over(self, trajectory: Trajectory) -> Outputs:
        """The outputs for all decisions of finished episodes, with their graph."""
        with torch.enable_grad():
            outputs = self.network(slice(None), trajectory.features)
            return outputs.expand(*trajectory.actions.shape, -1)  # type: ignore[no-any-return]

    def descend(self, loss: Float[Tensor, ""]) -> None:
        """One step of the optimizer down the gradient."""
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        """Copies of the weights and of the optimizer's state."""
        return copy.deepcopy({"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from what ``state_dict`` returned; raises UserError, changing nothing, if it can't."""
        wanted = {name: tuple(value.shape) for name, value in self.network.state_dict().items()}
        given = {name: tuple(value.shape) for name, value in state.get("network", {}).items()}
        if given != wanted or "optimizer" not in state:
            raise UserError(f"the network in the state has {given}; that of this game needs {wanted} and its optimizer")
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))  # torch would keep and change the tensors
