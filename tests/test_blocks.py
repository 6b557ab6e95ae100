import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from routing_marl.blocks import LoopedBlocks, SharedBlock, StackedBlocks, _tiles
from routing_marl.errors import UserError
from routing_marl.layers import routed_layer

pytestmark = pytest.mark.usefixtures("path")


class Gated(nn.Module):
    """Takes vmap: parameters of its own, two of which have one and the same gradient, and a submodule."""

    def __init__(self, width, power=2):
        super().__init__()
        self.power = power
        self.scale = nn.Parameter(torch.randn(width))
        self.shift = nn.Parameter(torch.randn(width))
        self.other_shift = nn.Parameter(torch.randn(width))
        self.inner = nn.Linear(width, width)
        self.inner_weight = nn.Parameter(torch.randn(width, width))

    def forward(self, x):
        mixed = x + torch.tanh(self.inner(x)) ** self.power * self.scale + x @ self.inner_weight
        return mixed + self.shift + self.other_shift


class TwoLinears(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.hidden, self.out = nn.Linear(width, 9), nn.Linear(9, width, bias=False)

    def forward(self, x):
        return self.out(self.hidden(x).relu())


KINDS = {
    "linear": lambda: nn.Linear(5, 5),
    "no bias": lambda: nn.Linear(5, 5, bias=False),
    "linear relu": lambda: nn.Sequential(nn.Linear(5, 5), nn.ReLU()),
    "chain": lambda: nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 5, bias=False), nn.LeakyReLU(0.3)),
    "identity": nn.Identity,
    "layer norm": lambda: nn.Sequential(nn.LayerNorm(5), nn.Linear(5, 5)),
    "custom": lambda: TwoLinears(5),
    "gated": lambda: Gated(5),
}


def blocks_of(kind, n, seed=0):
    torch.manual_seed(seed)
    return [KINDS[kind]() for _ in range(n)]


def loop(modules, x, block):
    """The definition: one call per decision, none for those that take no block."""
    rows = zip(x, block.tolist(), strict=True)
    return torch.stack([modules[b](row) if b < len(modules) else row for row, b in rows])


def gradients(layer, modules, name):
    """The gradient of one parameter of every block, ``[N, ...]``, zero where there is none."""
    if isinstance(layer, StackedBlocks):
        slot = dict(zip([n for n, _ in modules[0].named_parameters()], layer.parameters(), strict=True))[name]
        assert slot.grad.is_sparse
        dense = slot.grad.to_dense()
        assert dense[len(modules)].count_nonzero() == 0
        return dense[: len(modules)]
    own = [layer.block] if isinstance(layer, SharedBlock) else layer.blocks
    return stacked_gradients(own, name)


def stacked_gradients(modules, name):
    parameters = [module.get_parameter(name) for module in modules]
    return torch.stack([torch.zeros_like(p) if p.grad is None else p.grad for p in parameters])


def check_equals_loop(layer, modules, x, block, tolerance=1e-5):
    """Same outputs, same gradients of the inputs and of every parameter of every block."""
    modules = copy.deepcopy(modules)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    out, wanted = layer(ours, block), loop(modules, theirs, block)
    torch.testing.assert_close(out, wanted, atol=tolerance, rtol=tolerance)
    upstream = torch.randn_like(wanted)
    out.backward(upstream)
    wanted.backward(upstream)
    torch.testing.assert_close(ours.grad, theirs.grad, atol=tolerance, rtol=tolerance)
    for name, _ in modules[0].named_parameters():
        torch.testing.assert_close(
            gradients(layer, modules, name), stacked_gradients(modules, name), atol=tolerance, rtol=tolerance
        )


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(sorted(KINDS)),
    st.integers(1, 7),
    st.lists(st.integers(0, 99), min_size=1, max_size=40),
    st.integers(1, 4),
    st.booleans(),
    st.integers(0, 99),
)
def test_stacked_blocks_equal_a_loop(kind, n, choices, instances, idle, seed):
    modules = blocks_of(kind, n, seed)
    block = torch.tensor(choices) % (n + 1 if idle else n)
    x = torch.randn(len(block), instances, 5)
    check_equals_loop(StackedBlocks(modules, idle=idle), modules, x, block)


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from(sorted(KINDS)),
    st.integers(1, 7),
    st.lists(st.integers(0, 99), min_size=1, max_size=40),
    st.integers(1, 4),
)
def test_looped_blocks_equal_a_loop(kind, n, choices, instances):
    modules = blocks_of(kind, n)
    block = torch.tensor(choices) % (n + 1)
    check_equals_loop(LoopedBlocks(modules), modules, torch.randn(len(block), instances, 5), block)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("instances", [1, 3])
def test_a_shared_block_equals_a_loop(kind, instances):
    modules = blocks_of(kind, 1)
    layer = routed_layer(copy.deepcopy(modules), idle=False)
    assert isinstance(layer, SharedBlock) and layer.n_blocks == 1
    check_equals_loop(layer, modules, torch.randn(6, instances, 5), torch.zeros(6, dtype=torch.long))


