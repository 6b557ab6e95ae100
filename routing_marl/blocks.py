"""Routed layers: N interchangeable function blocks, of which each decision takes one or none.

A layer maps ``x [decision, instance, *features]`` and ``block [decision]`` to ``[decision, instance, *out]``; the
block index ``N`` (or anything above) means that the decision takes none and its representation is left as it is.
:func:`routing_marl.layers.routed_layer` picks the fastest implementation of this function:

* :class:`SharedBlock`: one block that everybody takes, so an ordinary module.
* :class:`StackedBlocks`: homogeneous blocks, their parameters stacked as ``[N + 1, ...]``, and gradients that are
  sparse over blocks. On a GPU batched products of static shape, without host synchronisation; on the CPU a product per
  block that was taken (fully connected blocks) or likewise batched ones (all others).
* :class:`~routing_marl.convolution.ConvolutionalBlocks`: the same for convolution and batch norm.
* :class:`LoopedBlocks`: any mixture of modules, one call per block that was taken.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call, vmap

from routing_marl.errors import UserError
from routing_marl.grouped import group, grouped_linear, sparse_rows
from routing_marl.synchronisation import may_wait

Parameters = Mapping[str, Tensor]
Chain = list[tuple[str, nn.Module]]
BatchedModule = Callable[[Parameters, Tensor], Tensor]

ELEMENTWISE = (nn.Identity, nn.ReLU, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Tanh)
"""Modules without parameters that act on each value alone."""


class RoutedLayer(nn.Module):
    """One depth's function blocks.

    Attributes:
        n_blocks: N, the number of blocks.
    """

    n_blocks: int

    def forward(
        self, x: Float[Tensor, "decision instance *features"], block: Int[Tensor, " decision"]
    ) -> Float[Tensor, "decision instance *out"]:
        """Sends the instances of each decision through its block; see the module's docstring."""
        raise NotImplementedError


class SharedBlock(RoutedLayer):
    """A layer of one block that every decision takes."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block
        self.n_blocks = 1

    def forward(
        self, x: Float[Tensor, "decision instance *features"], block: Int[Tensor, " decision"]
    ) -> Float[Tensor, "decision instance *out"]:
        """Applies the block; ``block`` is 0 everywhere."""
        out: Tensor = self.block(x.flatten(0, 1))
        return out.view(*x.shape[:2], *out.shape[1:])


class LoopedBlocks(RoutedLayer):
    """A layer of any modules: a call per block that was taken, so it waits for the routes on the host."""

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.n_blocks = len(blocks)

    def forward(
        self, x: Float[Tensor, "decision instance *features"], block: Int[Tensor, " decision"]
    ) -> Float[Tensor, "decision instance *out"]:
        """Sorts the decisions by block, applies each block to its share, and puts them back in order."""
        block = block.clamp(max=self.n_blocks)
        order = block.argsort(stable=True)
        counts = block.bincount(minlength=self.n_blocks + 1).tolist()
        *shares, idle = torch.split(x[order], counts)
        out = [
            module(share.flatten(0, 1)).unflatten(0, share.shape[:2])
            for module, share in zip(self.blocks, shares, strict=True)
            if len(share)
        ]
        if len(idle):
            out.append(idle)
        return torch.cat(out)[order.argsort()]


class StackedBlocks(RoutedLayer):
    """Homogeneous blocks as one batched module.

    Parameters are stacked along a first axis of ``N + 1`` rows, one per block. The last row is scratch: decisions
    that take no block, and padding, point there; it is never read into a result and its gradient is zero. That keeps
    every shape static, so that nothing has to wait for the routes. The gradients are sparse over rows, as an
    embedding's are: their cost, and :class:`~routing_marl.optim.RowAdam`'s, does not depend on N.
    """

    def __init__(self, blocks: Sequence[nn.Module], *, idle: bool) -> None:
        super().__init__()
        self.n_blocks = len(blocks)
        self._idle = idle
        self._names = [name for name, _ in blocks[0].named_parameters()]
        self._block_bytes = max((4 * p.numel() for p in blocks[0].parameters()), default=1)
        states = [dict(block.named_parameters()) for block in blocks]
        for name in self._names:
            rows = [state[name].detach() for state in states]
            # The scratch row is a block as good as any: one of zeros could turn its gradient, and so all, into NaN.
            # Contiguous, as the gradients are: the optimizer takes both for plain arrays.
            stacked = nn.Parameter(torch.stack([*rows, rows[0]]).contiguous())
            self.register_parameter(slot_of(name), stacked)
        # In a tuple, so that the template's own (meta) parameters are not this module's.
        self._template = (copy.deepcopy(blocks[0]).to("meta"),)
        self._chain = _chain(self._template[0])

    def train(self, mode: bool = True) -> "StackedBlocks":
        """Sets training or evaluation mode, also of the blocks."""
        self._template[0].train(mode)
        return super().train(mode)

    def block_parameters(self, block: int) -> dict[str, Tensor]:
        """Views of one block's parameters, under the names that they had in the block."""
        if not 0 <= block < self.n_blocks:
            raise UserError(f"block is {block}; this layer has blocks 0 to {self.n_blocks - 1}")
        return {name: getattr(self, slot_of(name))[block] for name in self._names}

    def forward(
        self, x: Float[Tensor, "decision instance *features"], block: Int[Tensor, " decision"]
    ) -> Float[Tensor, "decision instance *out"]:
        """Sends the instances of each decision through its block; see the module's docstring."""
        n, decisions = self.n_blocks, len(block)
        if self._idle:
            block = block.clamp(max=n)
        if self._chain is not None and may_wait(x.device):
            return self._grouped(self._chain, x, block)
        # Gathering a block's parameters costs as much as applying them to a few dozen instances. With few decisions
        # each fetches its own; with many they are sorted by block and share at most 2 (N + 1) fetches.
        if decisions <= 2 * (n + 1):
            out = self._blocks_of(x, block)
        else:
            tile_block, source, position = _tiles(block, n)
            padded = x[source].reshape(len(tile_block), -1, *x.shape[2:])
            out = self._blocks_of(padded, tile_block)
            out = out.reshape(len(source), x.shape[1], *out.shape[2:])[position]
        if self._idle:
            taken = (block < n).reshape(-1, *[1] * (x.dim() - 1))
            out = torch.where(taken, out, x)
        return out

    def _grouped(self, chain: Chain, x: Tensor, block: Tensor) -> Tensor:
        """As ``forward``, for fully connected blocks, where the routes may be looked at."""
        rows = x.flatten(1, -2)
        groups = group(block, self.n_blocks, rows.shape[1], self._block_bytes)
        out = rows
        for prefix, part in chain:
            if type(part) is nn.Linear:
                weight = getattr(self, slot_of(f"{prefix}weight"))
                out = grouped_linear(out, weight, getattr(self, slot_of(f"{prefix}bias"), None), groups)
            else:
                out = part(out)
        if groups.taking is not None:
            out = torch.where(groups.taking, out, rows)
        return out.view(*x.shape[:-1], out.shape[-1])

    def _blocks_of(self, x: Tensor, rows: Tensor) -> Tensor:
        parameters = {name: take_rows(getattr(self, slot_of(name)), rows) for name in self._names}
        return _batched(self._template[0])(parameters, x)


