"""Networks whose gates learn by backprop: the layers of routing-all, with a gate in place of each router.

Training needs the outputs of all blocks for every instance, since gradients ask what the blocks not taken would have
given: the price of not exploring.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from routing_marl.architecture import layered_parts, output_shape
from routing_marl.baselines.gates import (
    GumbelMatrixGate,
    GumbelSoftmaxGate,
    InstanceGate,
    SoftmaxGate,
    TaskGate,
)
from routing_marl.baselines.mixture_layers import DenseMixture, MixtureLayer
from routing_marl.config import conv_layers, require
from routing_marl.layers import OwnBlocks
from routing_marl.network import UnroutedNetwork
from routing_marl.suites import TaskSuite


class MixtureNetwork(UnroutedNetwork):
    """An encoder, and layers that route by themselves.

    Args:
        suite: the tasks.
        encoder: maps normalised images to representations.
        layers: mixtures, perhaps followed by layers of each task's own.
    """

    def __init__(self, suite: TaskSuite, encoder: nn.Module, layers: Sequence[nn.Module]) -> None:
        super().__init__(suite)
        self.encoder = encoder
        self.layers = nn.ModuleList(layers)
        self._mixtures = [layer for layer in layers if isinstance(layer, MixtureLayer)]

    def task_logits(
        self, x: Float[Tensor, "image channel height width"], shape: tuple[int, int, int]
    ) -> Float[Tensor, "episode task instance class_"]:
        """Encodes the images, and applies layer after layer."""
        v: Tensor = self.encoder(x)
        v = v.view(*shape, *v.shape[1:])
        for layer in self.layers:
            v = layer(v)
        return v

    def auxiliary_loss(self) -> Tensor | None:
        """What the layers add to the loss of the last forward pass."""
        losses = [layer.auxiliary for layer in self._mixtures if layer.auxiliary is not None]
        return torch.stack(losses).sum() if losses else None

    def gate_usage(self) -> Float[Tensor, "depth task share"]:
        """The share of each block in the last forward pass, per mixture layer; the last column is no block."""
        usages = [layer.usage for layer in self._mixtures if layer.usage is not None]
        most = max(usage.shape[1] for usage in usages)
        return torch.stack([torch.cat([_pad(u[:, :-1], most - 1), u[:, -1:]], 1) for u in usages])

    def dropped(self) -> Float[Tensor, ""] | None:
        """The share of choices, over layers, that found no room in the last forward pass."""
        shares = [layer.dropped for layer in self._mixtures if layer.dropped is not None]
        return torch.stack(shares).mean() if shares else None


class TaskMixtureNetwork(MixtureNetwork):
    """Every routed layer is a mixture by each task's logits, which have a learning rate of their own.

    Args:
        suite: the tasks.
        make_gate: makes a gate for so many tasks and blocks.
        gate_rate: learning rate of the logits.
        own_fc: whether the fully connected layers are each task's own, and only the convolutional ones mixtures.
        layers: see :func:`routing_marl.network.routing_all_fc`.
    """

    def __init__(
        self,
        suite: TaskSuite,
        make_gate: Callable[[int, int], TaskGate],
        gate_rate: float,
        *,
        own_fc: bool = False,
        **layers: Any,
    ) -> None:
        require(gate_rate >= 0, "gate-rate", gate_rate, "a learning rate must be at least 0")
        encoder, blocks = layered_parts(suite, **layers)
        n_mixed = len(blocks) - layers.get("depth", 3) if own_fc else len(blocks)
        mixtures = [DenseMixture(make_gate(suite.n_tasks, len(layer)), layer) for layer in blocks[:n_mixed]]
        super().__init__(suite, encoder, [*mixtures, *map(OwnBlocks, blocks[n_mixed:])])
        self._gate_rate = gate_rate

    @property
    def gates(self) -> list[TaskGate]:
        """The gate of each layer."""
        return [module for module in self.modules() if isinstance(module, TaskGate)]

    def own_rates(self) -> dict[nn.Parameter, float]:
        """The learning rate of the logits."""
        return {gate.logits: self._gate_rate for gate in self.gates}


class GumbelMatrix(TaskMixtureNetwork):
    """Gumbel-Matrix routing (Maziarz et al., arXiv 1910.04915), see :class:`~routing_marl.baselines.gates`.

    Args:
        suite: the tasks.
        initial_probability: p0, with which entries are 1 at the start.
        budget: b, the share of active blocks that costs nothing.
        budget_weight: lambda: the loss grows by ``lambda * max(0, E[active] / total - b)``.
        gate_rate: learning rate of the matrices' logits.
        layers: see :func:`routing_marl.network.routing_all_fc`.
    """

    def __init__(
        self,
        suite: TaskSuite,
        *,
        initial_probability: float = 0.5,
        budget: float = 1.0,
        budget_weight: float = 0.1,
        gate_rate: float = 1e-2,
        **layers: Any,
    ) -> None:
        require(0 <= budget <= 1, "budget", budget, "a share of blocks lies in [0, 1]")
        require(budget_weight >= 0, "budget-weight", budget_weight, "it must be at least 0")
        super().__init__(suite, lambda tasks, n: GumbelMatrixGate(tasks, n, initial_probability), gate_rate, **layers)
        self._budget, self._budget_weight = budget, budget_weight

    def auxiliary_loss(self) -> Tensor:
        """The budget penalty."""
        active = torch.cat([gate.logits.flatten() for gate in self.gates]).sigmoid().mean()
        return self._budget_weight * (active - self._budget).clamp(min=0)


def soft_routing(suite: TaskSuite, *, gate_rate: float = 1e-2, **layers: Any) -> MixtureNetwork:
    """Softmax mixtures of all blocks; ``gate_rate`` is the learning rate of the logits."""
    return TaskMixtureNetwork(suite, SoftmaxGate, gate_rate, **layers)


def gumbel_softmax(
    suite: TaskSuite, *, gate_rate: float = 5e-2, annealing_rate: float = 1e-3, **layers: Any
) -> MixtureNetwork:
    """One block per task and layer, drawn by Gumbel-softmax; see :class:`~routing_marl.baselines.gates`."""
    require(annealing_rate >= 0, "annealing-rate", annealing_rate, "it must be at least 0")
    return TaskMixtureNetwork(suite, lambda tasks, n: GumbelSoftmaxGate(tasks, n, annealing_rate), gate_rate, **layers)


def mmoe(suite: TaskSuite, **layers: Any) -> MixtureNetwork:
    """Multi-gate mixture of experts (Ma et al., KDD 2018): the first routed layer holds experts, the others are towers.

    Each task mixes the experts by a gate of its own over the instance's features; its tower is its own too.
    """
    encoder, (experts, *towers) = layered_parts(suite, **with_own(suite, 1, layers))
    height, width, channels = suite.image_shape
    features = output_shape(encoder, (channels, height, width))
    assert features is not None
    mixture = DenseMixture(InstanceGate(suite.n_tasks, len(experts), features[0]), experts)
    return MixtureNetwork(suite, encoder, [mixture, *(OwnBlocks(tower) for tower in towers)])


def with_own(suite: TaskSuite, n_mixed: int, layers: dict[str, Any]) -> dict[str, Any]:
    """The settings of layers of which all but the first ``n_mixed`` have a block per task."""
    n_layers = conv_layers(layers.get("routed_convs", 0), layers.get("joint_convs", False)) + layers.get("depth", 3)
    blocks = layers.get("blocks") or suite.n_tasks
    mixed = [blocks] * n_layers if isinstance(blocks, int) else list(blocks)
    return {**layers, "blocks": [*mixed[:n_mixed], *[suite.n_tasks] * (n_layers - n_mixed)]}


def _pad(usage: Tensor, width: int) -> Tensor:
    return nn.functional.pad(usage, (0, width - usage.shape[1]))
