"""The layers of the paper's networks: SimpleConvNet, and the interchangeable blocks of each routed layer."""

import copy
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from routing_marl.config import conv_layers
from routing_marl.errors import UserError
from routing_marl.suites import TaskSuite

MakeLayers = Callable[[], list[nn.Module]]


class SimpleConvNet(nn.Sequential):
    """The paper's encoder: four times 3x3 convolution, 32 filters, batch norm, ReLU, 2x2 max pool; flattened.

    Maps ``[batch, channel, height, width]`` to ``[batch, features]``. An image too small for a further pool keeps
    its size there (8x8 is pooled three times). The pool comes before the ReLU: they commute, and a quarter of the
    activations is left to the ReLU (the step at batch 200 runs at 6,600 instead of 3,900 instances/s in fp32).

    Convolutions start as He et al. (2015, arXiv 1502.01852) say, for layers followed by ReLU; torch's own smaller
    start costs two points of accuracy after the first epoch on CIFAR-100.
    """

    def __init__(self, image_shape: tuple[int, int, int], n_filters: int = 32, n_layers: int = 4) -> None:
        stages, _ = _stages(image_shape, n_filters, n_layers)
        super().__init__(*(module for make in stages for module in make()), nn.Flatten())
        self.to(memory_format=torch.channels_last)


def layered_parts(
    suite: TaskSuite,
    *,
    blocks: int | Sequence[int] | None = None,
    hidden: int = 128,
    depth: int = 3,
    convs: int = 4,
    filters: int = 32,
    routed_convs: int = 0,
    joint_convs: bool = False,
    same_start: bool = False,
) -> tuple[nn.Module, list[list[nn.Module]]]:
    """An encoder, and the blocks of each routed layer: convolutional ones first, then ``depth`` fully connected ones.

    The arguments are those of :func:`routing_marl.network.routing_all_fc`.
    """
    _check(depth, hidden, convs, filters)
    if not 0 <= routed_convs <= convs:
        raise UserError(f"routed-convs is {routed_convs}; it must lie between 0 and convs ({convs})")
    n_conv_layers = conv_layers(routed_convs, joint_convs)
    counts = _counts(suite, blocks, n_conv_layers + depth)
    stages, features = _stages(suite.image_shape, filters, convs)
    encoder = nn.Sequential(*(module for make in stages[: convs - routed_convs] for module in make()))
    layers: list[list[nn.Module]] = []
    routed = [partial(_sequence, make) for make in stages[convs - routed_convs :]]
    if routed:
        routed[-1] = partial(_sequence, stages[-1], flat=True)
    if routed and joint_convs:
        layers.append(make_blocks(lambda: nn.Sequential(*(make() for make in routed)), counts[0], same_start))
    else:
        layers += [make_blocks(make, n, same_start) for make, n in zip(routed, counts, strict=False)]
    if not routed_convs:
        encoder.append(nn.Flatten())
    for module in (encoder, *(block for layer in layers for block in layer)):
        module.to(memory_format=torch.channels_last)

    widths = [features, *[hidden] * (depth - 1)]
    for width, n in zip(widths[:-1], counts[n_conv_layers:-1], strict=True):
        layers.append(make_blocks(partial(_hidden, width, hidden), n, same_start))
    layers.append(make_blocks(partial(nn.Linear, widths[-1], suite.max_classes), counts[-1], same_start))
    return encoder, layers


def recursive_parts(
    suite: TaskSuite,
    *,
    blocks: int | Sequence[int] | None,
    hidden: int,
    depth: int,
    convs: int,
    filters: int,
    same_start: bool,
) -> tuple[nn.Module, list[nn.Module], nn.Module]:
    """An encoder, the blocks that all depths share, and the readout of a recursive network."""
    _check(depth, hidden, convs, filters)
    (count,) = _counts(suite, blocks, 1)
    _, features = _stages(suite.image_shape, filters, convs)
    encoder = nn.Sequential(SimpleConvNet(suite.image_shape, filters, convs), _hidden(features, hidden))
    shared = make_blocks(partial(_hidden, hidden, hidden), count, same_start)
    return encoder, shared, nn.Linear(hidden, suite.max_classes)


def output_shape(module: nn.Module, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """What the module makes of a representation of this shape; None where it doesn't take it."""
    training = module.training
    example = next((p for p in module.parameters()), torch.zeros(()))
    try:
        with torch.no_grad():
            # Two instances: a module that mixes up batch and features would pass with one.
            out = module.eval()(torch.zeros(2, *shape, dtype=example.dtype, device=example.device))
    except (RuntimeError, ValueError, IndexError, TypeError):
        return None
    finally:
        module.train(training)
    return tuple(out.shape[1:]) if isinstance(out, Tensor) and out.shape[:1] == (2,) else None


def make_blocks(make: Callable[[], nn.Module], n: int, same_start: bool) -> list[nn.Module]:
    """N blocks, which start as copies of each other where that is wanted."""
    if not same_start:
        return [make() for _ in range(n)]
    first = make()
    return [copy.deepcopy(first) for _ in range(n)]


def _stages(image_shape: tuple[int, int, int], n_filters: int, n_layers: int) -> tuple[list[MakeLayers], int]:
    """What makes the modules of each convolutional layer; and the number of features after the last."""
    height, width, channels = image_shape
    stages: list[MakeLayers] = []
    for _ in range(n_layers):
        pool = min(height, width) >= 2
        stages.append(partial(_convolution, channels, n_filters, pool))
        channels = n_filters
        if pool:
            height, width = height // 2, width // 2
    return stages, channels * height * width


def _convolution(n_in: int, n_out: int, pool: bool) -> list[nn.Module]:
    convolution = nn.Conv2d(n_in, n_out, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
    return [convolution, nn.BatchNorm2d(n_out), *([nn.MaxPool2d(2)] if pool else []), nn.ReLU()]


def _sequence(make: MakeLayers, flat: bool = False) -> nn.Module:
    return nn.Sequential(*make(), *[nn.Flatten()] * flat)


def _hidden(n_in: int, n_out: int) -> nn.Module:
    return nn.Sequential(nn.Linear(n_in, n_out), nn.ReLU())


def _check(depth: int, hidden: int, convs: int, filters: int) -> None:
    if depth < 1 or hidden < 1:
        raise UserError(f"depth is {depth} and hidden {hidden}; both must be at least 1")
    if convs < 1 or filters < 1:
        raise UserError(f"convs is {convs} and filters {filters}; both must be at least 1")


def _counts(suite: TaskSuite, blocks: int | Sequence[int] | None, n_layers: int) -> list[int]:
    """Blocks of each layer, checked."""
    blocks = suite.n_tasks if blocks is None else blocks
    counts = [blocks] * n_layers if isinstance(blocks, int) else list(blocks)
    if len(counts) != n_layers or min(counts) < 1:
        raise UserError(f"blocks is {blocks}; give one number of at least 1, or {n_layers} of them, one per layer")
    return counts
