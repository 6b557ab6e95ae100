"""Linear layers with a weight matrix per block, for devices on whose routes the host need not wait (CPUs).

The decisions of a block become one product, and blocks that as many decisions took become one batched product over
their weights. Weights are fetched in chunks that the cache holds: at 1,000 tasks over 1,000 blocks, where reading
weights is most of the time, a layer takes 19 ms forward and backward, where a product per block takes 43.
"""

import warnings
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

_CHUNK_BYTES = 2**21
"""Weights that are fetched at a time."""

_FEW_ROWS = 8
"""Below so many rows per block, a product's time is that of reading the weights, however many rows are padding."""


class Chunk(NamedTuple):
    """Groups that are computed together.

    Attributes:
        n: how many.
        size: places of each of them.
        first: where their blocks are consecutive, the first: they need not be fetched. None elsewhere.
    """

    n: int
    size: int
    first: int | None


class Groups(NamedTuple):
    """Decisions arranged by block, as the host knows them: ``[place]`` are the places of all groups, one after another.

    Attributes:
        block: the block of each group, each once.
        chunks: one after another.
        source: the decision at each place; any where the place is padding.
        position: the place of each decision; those that take no block have places of their own, after all others.
        n_places: places, with those.
        taking: which decisions take a block; None where all do.
    """

    block: Int[Tensor, " group"]
    chunks: list[Chunk]
    source: Int[Tensor, " place"]
    position: Int[Tensor, " decision"]
    n_places: int
    taking: Bool[Tensor, "decision 1 1"] | None


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

    taken = ordered[first]
    chunks: list[Chunk] = []
    start, at_once = 0, max(1, _CHUNK_BYTES // block_bytes)
    while start < len(sizes):
        size = int(sizes[start])
        # At most half of the places are padding, unless padding is free.
        least = size // 2 if size * instances > _FEW_ROWS else 0
        stop = min(start + at_once, int(np.searchsorted(-sizes, -least)))
        consecutive = bool((np.diff(taken[start:stop]) == 1).all())
        chunks.append(Chunk(stop - start, size, int(taken[start]) if consecutive else None))
        start = stop

    counted = np.array([(chunk.n, chunk.size) for chunk in chunks], dtype=np.int64).reshape(-1, 2)
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
        torch.from_numpy(taken),
        chunks,
        torch.from_numpy(source),
        torch.from_numpy(position),
        n_places + len(idle),
        torch.from_numpy(routes < n_blocks)[:, None, None] if len(idle) else None,
    )


def grouped_linear(
    x: Float[Tensor, "decision instance n_in"],
    weight: Float[Tensor, "block n_out n_in"],
    bias: Float[Tensor, "block n_out"] | None,
    groups: Groups,
) -> Float[Tensor, "decision instance n_out"]:
    """``x @ weight[g].T + bias[g]``, where ``g`` is each decision's block; zeros for decisions that take none.

    Gradients are sparse over blocks. The weights' precision holds, under autocast too: at few rows per block the time
    goes into reading the weights, and rounding them first would read them once more.
    """
    out: Tensor = _GroupedLinear.apply(x.to(weight.dtype), weight, bias, groups)
    return out


class _GroupedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, groups: Groups) -> Tensor:
        x = x.index_select(0, groups.source)
        out = x.new_zeros(groups.n_places, x.shape[1], weight.shape[1])
        for part in _parts(groups):
            rows, into = part.places(x), part.places(out)
            matrices = part.blocks(weight)
            if bias is None:
                torch.bmm(rows, matrices.mT, out=into)
            else:
                torch.baddbmm(part.blocks(bias)[:, None], rows, matrices.mT, out=into)
        kept = matrices if len(groups.chunks) == 1 else None  # more of them would be a copy of all weights
        ctx.save_for_backward(x, weight, kept)
        ctx.groups, ctx.bias_shape = groups, None if bias is None else bias.shape
        return out.index_select(0, groups.position)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, kept = ctx.saved_tensors
        groups: Groups = ctx.groups
        placed = gradient.new_zeros(groups.n_places, *gradient.shape[1:]).index_copy_(0, groups.position, gradient)
        to_x = x.new_zeros(groups.n_places, *x.shape[1:])
        to_weight = weight.new_empty(len(groups.block), *weight.shape[1:])
        to_bias = None if ctx.bias_shape is None else weight.new_empty(len(groups.block), weight.shape[1])
        for part in _parts(groups):
            rows, g = part.places(x), part.places(placed)
            # One row per block: a broadcast product takes a third of a batched one's time.
            (torch.mul if rows.shape[1] == 1 else torch.bmm)(g.mT, rows, out=to_weight[part.members])
            torch.bmm(g, part.blocks(weight) if kept is None else kept, out=part.places(to_x))
            if to_bias is not None:
                torch.sum(g, 1, out=to_bias[part.members])
        to_x = to_x.index_select(0, groups.position)
        return to_x, _sparse(groups, to_weight, weight.shape), _sparse(groups, to_bias, ctx.bias_shape), None


class _Part(NamedTuple):
    """What belongs to one chunk."""

    groups: Groups
    chunk: Chunk
    members: slice
    first_place: int

    def places(self, values: Float[Tensor, "place instance feature"]) -> Float[Tensor, "group row feature"]:
        """A view of the values at its places."""
        n_places = self.chunk.n * self.chunk.size
        return values[self.first_place : self.first_place + n_places].view(self.chunk.n, -1, values.shape[-1])

    def blocks(self, stacked: Float[Tensor, "block ..."]) -> Float[Tensor, "group ..."]:
        """A parameter of its blocks."""
        first = self.chunk.first
        if first is None:
            return stacked.index_select(0, self.groups.block[self.members])
        return stacked[first : first + self.chunk.n]


def _parts(groups: Groups) -> Iterator[_Part]:
    group_, place = 0, 0
    for chunk in groups.chunks:
        yield _Part(groups, chunk, slice(group_, group_ + chunk.n), place)
        group_, place = group_ + chunk.n, place + chunk.n * chunk.size


def _sparse(groups: Groups, values: Tensor | None, shape: Any) -> Tensor | None:
    return None if values is None else sparse_rows(groups.block, values, shape)


def sparse_rows(rows: Int[Tensor, " entry"], values: Float[Tensor, "entry ..."], shape: Any) -> Tensor:
    """A gradient that is sparse over its first axis; the rows are not checked, since a GPU would be waited for."""
    return torch.sparse_coo_tensor(rows[None], values, shape, check_invariants=False)


with warnings.catch_warnings():  # torch 2.11 warns once per process, also where the check is declined: here, unheard
    warnings.simplefilter("ignore")
    sparse_rows(torch.zeros(1, dtype=torch.long), torch.zeros(1), (1,))