def slot_of(name: str) -> str:
    """Where a stack keeps a parameter: names in a module have no dots, and ``a.b`` must not meet ``a_b``."""
    return name.replace(".", "/")


def take_rows(stacked: Tensor, rows: Int[Tensor, " decision"]) -> Tensor:
    """``stacked[rows]`` whose gradient is sparse over rows, as an embedding's."""
    out: Tensor = _TakeRows.apply(stacked, rows)
    return out


class _TakeRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.shape = weight.shape
        return weight.index_select(0, rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (rows,) = ctx.saved_tensors
        return sparse_rows(rows, gradient.contiguous(), ctx.shape), None


def _tiles(block: Int[Tensor, " decision"], n_blocks: int) -> tuple[Tensor, Tensor, Tensor]:
    """Groups decisions by block into tiles of one size, without looking at the blocks on the host.

    Returns:
        The block of each tile (``n_blocks``, the scratch row, for tiles left over), of which there are at most
        ``2 (N + 1)``; the decision at each place of all tiles (0 for places left over); each decision's place.
    """
    decisions, rows = len(block), n_blocks + 1
    size = -(-decisions // rows)
    order = block.argsort(stable=True)
    counts = block.new_zeros(rows).scatter_add_(0, block, torch.ones_like(block))
    tiles = (counts + size - 1) // size
    first_tile, first = tiles.cumsum(0) - tiles, counts.cumsum(0) - counts
    ranked = block[order]
    rank = torch.arange(decisions, device=block.device) - first[ranked]
    place = (first_tile[ranked] + rank // size) * size + rank % size
    n_tiles = rows + -(-decisions // size)
    tile_block = block.new_full((n_tiles,), n_blocks).scatter_(0, place // size, ranked)
    source = block.new_zeros(n_tiles * size).scatter_(0, place, order)
    return tile_block, source, torch.empty_like(place).scatter_(0, order, place)


def _chain(module: nn.Module) -> Chain | None:
    """The prefixes and parts of a module made of linear and elementwise layers only; None for any other."""
    parts = [(f"{name}.", part) for name, part in module.named_children()] if isinstance(module, nn.Sequential) else []
    parts = parts or [("", module)]
    simple = all(type(part) is nn.Linear or isinstance(part, ELEMENTWISE) for _, part in parts)
    return parts if simple else None


def _batched(module: nn.Module) -> BatchedModule:
    """The module over a leading axis of parameter sets: batched products where possible, vmap elsewhere.

    For the fully connected blocks of the paper the direct form takes half of vmap's time at 20 x 1 instances.
    """
    chain = _chain(module)
    if chain is None:
        return vmap(lambda parameters, x: functional_call(module, parameters, (x,)), randomness="different")

    def apply(parameters: Parameters, x: Tensor) -> Tensor:
        for prefix, part in chain:
            x = _linear(parameters, prefix, x) if type(part) is nn.Linear else part(x)
        return x

    return apply


def _linear(parameters: Parameters, prefix: str, x: Tensor) -> Tensor:
    weight, bias = parameters[f"{prefix}weight"], parameters.get(f"{prefix}bias")
    columns = x.flatten(1, -2).mT  # W x rather than x W', so that the weights' gradient comes out contiguous
    out = weight @ columns if bias is None else torch.baddbmm(bias[..., None], weight, columns)
    return out.mT.reshape(*x.shape[:-1], out.shape[1])
