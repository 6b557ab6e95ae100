"""Cross-stitch networks (Misra, Shrivastava, Gupta and Hebert, CVPR 2016, arXiv 1604.03539).

One column of layers per task; after each layer but the last, every column goes on with a learned linear combination
of what all columns made of the same image. So an image of any task passes through all T columns: the cost of an
instance grows with the number of tasks, which is what routing avoids.

There is one mixing matrix per layer, not one per channel, and it learns at the rate of everything else, not at the
larger one of the paper's section 5.
"""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from routing_marl.architecture import SimpleConvNet, make_blocks, output_shape
from routing_marl.config import require
from routing_marl.network import UnroutedNetwork
from routing_marl.suites import TaskSuite


class CrossStitch(UnroutedNetwork):
    """A column of SimpleConvNet and fully connected layers per task, with a cross-stitch unit after each layer.

    Args:
        suite: the tasks.
        depth: fully connected layers.
        hidden: width of all of them but the last.
        convs: convolutional layers.
        filters: filters of each.
        routed_convs: how many of them, the last ones, are in columns, the others being shared.
        same_start: the columns start as copies of each other.
        off_diagonal: what the other columns together start with in each combination; the own one has the rest.
            0.1 is the paper's choice.
    """

    def __init__(
        self,
        suite: TaskSuite,
        *,
        depth: int = 3,
        hidden: int = 128,
        convs: int = 4,
        filters: int = 32,
        routed_convs: int = 4,
        same_start: bool = False,
        off_diagonal: float = 0.1,
    ) -> None:
        require(0 <= off_diagonal <= 1, "off-diagonal", off_diagonal, "it must lie in [0, 1]")
        super().__init__(suite)
        n = self._n_columns = suite.n_tasks
        first = convs - routed_convs
        columns = make_blocks(partial(SimpleConvNet, suite.image_shape, filters, convs), n, same_start)
        stages = list(columns[0].children())
        self.encoder = nn.Sequential(*stages[: _starts(stages)[first]])
        convolutions = [[layer for layer in c.children() if isinstance(layer, nn.Conv2d)] for c in columns]
        # The columns lie side by side as groups of channels: [column * filter, ...].
        self.convolutions = nn.ParameterList(
            torch.cat([column[layer].weight.detach() for column in convolutions]) for layer in range(first, convs)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(len(weight)) for weight in self.convolutions)
        self._pooled = _pooled_layers(stages)[first:]
        height, width, channels = suite.image_shape
        encoded = output_shape(columns[0], (channels, height, width))
        assert encoded is not None
        widths = [encoded[0], *[hidden] * (depth - 1), suite.max_classes]
        linear = [make_blocks(partial(nn.Linear, a, b), n, same_start) for a, b in pairwise(widths)]
        self.weights, self.biases = (
            nn.ParameterList(torch.stack([column.get_parameter(name).detach() for column in layer]) for layer in linear)
            for name in ("weight", "bias")
        )
        stitch = torch.eye(n) if n == 1 else torch.full((n, n), off_diagonal / (n - 1)).fill_diagonal_(1 - off_diagonal)
        self.stitches = nn.ParameterList(stitch.clone() for _ in range(convs - first + depth - 1))

    def task_logits(
        self, x: Float[Tensor, "image channel height width"], shape: tuple[int, int, int]
    ) -> Float[Tensor, "episode task instance class_"]:
        """Sends every image through all columns; the last layer is that of the image's own task."""
        n, stitches = self._n_columns, iter(self.stitches)
        x = self.encoder(x)
        for layer, (weight, norm) in enumerate(zip(self.convolutions, self.norms, strict=True)):
            x = norm(functional.conv2d(x, weight, padding=1, groups=1 if layer == 0 else n))
            if self._pooled[layer]:
                x = functional.max_pool2d(x, 2)
            columns = functional.relu(x).reshape(len(x), n, -1)
            x = (next(stitches) @ columns).view(x.shape)
        columns = x.reshape(len(x), n if self.convolutions else 1, -1).transpose(0, 1)  # [column, image, feature]
        columns = columns.expand(n, -1, -1)
        *inner, (last_weight, last_bias) = zip(self.weights, self.biases, strict=True)
        for weight, bias in inner:
            columns = functional.relu(torch.baddbmm(bias[:, None], columns, weight.mT))
            columns = (next(stitches) @ columns.flatten(1)).view(columns.shape)
        # [column, E, T, B, feature] -> each image in its own task's column: [T, E, B, feature]
        own = columns.view(n, *shape, -1).diagonal(dim1=0, dim2=2).movedim(-1, 0)
        out = torch.baddbmm(last_bias[:, None], own.flatten(1, 2), last_weight.mT)
        return out.view(shape[1], shape[0], shape[2], -1).transpose(0, 1)


def cross_stitch(suite: TaskSuite, *, off_diagonal: float = 0.1, **layers: Any) -> CrossStitch:
    """Columns of all layers, whichever of them others route."""
    return cross_stitch_fc(suite, off_diagonal=off_diagonal, **{**layers, "routed_convs": layers.get("convs", 4)})


def cross_stitch_fc(suite: TaskSuite, *, off_diagonal: float = 0.1, **layers: Any) -> CrossStitch:
    """Columns of the layers that others route; the encoder is shared."""
    # There is a column per task, and what is mixed is what each single layer gives.
    columns = {name: value for name, value in layers.items() if name not in ("blocks", "joint_convs")}
    return CrossStitch(suite, off_diagonal=off_diagonal, **columns)


def _starts(encoder: Sequence[nn.Module]) -> list[int]:
    """Where each convolution of the encoder stands, and the end."""
    return [*(place for place, layer in enumerate(encoder) if isinstance(layer, nn.Conv2d)), len(encoder) - 1]


def _pooled_layers(encoder: Sequence[nn.Module]) -> list[bool]:
    """Whether each convolution of the encoder is followed by a pool."""
    pooled: list[bool] = []
    for layer in encoder:
        if isinstance(layer, nn.Conv2d):
            pooled.append(False)
        elif isinstance(layer, nn.MaxPool2d):
            pooled[-1] = True
    return pooled
