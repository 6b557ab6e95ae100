"""Routed convolutional blocks against ordinary modules, each called once with all instances that took it."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_network import legal_sets, random_images, tiny_suite
from torch import nn

from routing_marl.agents import FixedRoutes
from routing_marl.assembly import make_game
from routing_marl.baselines import static
from routing_marl.blocks import LoopedBlocks, SharedBlock, StackedBlocks
from routing_marl.config import EngineConfig, NetworkConfig, RunConfig
from routing_marl.convolution import ConvolutionalBlocks
from routing_marl.engine import RoutingEngine
from routing_marl.errors import UserError
from routing_marl.layers import routed_layer
from routing_marl.network import routing_all_fc
from routing_marl.synchronisation import synchronisations
from routing_marl.training import play_episode

pytestmark = pytest.mark.usefixtures("path")

KINDS = {
    "paper": lambda: [nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.MaxPool2d(2), nn.ReLU()],
    "flat": lambda: [nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()],
    "same shape": lambda: [nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3, eps=1e-3, momentum=0.3), nn.ReLU()],
    "strided": lambda: [nn.Conv2d(3, 2, (3, 2), stride=2, dilation=(1, 2)), nn.BatchNorm2d(2), nn.GELU()],
}


def blocks_of(kind, n, seed=0):
    torch.manual_seed(seed)
    blocks = [nn.Sequential(*KINDS[kind]()) for _ in range(n)]
    for block in blocks:
        for tensor in (block[1].weight, block[1].bias, block[1].running_mean, block[1].running_var):
            tensor.data.uniform_(0.5, 1.5)
    return blocks


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from(sorted(KINDS)),
    st.integers(1, 5),
    st.lists(st.integers(0, 99), min_size=1, max_size=12),
    st.integers(2, 4),
    st.booleans(),
    st.booleans(),
    st.integers(0, 99),
)
def test_convolutional_blocks_equal_a_module_each(kind, n, choices, instances, training, idle, seed):
    blocks = blocks_of(kind, n, seed)
    idle = idle and kind == "same shape"
    block = torch.tensor(choices) % (n + idle)
    wanted, layer = LoopedBlocks(copy.deepcopy(blocks)), ConvolutionalBlocks(blocks, idle=idle)
    wanted.train(training), layer.train(training)
    x = torch.randn(len(block), instances, 3, 6, 5)
    if seed % 2:  # both memory layouts come along
        x = x.flatten(0, 1).contiguous(memory_format=torch.channels_last).view(x.shape)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    a, b = layer(ours, block), wanted(theirs, block)
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    upstream = torch.randn_like(b)
    a.backward(upstream), b.backward(upstream)
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-4, rtol=1e-4)
    for name, parameter in layer.named_parameters():
        assert parameter.grad.is_sparse and parameter.is_contiguous()
        dense = parameter.grad.to_dense()
        assert dense[n].count_nonzero() == 0
        for index, module in enumerate(wanted.blocks):
            own = module.get_parameter(name.replace("/", "."))
            grad = torch.zeros_like(own) if own.grad is None else own.grad
            torch.testing.assert_close(dense[index], grad, atol=1e-3, rtol=1e-4)
    for index, module in enumerate(wanted.blocks):
        for name in ("running_mean", "running_var"):
            torch.testing.assert_close(getattr(layer, name)[index], getattr(module[1], name))


def test_blocks_that_nobody_took_keep_their_statistics_to_the_bit():
    layer = ConvolutionalBlocks(blocks_of("paper", 4), idle=False)
    before = copy.deepcopy(layer.state_dict())
    layer(torch.randn(3, 2, 3, 6, 6), torch.tensor([2, 0, 2]))
    for name in ("running_mean", "running_var"):
        changed = (getattr(layer, name) != before[name]).any(1)
        assert changed.tolist() == [True, False, True, False, False]


def test_a_single_value_per_channel_gives_the_bias():
    (block,) = blocks_of("same shape", 1)
    layer = ConvolutionalBlocks([block], idle=True)
    x = torch.randn(1, 1, 3, 1, 1, requires_grad=True)
    out = layer(x, torch.tensor([0]))
    torch.testing.assert_close(out.flatten(), block[1].bias.relu())
    out.sum().backward()
    assert x.grad.isfinite().all() and layer.running_var.isfinite().all()


def test_what_is_convolutional_is_stacked_and_the_rest_is_looped():
    for kind in KINDS:
        assert isinstance(routed_layer(blocks_of(kind, 3), idle=False), ConvolutionalBlocks)
    assert isinstance(routed_layer(blocks_of("paper", 1), idle=False), SharedBlock)
    conv, norm = nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)
    for parts in (
        [conv, nn.BatchNorm2d(3, momentum=None)],
        [conv, nn.BatchNorm2d(3, affine=False)],
        [conv, nn.BatchNorm2d(3, track_running_stats=False), nn.BatchNorm2d(3)],
        [nn.Conv2d(3, 3, 3, groups=3), norm],
        [nn.Conv2d(3, 3, 3, padding_mode="reflect"), norm],
        [conv, nn.ReLU(), norm],
        [conv, norm, nn.Flatten(), nn.ReLU()],
        [conv, norm, nn.Flatten(2)],
        [conv, norm, nn.AdaptiveAvgPool2d(1)],
        [norm],
    ):
        layer = routed_layer([copy.deepcopy(nn.Sequential(*parts)) for _ in range(2)], idle=False)
        assert isinstance(layer, LoopedBlocks), parts
    different = [nn.Sequential(copy.deepcopy(conv), nn.BatchNorm2d(3, eps=eps)) for eps in (1e-5, 1e-3)]
    assert isinstance(routed_layer(different, idle=False), LoopedBlocks)


# -- the network -----------------------------------------------------------------------------------------------------


def test_routing_all_has_the_papers_layers():
    suite = tiny_suite(shape=(16, 16, 3))
    network = routing_all_fc(suite, routed_convs=4, hidden=9)
    assert network.shapes == [(3, 16, 16), (32, 8, 8), (32, 4, 4), (32, 2, 2), (32,), (9,), (9,), (4,)]
    assert [type(layer) for layer in network.layers] == [ConvolutionalBlocks] * 4 + [StackedBlocks] * 3
    assert legal_sets(network) == [{0, 1, 2}] * 5 + [{0, 1, 2, 3}, {0, 1, 2}]
    network = routing_all_fc(suite, routed_convs=1, blocks=[2, 1, 2, 3])
    assert network.shapes == [(32, 2, 2), (32,), (128,), (128,), (4,)]
    assert [layer.n_blocks for layer in network.layers] == [2, 1, 2, 3]


def test_the_published_gumbel_matrix_layers_are_a_configuration():
    suite = tiny_suite(shape=(105, 105, 1), n=8)
    network = routing_all_fc(suite, blocks=7, convs=8, filters=48, routed_convs=8, depth=1)
    assert [layer.n_blocks for layer in network.layers] == [7] * 9
    assert network.shapes[:8] == [(1, 105, 105), *((48, n, n) for n in (52, 26, 13, 6, 3, 1, 1))]
    out = network(random_images(suite, 1, 1), torch.zeros(9, 1, 3, dtype=torch.long))
    assert out.shape == (1, 3, 1, 4)


def test_no_convolutions_are_no_joint_ones_either():
    assert len(routing_all_fc(tiny_suite(), joint_convs=True, depth=2).layers) == 2


@pytest.mark.parametrize("option", [{"own_fc": True}, {"routed_convs": 1}])
def test_a_recursive_network_has_no_routed_convolutions(option):
    with pytest.raises(UserError, match=f"{next(iter(option)).replace('_', '-')} is .*; a recursive network"):
        routing_all_fc(tiny_suite(), recursive=True, **option)


@pytest.mark.parametrize("routed_convs", [2, 4])
@pytest.mark.parametrize("training", [True, False])
def test_joint_convolutions_are_the_same_route_through_single_ones(routed_convs, training):
    torch.manual_seed(0)
    suite = tiny_suite(shape=(16, 16, 3))
    settings = {"blocks": 3, "routed_convs": routed_convs, "hidden": 7, "depth": 2}
    joint = routing_all_fc(suite, joint_convs=True, **settings).train(training)
    single = routing_all_fc(suite, **settings).train(training)
    assert len(joint.layers) == 3 and joint.layers[0].n_blocks == 3
    renamed = {}
    for name, value in joint.state_dict().items():
        layers, number, *rest = name.split(".")
        if layers == "layers":
            if number == "0":
                assert rest.pop(0) == "parts"
                number = rest.pop(0)
            else:
                number = str(int(number) + routed_convs - 1)
        renamed[".".join([layers, number, *rest])] = value
    single.load_state_dict(renamed)
    images = random_images(suite, 5, 2)
    routes = torch.randint(3, (3, 5, suite.n_tasks))
    ours, theirs = (
        joint(images, routes),
        single(images, torch.cat([routes[:1].expand(routed_convs, -1, -1), routes[1:]])),
    )
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("routed_convs", [1, 2, 4])
def test_all_shared_convolutions_equal_the_encoder(routed_convs):
    torch.manual_seed(0)
    suite = tiny_suite()
    routed = routing_all_fc(suite, blocks=3, routed_convs=routed_convs, hidden=7)
    plain = routing_all_fc(suite, blocks=1, hidden=7, allow_pass=False)
    convolutions = [module for module in plain.encoder if isinstance(module, nn.Conv2d)]
    norms = [module for module in plain.encoder if isinstance(module, nn.BatchNorm2d)]
    shared = 4 - routed_convs
    plain.encoder.load_state_dict({**plain.encoder.state_dict(), **routed.encoder.state_dict()})
    for layer, conv, norm in zip(routed.layers, convolutions[shared:], norms[shared:], strict=False):
        weights = layer.block_parameters(2)
        conv.weight.data.copy_(weights["0.weight"])
        norm.weight.data.copy_(weights["1.weight"]), norm.bias.data.copy_(weights["1.bias"])
    for layer, own in zip(plain.layers, routed.layers[routed_convs:], strict=True):
        layer.block.load_state_dict(own.block_parameters(2))
    images = random_images(suite, 5, 4)
    routes = torch.full((routed_convs + 3, 5, 3), 2)
    for training in (True, False):  # in this order: evaluation then sees the running statistics of both
        routed.train(training), plain.train(training)
        torch.testing.assert_close(
            routed(images, routes), plain(images, torch.zeros_like(routes[:3])), atol=1e-4, rtol=1e-4
        )


def test_static_sharing_of_convolutions():
    three, zero = [0, 1, 2], [0, 0, 0]
    assert static.task_specific_all_fc(3, 2, 1) == ((1, 3, 3), pytest.approx(torch.tensor([zero, three, three])))
    assert static.task_specific_all(3, 2, 1) == ((3, 3, 3), pytest.approx(torch.tensor([three] * 3)))
    assert static.task_specific_1_fc(3, 2, 1) == ((1, 1, 3), pytest.approx(torch.tensor([zero, zero, three])))
    assert static.shared_bottom(3, 2, 1) == ((1, 1, 3), pytest.approx(torch.tensor([zero, zero, three])))


@pytest.mark.parametrize("method", ["wpl", "task_specific_all", "task_specific_all_fc"])
def test_games_over_routed_convolutions_learn_and_never_wait(method):
    suite = tiny_suite()
    network = NetworkConfig(hidden=8, depth=2, routed_convs=2)
    config = RunConfig(method=method, network=network, engine=EngineConfig(instances=4))
    engine, agent = make_game(config, suite, "cpu")
    assert engine.spec.n_depths == 4
    play_episode(engine, agent)
    with synchronisations() as found:
        play_episode(engine, agent)
    assert found == []
    assert int(engine.failed_at) == -1


def test_only_the_blocks_that_were_taken_learn():
    suite = tiny_suite()
    engine = RoutingEngine(suite, lambda s: routing_all_fc(s, routed_convs=2, hidden=8, blocks=4), seed=0)
    agent = FixedRoutes(engine.spec, torch.tensor([0, 2, 2]).repeat(5, 1))
    engine.start(0)
    before = copy.deepcopy(engine.network.state_dict())
    play_episode(engine, agent)
    for name, now in engine.network.layers.state_dict().items():
        changed = (now != before[f"layers.{name}"]).flatten(1).any(1).tolist()
        assert changed[1] is changed[3] is changed[4] is False, name
        assert changed[0] and changed[2], name


@pytest.mark.parametrize(
    ("match", "settings"),
    [
        (r"routed-convs is 5; it must lie between 0 and convs \(4\)", {"routed_convs": 5}),
        ("routed-convs is 1; a recursive network", {"routed_convs": 1, "recursive": True}),
        ("convs is 0", {"convs": 0}),
        ("blocks is .* or 4 of them", {"routed_convs": 1, "blocks": [1, 2, 3]}),
    ],
)
def test_wrong_settings_are_refused(match, settings):
    with pytest.raises(UserError, match=match):
        routing_all_fc(tiny_suite(), **settings)
