"""Which implementation of a routed layer is the fastest for given blocks; see :mod:`routing_marl.blocks`."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from routing_marl.blocks import LoopedBlocks, RoutedLayer, SharedBlock, StackedBlocks
from routing_marl.convolution import ConvolutionalBlocks, is_convolutional
from routing_marl.errors import UserError


def routed_layer(blocks: Sequence[nn.Module], *, idle: bool) -> RoutedLayer:
    """A routed layer of these blocks.

    Args:
        blocks: the N function blocks; each maps ``[batch, *features]`` to ``[batch, *out]``.
        idle: whether decisions may take no block (PASS, STOP).
    """
    if not blocks:
        raise UserError("a routed layer has 0 blocks; it needs at least 1")
    if len(blocks) == 1 and not idle:
        return SharedBlock(blocks[0])
    if _homogeneous(blocks) and not list(blocks[0].buffers()):
        return StackedBlocks(blocks, idle=idle)
    if _homogeneous(blocks) and is_convolutional(blocks[0]):
        return ConvolutionalBlocks(blocks, idle=idle)
    if _homogeneous(blocks) and not idle and _is_chain(blocks[0]):
        return ChainedBlocks(blocks)
    return LoopedBlocks(blocks)


class ChainedBlocks(RoutedLayer):
    """Blocks of several parts: layers one after the other, in all of which a decision takes the same block.

    Args:
        blocks: for which :func:`_is_chain` holds, all of one architecture.
    """

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.n_blocks = len(blocks)
        parts = zip(*(block.children() for block in blocks), strict=True)
        self.parts = nn.ModuleList(routed_layer(part, idle=False) for part in parts)

    def forward(
        self, x: Float[Tensor, "decision instance *features"], block: Int[Tensor, " decision"]
    ) -> Float[Tensor, "decision instance *out"]:
        """Sends the instances of each decision through all parts of its block."""
        for part in self.parts:
            x = part(x, block)
        return x


def _is_chain(block: nn.Module) -> bool:
    """Whether the block is one convolutional stage after the other."""
    return isinstance(block, nn.Sequential) and all(is_convolutional(part) for part in block)


class OwnBlocks(nn.Module):
    """A layer in which each task has a block of its own: nobody chooses.

    Args:
        blocks: that of each task.
    """

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.blocks = routed_layer(blocks, idle=False)

    def forward(
        self, v: Float[Tensor, "episode task instance *features"]
    ) -> Float[Tensor, "episode task instance *out"]:
        """Sends each instance through its task's block."""
        tasks = torch.arange(v.shape[1], device=v.device).repeat(len(v))
        out: Tensor = self.blocks(v.flatten(0, 1), tasks)
        return out.view(*v.shape[:2], *out.shape[1:])


def _homogeneous(blocks: Sequence[nn.Module]) -> bool:
    """Whether the blocks are alike, and all their parameters are trained and no other block's."""
    parameters = [p for block in blocks for p in block.parameters()]
    return (
        all(_alike(blocks[0], block) for block in blocks[1:])
        and all(p.requires_grad for p in parameters)
        and len(set(map(id, parameters))) == len(parameters)
    )


def _alike(one: nn.Module, other: nn.Module) -> bool:
    """Whether two modules differ in nothing but the values of their parameters."""
    shapes = [[(name, p.shape, p.dtype) for name, p in block.named_parameters()] for block in (one, other)]
    ours, theirs = list(one.modules()), list(other.modules())
    return (
        shapes[0] == shapes[1]
        and len(ours) == len(theirs)
        and all(type(a) is type(b) and _settings(a) == _settings(b) for a, b in zip(ours, theirs, strict=True))
    )


def _settings(module: nn.Module) -> dict[str, object]:
    """A module's own attributes that are plain values; of others the identity."""
    plain = (bool, int, float, str, tuple, type(None))
    return {
        name: value if isinstance(value, plain) else id(value)
        for name, value in vars(module).items()
        if not name.startswith("_") or name.startswith("_reversed")
    }
