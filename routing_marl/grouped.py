"""A linear layer with a weight matrix per group of rows, for devices on whose routes the host need not wait (CPUs).

Rows come sorted by group. Each group's product reads its weights where they lie, where batched products would first
gather them: at 1,000 tasks of one instance each, over 1,000 blocks, that is most of the time.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable


class Groups(NamedTuple):
    """Rows sorted by group, as the host knows them.

    Attributes:
        block: the block of each group; ascending, each once.
        sizes: rows of each.
    """

    block: Int[Tensor, " group"]
    sizes: list[int]


def grouped_linear(
    x: Float[Tensor, "row n_in"],
    weight: Float[Tensor, "block n_out n_in"],
    bias: Float[Tensor, "block n_out"] | None,
    groups: Groups,
) -> Float[Tensor, "row n_out"]:
    """``x @ weight[g].T + bias[g]`` for the rows of each group ``g``; gradients are sparse over blocks.

    Computed in the weights' precision, also under autocast: with few rows per group the time goes into reading the
    weights, and rounding them first would read them once more.
    """
    out: Tensor = _GroupedLinear.apply(x.to(weight.dtype), weight, bias, groups)
    return out


class _GroupedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, groups: Groups) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.groups, ctx.bias_shape = groups, None if bias is None else bias.shape
        out = x.new_empty(len(x), weight.shape[1])
        parts = (tensor.split(groups.sizes) for tensor in (x, out))  # type: ignore[no-untyped-call]
        for block, rows, into in zip(groups.block.tolist(), *parts, strict=True):
            if bias is None:
                torch.mm(rows, weight[block].t(), out=into)
            else:
                torch.addmm(bias[block], rows, weight[block].t(), out=into)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        groups: Groups = ctx.groups
        gradient = gradient.contiguous()
        to_x = torch.empty_like(x)
        to_weight = weight.new_empty(len(groups.sizes), *weight.shape[1:])
        to_bias = None if ctx.bias_shape is None else weight.new_empty(len(groups.sizes), weight.shape[1])
        parts = (tensor.split(groups.sizes) for tensor in (gradient, x, to_x))
        for slot, (block, g, rows, into) in enumerate(zip(groups.block.tolist(), *parts, strict=True)):
            torch.mm(g.t(), rows, out=to_weight[slot])
            torch.mm(g, weight[block], out=into)
            if to_bias is not None:
                torch.sum(g, 0, out=to_bias[slot])
        return to_x, _sparse(groups, to_weight, weight.shape), _sparse(groups, to_bias, ctx.bias_shape), None


def _sparse(groups: Groups, values: Tensor | None, shape: Any) -> Tensor | None:
    if values is None:
        return None
    return torch.sparse_coo_tensor(groups.block[None], values, shape, check_invariants=False)