@pytest.mark.parametrize("instances", [1, 3])
@pytest.mark.parametrize("decisions", [3, 30])
@pytest.mark.parametrize("make", [StackedBlocks, lambda blocks, idle: LoopedBlocks(blocks)])
@pytest.mark.parametrize(
    "parts", [(nn.Conv2d, 3, 3, 3, 1, 1), (nn.Conv2d, 3, 3, 3, 1, 1, 1, 3)], ids=["conv", "depthwise"]
)
def test_convolutions_equal_a_loop(parts, make, decisions, instances):
    torch.manual_seed(0)
    kind, *arguments = parts
    modules = [nn.Sequential(kind(*arguments), nn.ReLU(), kind(*arguments)) for _ in range(4)]
    layer = make(copy.deepcopy(modules), idle=True)
    assert (decisions > 2 * (len(modules) + 1)) == (decisions == 30)  # fetched one by one, or sorted into tiles
    block = torch.randint(0, 5, (decisions,))
    check_equals_loop(layer, modules, torch.randn(decisions, instances, 3, 6, 5), block)


@pytest.mark.parametrize("decisions", [3, 40])
@pytest.mark.parametrize("kind", ["linear", "no bias", "layer norm"])
def test_blocks_may_change_the_shape_and_inputs_may_have_more_axes(kind, decisions):
    torch.manual_seed(0)
    modules = [
        {
            "linear": lambda: nn.Linear(5, 2),
            "no bias": lambda: nn.Sequential(nn.Linear(5, 8, bias=False), nn.ReLU(), nn.Linear(8, 2)),
            "layer norm": lambda: nn.Sequential(nn.LayerNorm(5), nn.Linear(5, 2)),
        }[kind]()
        for _ in range(3)
    ]
    block = torch.randint(0, 3, (decisions,))
    for shape in ((decisions, 2, 5), (decisions, 2, 4, 5), (decisions, 1, 3, 2, 5)):
        x = torch.randn(shape)
        check_equals_loop(StackedBlocks(modules, idle=False), modules, x, block)
        assert StackedBlocks(modules, idle=False)(x, block).shape == (*shape[:-1], 2)
        check_equals_loop(LoopedBlocks(copy.deepcopy(modules)), modules, x, block)


@pytest.mark.parametrize("make", [StackedBlocks, lambda blocks, idle: LoopedBlocks(blocks)])
@pytest.mark.parametrize("decisions", [2, 50])
@pytest.mark.parametrize("above", [0, 5])
def test_decisions_that_are_all_idle_come_back_to_the_bit(make, decisions, above):
    layer = make(blocks_of("linear relu", 4), idle=True)
    x = torch.randn(decisions, 2, 5, requires_grad=True)
    out = layer(x, torch.full((decisions,), 4 + above))
    assert torch.equal(out, x)
    out.sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))


