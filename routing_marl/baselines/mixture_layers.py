"""Layers that decide by themselves how their blocks are used, and layers of each task's own."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from routing_marl.baselines.gates import Weights

Representation = Float[Tensor, "episode task instance *features"]


class MixtureLayer(nn.Module):
    """A layer that decides by itself how its blocks are used.

    Attributes:
        usage: of the last forward pass, the share of each block, and last of no block: ``[task, block + 1]``.
        auxiliary: what the last forward pass adds to the loss; None for nothing.
        dropped: share of the last forward pass's choices that found no room; None where blocks have no capacity.
    """

    usage: Float[Tensor, "task share"] | None = None
    auxiliary: Tensor | None = None
    dropped: Float[Tensor, ""] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "auxiliary": None}  # a graph under way can't be copied


class WideBlocks(nn.Module):
    """N blocks that all see every instance, side by side in one module.

    A block's batch norm sees all instances, whatever their weights: what it gives does not depend on the gate.

    Args:
        blocks: convolutional or fully connected blocks as :func:`~routing_marl.architecture.layered_parts` makes them.
    """

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.n_blocks = len(blocks)
        columns = [[part for part in block.modules() if not isinstance(part, nn.Sequential)] for block in blocks]
        parts: list[nn.Module] = []
        for alike in zip(*columns, strict=True):
            apart = any(isinstance(part, nn.Conv2d | nn.Linear) for part in parts)
            parts.append(_widened(alike, apart))
        self.parts = nn.Sequential(*(part for part in parts if not isinstance(part, nn.Flatten)))
        self._flat = len(self.parts) < len(parts)
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Float[Tensor, "instance block *out"]:
        """The output of every block for every instance of ``x [instance, *features]``."""
        wide: Tensor = self.parts(x)
        out = wide.reshape(len(x), self.n_blocks, -1, *wide.shape[2:])
        return out.flatten(2) if self._flat else out


class DenseMixture(MixtureLayer):
    """The sum of all blocks' outputs, by a gate's weights.

    Args:
        gate: gives the weights.
        blocks: the blocks.
    """

    def __init__(self, gate: nn.Module, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.gate = gate
        self.blocks = WideBlocks(blocks)

    def forward(self, v: Representation) -> Float[Tensor, "episode task instance *out"]:
        """Mixes what the blocks make of each instance."""
        weights: Weights = self.gate(v)
        self.usage = nn.functional.pad(weights.detach().mean((0, 2)), (0, 1))
        shape = v.shape[:3]
        out: Tensor = self.blocks(v.flatten(0, 2))
        weights = weights.expand(*shape, -1).flatten(0, 2).to(out.dtype)
        mixed = (weights[:, None] @ out.flatten(2))[:, 0]
        return mixed.view(*shape, *out.shape[2:])


def _widened(parts: tuple[nn.Module, ...], apart: bool) -> nn.Module:
    """One module that does what these do, their channels or features one after the other.

    Args:
        parts: of the same kind.
        apart: whether each has an input of its own, these too one after the other (convolutions only), or all the same.
    """
    first, wide = parts[0], len(parts)
    new: nn.Module
    if isinstance(first, nn.Linear):
        new = nn.Linear(first.in_features, wide * first.out_features)
    elif isinstance(first, nn.Conv2d):
        groups = wide if apart else 1
        channels = groups * first.in_channels, wide * first.out_channels
        new = nn.Conv2d(*channels, first.kernel_size, padding=first.padding, groups=groups, bias=False)  # type: ignore[arg-type]
    elif isinstance(first, nn.BatchNorm2d):
        return nn.BatchNorm2d(wide * first.num_features)
    else:
        return first
    for name, parameter in new.named_parameters():
        parameter.data.copy_(torch.cat([part.get_parameter(name).data for part in parts]))
    return new
