"""The uniform agent: what learning has to beat."""

from collections.abc import Mapping

from jaxtyping import Float, Int
from torch import Tensor

from routing_marl.agents.base import SamplingAgent
from routing_marl.agents.policies import uniform
from routing_marl.protocol import GameSpec, Observation, Trajectory


class RandomAgent(SamplingAgent):
    """Uniform over the legal actions, for ever, also where ``greedy`` is asked for: no action is better than another.

    Args:
        spec: the game.
        seed: of the sampled actions; None for fresh entropy.
    """

    def __init__(self, spec: GameSpec, *, seed: int | None = None) -> None:
        super().__init__(spec, seed)

    def policy(self, observation: Observation) -> Float[Tensor, "episode task action"]:
        """The same probability for every legal action."""
        return uniform(observation.mask)

    def act(self, observation: Observation, *, greedy: bool = False) -> Int[Tensor, "episode task"]:
        """A random legal action."""
        return super().act(observation)

    def learn(self, trajectory: Trajectory) -> Mapping[str, Tensor]:
        """Learns nothing, and has nothing to tell."""
        return {}