@settings(deadline=None, max_examples=80)
@given(st.integers(1, 9), st.lists(st.integers(0, 99), min_size=1, max_size=80))
def test_tiles_hold_one_block_each_and_every_decision_once(n, choices):
    block = torch.tensor(choices) % (n + 1)
    tile_block, source, position = _tiles(block, n)
    size = len(source) // len(tile_block)
    assert len(tile_block) <= 2 * (n + 1)
    assert len(source) == size * len(tile_block)
    assert torch.equal(source[position], torch.arange(len(choices)))
    assert torch.equal(tile_block[position // size], block)


def test_only_the_rows_taken_have_gradients_and_the_cost_does_not_grow_with_n():
    layer = StackedBlocks(blocks_of("linear", 50), idle=True)
    block = torch.tensor([7, 50, 7, 31])
    layer(torch.randn(4, 2, 5), block).sum().backward()
    for parameter in layer.parameters():
        assert set(parameter.grad._indices().unique().tolist()) - {50} == {7, 31}  # 50: scratch
        assert len(parameter.grad._values()) <= 4


def test_what_is_homogeneous_is_stacked_and_the_rest_is_looped():
    assert isinstance(routed_layer(blocks_of("gated", 3), idle=False), StackedBlocks)
    assert isinstance(routed_layer(blocks_of("linear", 1), idle=True), StackedBlocks)
    assert isinstance(routed_layer(blocks_of("linear", 1), idle=False), SharedBlock)
    mixed = [nn.Linear(5, 5), nn.Sequential(nn.Linear(5, 5), nn.ReLU()), TwoLinears(5)]
    layer = routed_layer(mixed, idle=True)
    assert isinstance(layer, LoopedBlocks)
    assert [type(block) for block in layer.blocks] == [nn.Linear, nn.Sequential, TwoLinears]


FROZEN = nn.Linear(5, 5).requires_grad_(False)
SHARED = nn.Linear(5, 5)


@pytest.mark.parametrize(
    "blocks",
    [
        [nn.LeakyReLU(0.1), nn.LeakyReLU(0.2)],
        [nn.Dropout(0.1), nn.Dropout(0.2)],
        [nn.LayerNorm(5), nn.LayerNorm(5, eps=0.1)],
        [Gated(5), Gated(5, power=3)],
        [nn.Linear(5, 5), nn.Linear(5, 5, bias=False)],
        [nn.Linear(5, 5), nn.Linear(5, 5).double()],
        [nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect")],
        [nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=2, dilation=2)],
        [nn.Sequential(nn.Linear(5, 5), nn.ReLU()), nn.Sequential(nn.Linear(5, 5), nn.Tanh())],
        [nn.BatchNorm1d(5), nn.BatchNorm1d(5)],
        [nn.Linear(5, 5), FROZEN],
        [copy.deepcopy(FROZEN), FROZEN],
        [SHARED, SHARED],
        [nn.Sequential(SHARED, nn.ReLU()), nn.Sequential(SHARED, nn.ReLU())],
    ],
    ids=str,
)
def test_blocks_that_differ_in_more_than_values_are_not_stacked(blocks):
    assert isinstance(routed_layer(blocks, idle=False), LoopedBlocks)
    assert isinstance(routed_layer([blocks[1], blocks[0]], idle=True), LoopedBlocks)


def test_a_single_block_with_buffers_is_looped_where_decisions_may_be_idle():
    layer = routed_layer([nn.BatchNorm1d(5)], idle=True)
    assert isinstance(layer, LoopedBlocks)
    x = torch.randn(6, 2, 5)
    out = layer(x, torch.tensor([0, 1, 0, 1, 1, 0]))
    assert torch.equal(out[[1, 3, 4]], x[[1, 3, 4]])
    assert layer.blocks[0].running_mean.count_nonzero() == 5


@pytest.mark.parametrize("decisions", [4, 40])
def test_training_and_evaluation_mode_reach_the_blocks(decisions):
    torch.manual_seed(0)
    modules = [nn.Sequential(nn.Linear(5, 5), nn.Dropout(0.5)) for _ in range(3)]
    parent = nn.Sequential(routed_layer(modules, idle=False))
    layer = parent[0]
    assert isinstance(layer, StackedBlocks)
    x, block = torch.randn(decisions, 20, 5), torch.arange(decisions) % 3
    without = loop([module[0] for module in modules], x, block)
    parent.eval()
    torch.testing.assert_close(layer(x, block), without)
    parent.train()
    out = layer(x, block)
    dropped = out == 0
    assert 0.3 < dropped.float().mean() < 0.7
    assert not torch.equal(dropped[0], dropped[3])  # decisions drop independently
    torch.testing.assert_close(out[~dropped], 2 * without[~dropped])


def test_a_layer_without_blocks_is_refused():
    with pytest.raises(UserError, match="0 blocks; it needs at least 1"):
        routed_layer([], idle=True)


def test_block_parameters_are_views_under_the_blocks_own_names():
    modules = blocks_of("gated", 3)
    layer = StackedBlocks(modules, idle=False)
    for index, module in enumerate(modules):
        views = layer.block_parameters(index)
        assert list(views) == [name for name, _ in module.named_parameters()]
        assert all(torch.equal(views[name], p) for name, p in module.named_parameters())
    x = torch.randn(3, 2, 5)
    before = layer(x, torch.arange(3))
    with torch.no_grad():
        for view in layer.block_parameters(1).values():
            view.mul_(2)
        for parameter in modules[1].parameters():
            parameter.mul_(2)
    after = layer(x, torch.arange(3))
    assert torch.equal(before[[0, 2]], after[[0, 2]])
    torch.testing.assert_close(after, loop(modules, x, torch.arange(3)))
    for wrong in (-1, 3):
        with pytest.raises(UserError, match="blocks 0 to 2"):
            layer.block_parameters(wrong)


def test_stacking_copies_the_blocks_and_deepcopy_copies_the_stack():
    modules = blocks_of("linear relu", 3)
    layer = StackedBlocks(modules, idle=True)
    twin = copy.deepcopy(layer)
    x, block = torch.randn(4, 2, 5), torch.tensor([0, 1, 2, 3])
    before = twin(x, block)
    with torch.no_grad():
        for parameter in (*layer.parameters(), *modules[0].parameters()):
            parameter.zero_()
    assert torch.equal(twin(x, block), before)
    assert not torch.equal(layer(x, block), before)


class Direction(nn.Module):
    """A block that is singular at zero."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3, bias=False)

    def forward(self, x):
        y = self.linear(x)
        return y / y.norm(dim=-1, keepdim=True)


@pytest.mark.parametrize("decisions", [4, 40])
def test_padding_and_idle_decisions_bring_no_nan(decisions):
    layer = routed_layer([Direction() for _ in range(3)], idle=True)
    x = torch.randn(decisions, 2, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    layer(x, torch.arange(decisions) % 5).sum().backward()
    assert x.grad.isfinite().all()
    assert all(p.grad._values().isfinite().all() for p in layer.parameters())
