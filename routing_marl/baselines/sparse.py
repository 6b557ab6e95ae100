"""Sparse mixtures of experts: a gate sends each instance to its best one or two blocks, which have limited room.

Switch Transformers (Fedus, Zoph and Shazeer, arXiv 2101.03961) and ST-MoE (Zoph et al., arXiv 2202.08906), over the
fully connected layers. All but the last are mixtures, the last one is each task's own: tasks may share images, and the
gate sees images only.

Where this differs: our layers have no residual stream. An instance that finds no room passes unchanged where shapes
fit; where they don't, it becomes zeros (what such a layer would add to the stream). And room counts choices: with two
per instance (ST-MoE) a block has places for ``2 * capacity * instances / blocks``, so that at capacity 1 all may fit.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from routing_marl.architecture import layered_parts
from routing_marl.baselines.gates import Noise
from routing_marl.baselines.mixture import MixtureNetwork, with_own
from routing_marl.baselines.mixture_layers import MixtureLayer
from routing_marl.config import require
from routing_marl.errors import UserError
from routing_marl.layers import OwnBlocks
from routing_marl.suites import TaskSuite


class Places(NamedTuple):
    """Where each choice of each instance went.

    Attributes:
        place: its place within its block, in the order of choices first, then of instances.
        kept: whether the block has such a place.
    """

    place: Int[Tensor, "choice instance"]
    kept: Bool[Tensor, "choice instance"]


def places(block: Int[Tensor, "choice instance"], n_blocks: int, capacity: int) -> Places:
    """Gives out the places of the blocks: all first choices come before all second ones."""
    taken = _one_hot(block.flatten(), n_blocks)
    place = ((taken.cumsum(0) - 1) * taken).sum(-1).view(block.shape)
    return Places(place, place < capacity)


def balance_loss(probabilities: Float[Tensor, "instance block"], first: Int[Tensor, " instance"]) -> Float[Tensor, ""]:
    """``N * sum(f_i * P_i)``, 1 where all is even (Switch, equations 4 to 6).

    Args:
        probabilities: of the gate; P is their mean.
        first: the best block of each instance; f is the share of each.
    """
    n_blocks = probabilities.shape[1]
    share = _one_hot(first, n_blocks).to(probabilities.dtype).mean(0)
    return n_blocks * (share * probabilities.mean(0)).sum()


def z_loss(logits: Float[Tensor, "instance block"]) -> Float[Tensor, ""]:
    """The mean square of the logits' log-sum-exp (ST-MoE, equation 5)."""
    return logits.logsumexp(-1).square().mean()


class SparseMixture(MixtureLayer):
    """Fully connected blocks, of which each instance takes the ``n_choices`` best.

    Args:
        blocks: each a linear layer and a ReLU, of one size.
        n_choices: 1: the output is scaled by the gate's probability (Switch). 2: by the two normalised (ST-MoE).
        capacity: places of a block in training, as a multiple of those that an even distribution takes.
        eval_capacity: likewise in evaluation.
        balance: weight of the load-balancing loss.
        z: weight of the z-loss.
        jitter: the gate sees its inputs times a number from 1 - jitter to 1 + jitter, in training.
        initial_scale: weights start as a truncated normal of variance ``initial_scale / n_in``.
    """

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        *,
        n_choices: int,
        capacity: float,
        eval_capacity: float,
        balance: float,
        z: float,
        jitter: float,
        initial_scale: float,
    ) -> None:
        super().__init__()
        for name, value in {
            "capacity": capacity,
            "eval-capacity": eval_capacity,
            "initial-scale": initial_scale,
        }.items():
            require(value > 0, name, value, "it must be more than 0")
        for name, value in {"balance": balance, "z-loss": z, "jitter": jitter}.items():
            require(0 <= value <= 1, name, value, "it must lie in [0, 1]")
        first = next(blocks[0].children())
        assert isinstance(first, nn.Linear)
        n_in, n_out = first.in_features, first.out_features
        self.n_choices, self.capacity, self.eval_capacity = min(n_choices, len(blocks)), capacity, eval_capacity
        self._balance, self._z, self._jitter = balance, z, jitter
        self.gate = nn.Parameter(_small(initial_scale, n_in, len(blocks), n_in))
        self.weight = nn.Parameter(_small(initial_scale, n_in, len(blocks), n_out, n_in))
        self.bias = nn.Parameter(torch.zeros(len(blocks), n_out))
        self.noise = Noise()

    def forward(self, v: Float[Tensor, "episode task instance n_in"]) -> Float[Tensor, "episode task instance n_out"]:
        """Sends each instance to its blocks."""
        x = v.flatten(0, 2)
        logits = self._logits(x)
        probabilities = logits.softmax(-1)
        best, block = (t.T for t in probabilities.topk(self.n_choices, dim=-1))
        weight = best if self.n_choices == 1 else best / best.sum(0)
        factor = self.capacity if self.training else self.eval_capacity
        n_blocks = len(self.weight)
        room = math.ceil(min(len(x), factor * self.n_choices * len(x) / n_blocks))  # a block gets nothing twice
        place, kept = places(block, n_blocks, room)
        if self.training:
            loss = self._balance * balance_loss(probabilities, block[0])
            self.auxiliary = loss + self._z * z_loss(logits) if self._z else loss

        # One more place, at the end, for what has no room: it is never read.
        slot = torch.where(kept, block * room + place, n_blocks * room)
        filled = x.new_zeros(n_blocks * room + 1, x.shape[1])
        filled = filled.index_copy(0, slot.flatten(), x.repeat(self.n_choices, 1))
        inner = torch.baddbmm(self.bias[:, None], filled[:-1].view(n_blocks, room, -1), self.weight.mT).relu()
        out = inner.flatten(0, 1)[slot.clamp(max=n_blocks * room - 1)]
        out = (out * (weight * kept)[..., None]).sum(0).to(out.dtype)
        dropped = ~kept.any(0)
        out = torch.where(dropped[:, None], x if x.shape == out.shape else 0.0, out)
        self.usage, self.dropped = self._shares(block, kept, v.shape[:3]), 1 - kept.float().mean()
        return out.view(*v.shape[:3], -1)

    def _logits(self, x: Tensor) -> Float[Tensor, "instance block"]:
        if self.training and self._jitter:
            x = x * (1 + self._jitter * (2 * self.noise.uniform(*x.shape) - 1))
        # In single precision whatever the blocks compute in (Switch, section 2.4; ST-MoE, section 3.3).
        with torch.autocast(x.device.type, enabled=False):
            return x.float() @ self.gate.T

    def _shares(self, block: Tensor, kept: Tensor, shape: Sequence[int]) -> Float[Tensor, "task share"]:
        n_blocks = len(self.weight)
        went = _one_hot(torch.where(kept, block, n_blocks), n_blocks + 1).float()
        return went.view(self.n_choices, *shape, -1).mean((0, 1, 3))


