"""What a network costs, read from the network itself: comparing methods of unequal budgets misleads."""

import copy
from typing import NamedTuple

import torch

from routing_marl.blocks import StackedBlocks
from routing_marl.network import Network
from routing_marl.suites import TaskSuite


class Cost(NamedTuple):
    """Size and work.

    Attributes:
        parameters: trained numbers, of all tasks and blocks together.
        multiply_adds: of convolutions and products, for one instance to be classified, averaged over tasks.
    """

    parameters: int
    multiply_adds: float


@torch.no_grad()
def cost_of(network: Network, suite: TaskSuite) -> Cost:
    """Counts parameters, and runs a copy of the network on one instance of each task, along the first legal actions."""
    from torch.utils.flop_counter import FlopCounterMode  # loads triton, and counting torch's compiler

    network = copy.deepcopy(network).cpu().eval()
    images = torch.zeros(1, suite.n_tasks, 1, *suite.image_shape, dtype=torch.uint8)
    routes = network.legal.int().argmax(-1)[:, None, None].expand(-1, 1, suite.n_tasks)
    with FlopCounterMode(display=False) as counter:
        network(images, routes)
    scratch = sum(
        parameter[-1].numel()
        for layer in network.modules()
        if isinstance(layer, StackedBlocks)
        for parameter in layer.parameters(recurse=False)
    )
    parameters = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    return Cost(parameters - scratch, counter.get_total_flops() / 2 / suite.n_tasks)
