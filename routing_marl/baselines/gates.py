"""Gates: how much of each block the instances of a task get, learned by backprop instead of by reward.

A gate maps representations ``[episode, task, instance, *features]`` to weights of the blocks. In evaluation no gate
draws anything.
"""

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from routing_marl.config import require
from routing_marl.randomness import RandomStream

Weights = Float[Tensor, "draw task each block"]
"""``draw`` is the number of episodes, or 1 for the same in all; ``each`` that of instances, or likewise 1."""


class Noise(nn.Module):
    """A random stream that moves and is saved with the network that it is part of."""

    _place: Tensor

    def __init__(self) -> None:
        super().__init__()
        self._seed = int(torch.randint(2**62, ()))
        self._stream: RandomStream | None = None
        self.register_buffer("_place", torch.empty(0), persistent=False)

    @property
    def stream(self) -> RandomStream:
        """The stream, where the network is."""
        if self._stream is None or self._stream.generator.device != self._place.device:
            self._stream = RandomStream(self._seed, self._place.device)
        return self._stream

    def uniform(self, *shape: int) -> Tensor:
        """Numbers between 0 and 1, neither of them included."""
        least = torch.finfo(torch.float32).tiny
        return torch.rand(shape, generator=self.stream.generator, device=self._place.device).clamp(min=least)

    def get_extra_state(self) -> Tensor:
        """The position in the stream."""
        return self.stream.generator.get_state()

    def set_extra_state(self, state: Tensor) -> None:
        """Goes on from there."""
        self.stream.load_state_dict({"generator": state})


class TaskGate(nn.Module):
    """Logits of each task for each block.

    Args:
        n_tasks: number of tasks.
        n_blocks: number of blocks.
    """

    logits: nn.Parameter

    def __init__(self, n_tasks: int, n_blocks: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(n_tasks, n_blocks))


class SoftmaxGate(TaskGate):
    """Each task mixes all blocks by the softmax of its logits: soft routing (the paper, section 4: no progress)."""

    def forward(self, v: Float[Tensor, "episode task instance *features"]) -> Weights:
        """The same weights for all instances of a task."""
        return self.logits.softmax(-1)[None, :, None]


class GumbelSoftmaxGate(TaskGate):
    """Each task draws one block (Jang et al., arXiv 1611.01144; Maddison et al., arXiv 1611.00712): straight-through.

    The block is drawn by Gumbel noise for each episode and task; gradients are those of the softmax at temperature
    ``max(0.5, exp(-annealing_rate * step))``, Jang's schedule. In evaluation the likeliest block is taken.

    Args:
        n_tasks: number of tasks.
        n_blocks: number of blocks.
        annealing_rate: how fast the temperature falls.
    """

    steps: Int64[Tensor, ""]

    def __init__(self, n_tasks: int, n_blocks: int, annealing_rate: float) -> None:
        super().__init__(n_tasks, n_blocks)
        self._annealing_rate = annealing_rate
        self.noise = Noise()
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def forward(self, v: Float[Tensor, "episode task instance *features"]) -> Weights:
        """One-hot weights, that of an episode and task the same for all its instances."""
        if not self.training:
            return _one_hot(self.logits)[None, :, None]
        temperature = (-self._annealing_rate * self.steps).exp().clamp(min=0.5)
        self.steps += 1
        gumbel = -(-self.noise.uniform(len(v), *self.logits.shape).log()).log()
        score = self.logits + gumbel
        soft = (score / temperature).softmax(-1)
        return (_one_hot(score) + soft - soft.detach())[:, :, None]


class GumbelMatrixGate(TaskGate):
    """Each task takes any subset of the blocks, and averages them (Maziarz et al., arXiv 1910.04915).

    Each entry of the binary matrix is drawn by itself, straight-through at temperature ``max(0.5, 50 / sqrt(step +
    1))``; in evaluation it is 1 where that is likelier. The paper doesn't say what a task gets whose row came out
    empty: here its likeliest entry (with noise, in training) is 1 then, so that the signal is never lost.

    Args:
        n_tasks: number of tasks.
        n_blocks: number of blocks.
        initial_probability: p0, with which entries are 1 at the start.
    """

    steps: Int64[Tensor, ""]

    def __init__(self, n_tasks: int, n_blocks: int, initial_probability: float) -> None:
        require(0 < initial_probability < 1, "initial-probability", initial_probability, "it must lie in (0, 1)")
        super().__init__(n_tasks, n_blocks)
        nn.init.constant_(self.logits, math.log(initial_probability / (1 - initial_probability)))
        self.noise = Noise()
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def forward(self, v: Float[Tensor, "episode task instance *features"]) -> Weights:
        """Equal weights for the active blocks, 0 for the others."""
        if not self.training:
            active = _active(self.logits)[None]
        else:
            temperature = (50 / (self.steps + 1).sqrt()).clamp(min=0.5)
            self.steps += 1
            uniform = self.noise.uniform(len(v), *self.logits.shape)
            # The difference of two Gumbel variables is logistic.
            score = self.logits + uniform.log() - torch.log1p(-uniform)
            soft = (score / temperature).sigmoid()
            active = _active(score) + soft - soft.detach()
        return (active / active.sum(-1, keepdim=True))[:, :, None]


class InstanceGate(nn.Module):
    """Each task's own softmax gate over the instance's features (MMoE: Ma et al., KDD 2018, section 4).

    Args:
        n_tasks: number of tasks.
        n_blocks: number of blocks.
        n_features: length of the features; of maps, channels (averaged over places).
    """

    def __init__(self, n_tasks: int, n_blocks: int, n_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_tasks, n_features, n_blocks))
        nn.init.normal_(self.weight, std=n_features**-0.5)

    def forward(self, v: Float[Tensor, "episode task instance *features"]) -> Weights:
        """Weights of each instance."""
        x = v.flatten(4).mean(-1) if v.dim() > 4 else v
        return (x @ self.weight).float().softmax(-1)


def _one_hot(score: Tensor) -> Tensor:
    return torch.zeros_like(score).scatter_(-1, score.argmax(-1, keepdim=True), 1.0)


def _active(score: Tensor) -> Tensor:
    return torch.maximum((score > 0).to(score.dtype), _one_hot(score.detach()))