def switch(
    suite: TaskSuite,
    *,
    capacity: float = 1.25,
    eval_capacity: float = 2.0,
    balance: float = 1e-2,
    jitter: float = 1e-2,
    initial_scale: float = 0.1,
    **layers: Any,
) -> MixtureNetwork:
    """Switch: each instance takes the one block that its gate likes best; see :class:`SparseMixture`."""
    settings = {"balance": balance, "z": 0.0, "jitter": jitter, "initial_scale": initial_scale}
    return _network(suite, layers, n_choices=1, capacity=capacity, eval_capacity=eval_capacity, **settings)


def st_moe(
    suite: TaskSuite,
    *,
    capacity: float = 1.25,
    eval_capacity: float = 2.0,
    balance: float = 1e-2,
    z_loss: float = 1e-3,
    jitter: float = 1e-2,
    initial_scale: float = 0.1,
    **layers: Any,
) -> MixtureNetwork:
    """ST-MoE: each instance takes two blocks, and the gate's logits are kept small; see :class:`SparseMixture`."""
    settings = {"balance": balance, "z": z_loss, "jitter": jitter, "initial_scale": initial_scale}
    return _network(suite, layers, n_choices=2, capacity=capacity, eval_capacity=eval_capacity, **settings)


def _network(suite: TaskSuite, layers: dict[str, Any], **settings: Any) -> MixtureNetwork:
    if layers.get("routed_convs"):
        raise UserError(f"routed-convs is {layers['routed_convs']}; switch and st_moe mix fully connected layers, so 0")
    if layers.get("same_start"):
        raise UserError("same-start is True; blocks of switch and st_moe have a start of their own, so False")
    n_mixed = layers.get("depth", 3) - 1
    if n_mixed < 1:
        raise UserError("depth is 1; switch and st_moe need at least 2: mixtures, and a last layer of each task's own")
    encoder, (*mixed, own) = layered_parts(suite, **with_own(suite, n_mixed, layers))
    return MixtureNetwork(suite, encoder, [*(SparseMixture(blocks, **settings) for blocks in mixed), OwnBlocks(own)])


def _one_hot(index: Int[Tensor, "*shape"], n: int) -> Int[Tensor, "*shape {n}"]:
    """Without torch's check that indices are in range, which would wait for the device."""
    return (index[..., None] == torch.arange(n, device=index.device)).long()


def _small(scale: float, n_in: int, *shape: int) -> Tensor:
    deviation = math.sqrt(scale / n_in)
    return nn.init.trunc_normal_(torch.empty(shape), std=deviation, a=-2 * deviation, b=2 * deviation)
