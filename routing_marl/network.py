"""Routed networks: an encoder, then layers whose blocks are picked by routes (paper, section 3, Algorithm 1).

The router stands outside: ``network(images, routes)`` is a pure function of its inputs and weights.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn

from routing_marl.architecture import layered_parts, output_shape, recursive_parts
from routing_marl.config import require
from routing_marl.errors import UserError
from routing_marl.layers import OwnBlocks, routed_layer
from routing_marl.suites import TaskSuite

Images = UInt8[Tensor, "episode task instance height width channel"]
Routes = Int[Tensor, "depth episode task"]
Representation = Float[Tensor, "episode task instance *features"]
MakeNetwork = Callable[[TaskSuite], "Network"]


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
    _scale: Float[Tensor, "height width channel"]
    _shift: Float[Tensor, "height width channel"]
    _class_penalty: Float[Tensor, "task class_"] | None

    def __init__(self, suite: TaskSuite) -> None:
        super().__init__()
        # Of each value of an image: repeated for each pixel, three channels would make for very short loops.
        self.register_buffer("_scale", (1 / (255 * suite.std)).repeat(*suite.image_shape[:2], 1), persistent=False)
        self.register_buffer("_shift", (-suite.mean / suite.std).repeat(*suite.image_shape[:2], 1), persistent=False)
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

    def auxiliary_loss(self) -> Float[Tensor, ""] | None:
        """What the last forward pass adds to the mean loss; None for nothing."""
        return None

    def own_rates(self) -> dict[nn.Parameter, float]:
        """Parameters whose learning rate is not that of the blocks, and their rates."""
        return {}

    def gate_usage(self) -> Float[Tensor, "depth task share"] | None:
        """The share of each block in the last forward pass, where gates of the network's own decide; last of none."""
        return None

    def dropped(self) -> Float[Tensor, ""] | None:
        """The share of the last forward pass's instances that no block had room for; None without capacities."""
        return None

    def forward(self, images: Images, routes: Routes) -> Float[Tensor, "episode task instance class_"]:
        """Algorithm 1: encodes the images and applies the routes, depth by depth."""
        v = self.encode(images)
        for depth, action in enumerate(routes):
            v = self.route(depth, v, action)
        return self.logits(v)

    def _normalised(self, images: Images) -> Float[Tensor, "image channel height width"]:
        x = images.flatten(0, 2).to(self._scale.dtype) * self._scale + self._shift
        return x.permute(0, 3, 1, 2)  # a channels-last tensor, without a copy

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
        towers: layers after the routed ones, each of a block per task that nobody chooses.
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
        towers: Sequence[Sequence[nn.Module]] = (),
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
        encoded = output_shape(encoder, (channels, height, width))
        if encoded is None:
            raise UserError(f"the encoder does not take images of shape {[channels, height, width]}")
        self.shapes = [encoded]
        legal = torch.zeros(self.n_depths, widest + 1 + allow_stop, dtype=torch.bool)
        for depth in range(self.n_depths):
            shape = self.shapes[-1]
            outputs = [output_shape(block, shape) for block in layers[self._layer(depth)]]
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
        self.towers = nn.Sequential(*map(OwnBlocks, towers))
        out: tuple[int, ...] | None = self.shapes[-1]
        for module in (*(blocks[0] for blocks in towers), self.readout):
            out = out and output_shape(module, out)
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
        v = self.towers(v)
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
    convs: int = 4,
    filters: int = 32,
    routed_convs: int = 0,
    joint_convs: bool = False,
    own_fc: bool = False,
    same_start: bool = False,
) -> RoutedNetwork:
    """The paper's routing-all-fc: SimpleConvNet and ``depth`` routed fully connected layers.

    Args:
        suite: the tasks that the network is for.
        blocks: blocks per routed layer, one number for all or one each (convolutions first); None: one per task.
        hidden: width of all fully connected layers but the last, which ends in the classes.
        recursive: all depths share one set of blocks of width ``hidden``, between a shared linear layer from the
            encoder and one to the classes.
        depth: number of routed fully connected layers (routing steps where recursive).
        allow_pass: whether PASS is legal where it fits.
        allow_stop: whether there is a STOP action (recursive only).
        convs: convolutional layers of SimpleConvNet.
        filters: filters of each.
        routed_convs: how many of them, the last ones, are routed too. All: this is *routing-all*.
        joint_convs: those are one layer, whose blocks are all of them one after the other.
        own_fc: only the convolutions are routed; the fully connected layers are each task's own.
        same_start: the blocks of a layer start as copies of each other, so that early routes make no difference.
    """
    if recursive:
        require(not routed_convs, "routed-convs", routed_convs, "a recursive network can't have any")
        require(not own_fc, "own-fc", own_fc, "a recursive network can't have any")
        encoder, shared, readout = recursive_parts(
            suite,
            blocks=blocks,
            hidden=hidden,
            depth=depth,
            convs=convs,
            filters=filters,
            same_start=same_start,
        )
        return RoutedNetwork(
            suite,
            encoder,
            [shared],
            n_depths=depth,
            readout=readout,
            allow_pass=allow_pass,
            allow_stop=allow_stop,
        )
    encoder, layers = layered_parts(
        suite,
        blocks=blocks,
        hidden=hidden,
        depth=depth,
        convs=convs,
        filters=filters,
        routed_convs=routed_convs,
        joint_convs=joint_convs,
        same_start=same_start,
    )
    n_routed = len(layers) - depth if own_fc else len(layers)
    return RoutedNetwork(
        suite, encoder, layers[:n_routed], towers=layers[n_routed:], allow_pass=allow_pass, allow_stop=allow_stop
    )
