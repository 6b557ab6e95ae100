"""Static sharing: the same encoder, layers and training as routed networks, with routes that never change.

Each function returns the blocks per layer and the table ``[depth, task]`` of a network of ``convs`` routed
convolutional and ``depth`` routed fully connected layers, so that no block exists that nobody takes.
"""

from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor


class Sharing(NamedTuple):
    """Who shares what.

    Attributes:
        blocks: number of blocks of each layer.
        table: block of each task at each depth.
    """

    blocks: tuple[int, ...]
    table: Int[Tensor, "depth task"]


def shared_bottom(n_tasks: int, depth: int, convs: int = 0) -> Sharing:
    """One shared layer, then a tower of the other layers for each task (Caruana 1997; Ma et al. 2018, section 3)."""
    return _own_from(convs + 1, n_tasks, convs + depth)


def task_specific_1_fc(n_tasks: int, depth: int, convs: int = 0) -> Sharing:
    """Everything shared but the last fully connected layer (paper, section 4)."""
    return _own_from(convs + depth - 1, n_tasks, convs + depth)


def task_specific_all_fc(n_tasks: int, depth: int, convs: int = 0) -> Sharing:
    """Every task has fully connected layers of its own; the convolutions are shared (paper, section 4)."""
    return _own_from(convs, n_tasks, convs + depth)


def task_specific_all(n_tasks: int, depth: int, convs: int = 0) -> Sharing:
    """Every task has routed layers of its own, convolutional ones too."""
    return _own_from(0, n_tasks, convs + depth)


def oracle(clusters: Int[Tensor, " task"], depth: int, convs: int = 0) -> Sharing:
    """The tasks of a cluster share all routed layers but the last, whose classes are each task's own."""
    groups = torch.unique(clusters.cpu(), return_inverse=True)[1]
    n_tasks, n_layers = len(groups), convs + depth
    table = torch.stack([*[groups] * (n_layers - 1), torch.arange(n_tasks)])
    return Sharing((*[int(groups.max()) + 1] * (n_layers - 1), n_tasks), table)


def _own_from(first: int, n_tasks: int, n_layers: int) -> Sharing:
    """Layers before ``first`` are shared by all, the others are each task's own."""
    own = torch.arange(n_layers) >= first
    table = torch.where(own[:, None], torch.arange(n_tasks), 0)
    return Sharing(tuple(n_tasks if mine else 1 for mine in own.tolist()), table)
