"""Linear layers with a weight matrix per block, for devices on whose routes the host need not wait (CPUs).

The decisions of a block become one product, and blocks that as many decisions took become one batched product over
their weights. Weights are fetched in chunks that the cache holds: at 1,000 tasks over 1,000 blocks, where reading
weights is most of the time, a layer takes 19 ms forward and backward, where a product per block takes 43.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

_CHUNK_BYTES = 2**21
"""Weights that are fetched at a time."""

_FEW_ROWS = 8
"""Below so many rows per block, a product's time is that of reading the weights, however many rows are padding."""


class Groups(NamedTuple):
    """Decisions arranged by block, as the host knows them: ``[place]`` are the places of all groups, one after another.

    Attributes:
        block: the block of each group, each once.
        chunks: groups that are computed together: how many, and places of each of them.
        source: the decision at each place; any where the place is padding.
        position: the place of each decision; those that take no block come after all places, in their order.
        idle: the decisions that take no block.
    """

    block: Int[Tensor, " group"]
    chunks: list[tuple[int, int]]
    source: Int[Tensor, " place"]
    position: Int[Tensor, " decision"]
    idle: Int[Tensor, " idle"]


def group(block: Int[Tensor, " decision"], n_blocks: int, instances: int, block_bytes: int) -> Groups:
    """Arranges decisions by block.

    Args:
        block: what each decision takes; ``n_blocks`` for none.
        n_blocks: N.
        instances: rows of a decision.
        block_bytes: size of the largest weight matrix.
    """
    return _group(block.numpy().tobytes(), n_blocks, instances, block_bytes)


@lru_cache(maxsize=64)  # fixed routes, and those that agents have settled on, come again at every step
def _group(blocks: bytes, n_blocks: int, instances: int, block_bytes: int) -> Groups:
    routes = np.frombuffer(blocks, dtype=np.int64)
    order = np.argsort(routes, kind="stable")
    n_taken = int(np.searchsorted(routes, n_blocks, sorter=order))
    order, idle = order[:n_taken], order[n_taken:]
    ordered = routes[order]
    first = np.flatnonzero(np.diff(ordered, prepend=-1))
    sizes = np.diff(first, append=n_taken)
    largest_first = np.argsort(-sizes, kind="stable")
    first, sizes = first[largest_first], sizes[largest_first]

    chunks: list[tuple[int, int]] = []
    start, at_once = 0, max(1, _CHUNK_BYTES // block_bytes)
    while start < len(sizes):
        size = int(sizes[start])
        # At most half of the places are padding, unless padding is free.
        least = size // 2 if size * instances > _FEW_ROWS else 0
        stop = min(start + at_once, int(np.searchsorted(-sizes, -least)))
        chunks.append((stop - start, size))
        start = stop

    counted = np.array(chunks, dtype=np.int64).reshape(-1, 2)
    widths = counted[:, 1].repeat(counted[:, 0])
    ends = widths.cumsum()
    member = np.repeat(np.arange(len(sizes)), sizes)
    rank = np.arange(n_taken) - np.repeat(sizes.cumsum() - sizes, sizes)
    decision, place = order[first[member] + rank], (ends - widths)[member] + rank
    n_places = int(ends[-1]) if len(ends) else 0
    source = np.zeros(n_places, dtype=np.int64)
    source[place] = decision
    position = np.empty(len(routes), dtype=np.int64)
    position[decision] = place
    position[idle] = np.arange(n_places, n_places + len(idle))
    return Groups(
        torch.from_numpy(ordered[first]),
        chunks,
        torch.from_numpy(source),
        torch.from_numpy(position),
        torch.from_numpy(idle),
    )


def arrange(x: Float[Tensor, "decision instance feature"], groups: Groups) -> Float[Tensor, "place instance feature"]:
    """The rows of the decision at each place; no gradient comes from places that are padding."""
    out: Tensor = _Arrange.apply(x, groups)
    return out


def grouped_linear(
    x: Float[Tensor, "place instance n_in"],
    weight: Float[Tensor, "block n_out n_in"],
    bias: Float[Tensor, "block n_out"] | None,
    groups: Groups,
) -> Float[Tensor, "place instance n_out"]:
    """``x @ weight[g].T + bias[g]`` for the places of each group ``g``; gradients are sparse over blocks.

    Computed in the weights' precision, also under autocast: with few rows per group the time goes into reading the
    weights, and rounding them first would read them once more.
    """
    out: Tensor = _GroupedLinear.apply(x.to(weight.dtype), weight, bias, groups)
    return out


class _Arrange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, groups: Groups) -> Tensor:
        ctx.groups = groups
        return x.index_select(0, groups.source)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        groups: Groups = ctx.groups
        if not len(groups.idle):
            return gradient.index_select(0, groups.position), None
        to_x = gradient.new_zeros(len(groups.position), *gradient.shape[1:])
        taking = groups.position < len(gradient)
        to_x[taking] = gradient[groups.position[taking]]
        return to_x, None


class _GroupedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, groups: Groups) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.groups, ctx.bias_shape = groups, None if bias is None else bias.shape
        out = x.new_empty(*x.shape[:-1], weight.shape[1])
        for block, _, rows, into in _chunks(groups, x, out):
            matrices = weight.index_select(0, block).mT
            if bias is None:
                torch.bmm(rows, matrices, out=into)
            else:
                torch.baddbmm(bias.index_select(0, block)[:, None], rows, matrices, out=into)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        groups: Groups = ctx.groups
        gradient = gradient.contiguous()
        to_x = torch.empty_like(x)
        to_weight = weight.new_empty(len(groups.block), *weight.shape[1:])
        to_bias = None if ctx.bias_shape is None else weight.new_empty(len(groups.block), weight.shape[1])
        for block, members, g, rows, into in _chunks(groups, gradient, x, to_x):
            torch.bmm(g.mT, rows, out=to_weight[members])
            torch.bmm(g, weight.index_select(0, block), out=into)
            if to_bias is not None:
                torch.sum(g, 1, out=to_bias[members])
        return to_x, _sparse(groups, to_weight, weight.shape), _sparse(groups, to_bias, ctx.bias_shape), None


def _chunks(groups: Groups, *tensors: Tensor) -> Iterator[Any]:
    """For each chunk its blocks, its slice of the groups, and its part of each tensor as ``[group, row, feature]``."""
    group_, place = 0, 0
    for n, size in groups.chunks:
        members, places = slice(group_, group_ + n), slice(place, place + n * size)
        parts = (tensor[places].view(n, -1, tensor.shape[-1]) for tensor in tensors)
        yield groups.block[members], members, *parts
        group_, place = members.stop, places.stop


def _sparse(groups: Groups, values: Tensor | None, shape: Any) -> Tensor | None:
    if values is None:
        return None
    return torch.sparse_coo_tensor(groups.block[None], values, shape, check_invariants=False)
