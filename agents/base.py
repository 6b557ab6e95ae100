"""What agents share that sample from a policy: acting, and saving what they know."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from routing_marl.agents.policies import greedy_action, sample
from routing_marl.errors import UserError
from routing_marl.protocol import GameSpec, Observation
from routing_marl.randomness import RandomStream


class SamplingAgent:
    """Base of agents with a policy: a subclass defines ``policy`` and ``learn``, and names what it knows.

    Tables are replaced, never written into: what was read from an agent doesn't change under its reader. Parts (a
    network with its optimizer) are.

    Attributes:
        tables: names of the tensors that learning changes ...
        parts: ... and of the attributes with a ``state_dict`` of their own; with the random stream they are the state.
        spec: the game that the agent was built for.
    """

    tables: ClassVar[tuple[str, ...]] = ()
    parts: ClassVar[tuple[str, ...]] = ()

    def __init__(self, spec: GameSpec, seed: int | None) -> None:
        self.spec = spec
        self._stream = RandomStream(seed, spec.device)

    def policy(self, observation: Observation) -> Float[Tensor, "episode task action"]:
        """The probability of each action; zero for illegal ones."""
        raise NotImplementedError

    @torch.no_grad()
    def act(self, observation: Observation, *, greedy: bool = False) -> Int[Tensor, "episode task"]:
        """Samples from the policy; where ``greedy``, takes the most probable action (lowest of equals)."""
        policy = self.policy(observation)
        if greedy:
            return greedy_action(policy, observation.mask)
        return sample(policy, self._stream.generator)

    def state_dict(self) -> dict[str, Any]:
        """Copies of the tables and parts, and the position in the random stream."""
        state: dict[str, Any] = {name: getattr(self, name).clone() for name in self.tables}
        state |= {name: getattr(self, name).state_dict() for name in self.parts}
        return state | {"stream": self._stream.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from what ``state_dict`` returned; raises UserError, changing nothing, if it can't."""
        wanted = {name: tuple(getattr(self, name).shape) for name in self.tables}
        given = {name: tuple(value.shape) for name, value in state.items() if isinstance(value, Tensor)}
        others = {"stream", *self.parts}
        if given != wanted or state.keys() != wanted.keys() | others:
            right = f"{wanted} and its {', '.join(sorted(others))}"
            raise UserError(f"the state has {given or sorted(state)}; {type(self).__name__} of this game needs {right}")
        for name in self.parts:  # first, since they may refuse
            getattr(self, name).load_state_dict(state[name])
        for name in self.tables:
            table: Tensor = getattr(self, name)
            setattr(self, name, state[name].detach().to(table, copy=True))
        self._stream.load_state_dict(state["stream"])
