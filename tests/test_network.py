import copy

import numpy as np
import pytest
import torch
from torch import nn

from routing_marl.architecture import SimpleConvNet
from routing_marl.blocks import LoopedBlocks, SharedBlock, StackedBlocks
from routing_marl.errors import UserError
from routing_marl.network import RoutedNetwork, routing_all_fc
from routing_marl.suites import TaskSuite


def tiny_suite(n_classes=(3, 2, 4), shape=(8, 8, 3), n=24, seed=0):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (n, *shape), dtype=np.uint8)
    tasks = {f"t{k}": np.arange(n) % classes for k, classes in enumerate(n_classes)}
    return TaskSuite.from_arrays("tiny", images, tasks, tasks, test_images=images)


def random_images(suite, episodes, instances, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (episodes, suite.n_tasks, instances, *suite.image_shape)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


def small_encoder(suite, out=6):
    height, width, channels = suite.image_shape
    conv = nn.Conv2d(channels, 4, 3, stride=2)
    size = ((height - 3) // 2 + 1) * ((width - 3) // 2 + 1) * 4
    return nn.Sequential(conv, nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(size, out), nn.ReLU())


def linears(n, n_in, n_out, relu=True):
    return [nn.Sequential(nn.Linear(n_in, n_out), *[nn.ReLU()] * relu) for _ in range(n)]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("size", "pools", "features"), [(8, 3, 32), (28, 4, 32), (32, 4, 128), (84, 4, 800), (105, 4, 1152)]
)
def test_simple_conv_net_on_all_sizes(size, pools, features, channels):
    torch.manual_seed(0)
    net = SimpleConvNet((size, size, channels))
    x = torch.randn(2, channels, size, size)
    assert sum(isinstance(part, nn.MaxPool2d) for part in net) == pools
    assert sum(p.numel() for p in net.parameters()) == 9 * 32 * (channels + 3 * 32) + 4 * 2 * 32
    for training in (True, False):
        net.train(training)
        paper = copy.deepcopy(net)  # the paper's order: convolution, norm, ReLU, pool
        reference = x
        left = pools
        for conv, norm in zip(
            [m for m in paper if isinstance(m, nn.Conv2d)],
            [m for m in paper if isinstance(m, nn.BatchNorm2d)],
            strict=True,
        ):
            reference = norm(conv(reference)).relu()
            if left:
                reference, left = nn.functional.max_pool2d(reference, 2), left - 1
        out = net(x)
        assert out.shape == (2, features)
        torch.testing.assert_close(out, reference.flatten(1), atol=1e-5, rtol=1e-5)


def test_simple_conv_net_on_images_that_are_not_square():
    assert SimpleConvNet((16, 40, 1))(torch.randn(2, 1, 16, 40)).shape == (2, 32 * 1 * 2)
    assert SimpleConvNet((1, 1, 1)).eval()(torch.randn(2, 1, 1, 1)).shape == (2, 32)


def reference_logits(network, originals, suite, v, routes, readout=None):
    """Algorithm 1, one instance at a time, on encoded instances ``v``."""
    episodes, tasks, instances = v.shape[:3]
    out = torch.full((episodes, tasks, instances, suite.max_classes), -torch.inf)
    for e in range(episodes):
        for t in range(tasks):
            for b in range(instances):
                row = v[e, t, b][None]
                for depth in range(len(routes)):
                    blocks = originals[0 if len(originals) == 1 else depth]
                    action = int(routes[depth, e, t])
                    row = blocks[action](row) if action < len(blocks) else row
                classes = suite.n_classes[t]
                out[e, t, b, :classes] = (row if readout is None else readout(row))[0, :classes]
    return out


@pytest.mark.parametrize("episodes", [1, 8])
@pytest.mark.parametrize("instances", [1, 3])
@pytest.mark.parametrize("layout", ["layered", "recursive"])
def test_forward_equals_a_loop_over_instances(layout, instances, episodes):
    torch.manual_seed(0)
    suite = tiny_suite()
    encoder = small_encoder(suite)
    if layout == "layered":
        layers = [linears(3, 6, 6), linears(5, 6, 6), linears(2, 6, 4, relu=False)]
        network = RoutedNetwork(suite, encoder, copy.deepcopy(layers))
        readout, choices = None, [[0, 1, 2, 5], [0, 1, 2, 3, 4, 5], [0, 1]]
    else:
        layers, readout = [linears(3, 6, 6)], nn.Linear(6, 4)
        network = RoutedNetwork(suite, encoder, copy.deepcopy(layers), n_depths=4, readout=readout, allow_stop=True)
        choices = [[0, 1, 2, 3, 4]] * 4
    images = random_images(suite, episodes, instances)
    generator = torch.Generator().manual_seed(1)
    shape = (episodes, suite.n_tasks)
    routes = torch.stack([torch.tensor(c)[torch.randint(len(c), shape, generator=generator)] for c in choices])
    network.eval()
    alone = [
        encoder(((image.permute(2, 0, 1).float() / 255 - suite.mean.view(-1, 1, 1)) / suite.std.view(-1, 1, 1))[None])
        for image in images.flatten(0, 2)
    ]
    v = torch.cat(alone).unflatten(0, images.shape[:3])
    torch.testing.assert_close(network.encode(images), v, atol=1e-5, rtol=1e-5)
    wanted = reference_logits(network, layers, suite, v, routes, readout)
    torch.testing.assert_close(network(images, routes), wanted, atol=1e-5, rtol=1e-5)

    network.train()  # batch norm looks at the whole batch: compare the routed part on what was encoded
    v = network.encode(images)
    routed = v
    for depth, action in enumerate(routes):
        routed = network.route(depth, routed, action)
    wanted = reference_logits(network, layers, suite, v, routes, readout)
    torch.testing.assert_close(network.logits(routed), wanted, atol=1e-5, rtol=1e-5)


def test_images_are_normalised_to_the_suites_mean_and_deviation():
    suite = tiny_suite()
    identity = nn.Identity()
    network = RoutedNetwork(suite, identity, [[nn.Sequential(nn.Flatten(), nn.Linear(192, 4))]])
    images = random_images(suite, 2, 3)
    x = network.encode(images)
    assert x.shape == (2, 3, 3, 3, 8, 8)
    wanted = (images.float() / 255 - suite.mean) / suite.std
    torch.testing.assert_close(x, wanted.movedim(-1, 3), atol=1e-5, rtol=1e-5)
    everything = network.encode(suite.images[None, None])[0, 0]
    torch.testing.assert_close(everything.mean((0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(everything.std((0, 2, 3), correction=0), torch.ones(3), atol=1e-3, rtol=0)


def legal_sets(network):
    return [{a for a, ok in enumerate(row) if ok} for row in network.legal.tolist()]


def test_pass_is_legal_exactly_where_shapes_agree():
    suite = tiny_suite()
    layers = [linears(2, 6, 6), linears(2, 6, 5), linears(2, 5, 5), linears(2, 5, 4)]
    network = RoutedNetwork(suite, small_encoder(suite), layers)
    assert (network.pass_action, network.stop_action) == (2, None)
    assert legal_sets(network) == [{0, 1, 2}, {0, 1}, {0, 1, 2}, {0, 1}]
    assert network.shapes == [(6,), (6,), (5,), (5,), (4,)]
    forbidden = RoutedNetwork(suite, small_encoder(suite), layers, allow_pass=False)
    assert legal_sets(forbidden) == [{0, 1}] * 4


def test_only_blocks_whose_shapes_fit_are_legal():
    suite = tiny_suite()
    layers = [
        [nn.Linear(7, 6), nn.Linear(6, 6), nn.Linear(6, 5), nn.Tanh()],  # the first that fits decides the shape
        [nn.Linear(5, 4), nn.Linear(6, 4), nn.Conv2d(1, 1, 1), nn.Linear(6, 6)],
    ]
    network = RoutedNetwork(suite, small_encoder(suite), layers)
    assert legal_sets(network) == [{1, 3, 4}, {1}]
    assert all(isinstance(layer, LoopedBlocks) for layer in network.layers)


def test_layers_may_have_different_numbers_of_blocks():
    suite = tiny_suite()
    network = RoutedNetwork(suite, small_encoder(suite), [linears(1, 6, 6), linears(4, 6, 6), linears(2, 6, 4)])
    assert network.pass_action == 4
    assert legal_sets(network) == [{0, 4}, {0, 1, 2, 3, 4}, {0, 1}]
    routes = torch.tensor([[[0, 4, 0]], [[4, 3, 0]], [[1, 0, 1]]])
    assert network(random_images(suite, 1, 2), routes).shape == (1, 3, 2, 4)


def test_stop_needs_a_recursive_network_whose_shapes_stay():
    suite = tiny_suite()
    recursive = {"n_depths": 3, "readout": nn.Linear(6, 4)}
    network = RoutedNetwork(suite, small_encoder(suite), [linears(2, 6, 6)], **recursive, allow_stop=True)
    assert (network.pass_action, network.stop_action) == (2, 3)
    assert legal_sets(network) == [{0, 1, 2, 3}] * 3
    without_pass = RoutedNetwork(
        suite, small_encoder(suite), [linears(2, 6, 6)], **recursive, allow_stop=True, allow_pass=False
    )
    assert legal_sets(without_pass) == [{0, 1, 3}] * 3
    # A shape that changes on the way: 6 -> 5 by the only block that fits, then 5 -> 5.
    changing = [[nn.Linear(6, 5), nn.Linear(5, 5)]]
    network = RoutedNetwork(suite, small_encoder(suite), changing, n_depths=3, readout=nn.Linear(5, 4), allow_stop=True)
    assert network.shapes == [(6,), (5,), (5,), (5,)]
    assert legal_sets(network) == [{0}, {1, 2, 3}, {1, 2, 3}]


def test_every_depth_has_a_legal_action_and_legal_actions_run():
    suite = tiny_suite()
    for recursive in (False, True):
        network = routing_all_fc(suite, hidden=5, recursive=recursive, allow_stop=recursive).eval()
        images = random_images(suite, 1, 1)
        for depth in range(network.n_depths):
            for action in legal_sets(network)[depth]:
                routes = network.legal.int().argmax(1)[:, None, None].repeat(1, 1, suite.n_tasks)
                routes[depth] = action
                assert network(images, routes).isfinite().any(-1).all()


def test_classes_that_a_task_does_not_have_are_never_predicted():
    suite = tiny_suite(n_classes=(3, 2, 4))
    network = routing_all_fc(suite, hidden=5)
    logits = network(random_images(suite, 2, 3), torch.zeros(3, 2, 3, dtype=torch.long))
    for task, classes in enumerate(suite.n_classes):
        assert logits[:, task, :, :classes].isfinite().all()
        assert (logits[:, task, :, classes:] == -torch.inf).all()
        assert (logits.softmax(-1)[:, task, :, classes:] == 0).all()
    labels = torch.zeros(2 * 3 * 3, dtype=torch.long)
    nn.functional.cross_entropy(logits.flatten(0, 2), labels).backward()
    for parameter in network.parameters():
        assert parameter.grad is None or parameter.grad.to_dense().isfinite().all()


def test_suites_of_equal_class_counts_have_only_finite_logits():
    suite = tiny_suite(n_classes=(3, 3))
    logits = routing_all_fc(suite, hidden=5)(random_images(suite, 1, 2), torch.zeros(3, 1, 2, dtype=torch.long))
    assert logits.isfinite().all()


def test_all_shared_equals_a_network_of_one_block_per_layer():
    torch.manual_seed(0)
    suite = tiny_suite(shape=(8, 8, 1))
    routed = routing_all_fc(suite, blocks=5, hidden=7).eval()
    plain = routing_all_fc(suite, blocks=1, hidden=7, allow_pass=False).eval()
    assert all(isinstance(layer, StackedBlocks) for layer in routed.layers)
    assert all(isinstance(layer, SharedBlock) for layer in plain.layers)
    plain.encoder.load_state_dict(routed.encoder.state_dict())
    images = random_images(suite, 7, 2)
    for block in (0, 3):
        for layer, own in zip(plain.layers, routed.layers, strict=True):
            layer.block.load_state_dict(own.block_parameters(block))
        routes = torch.full((3, 7, 3), block)
        torch.testing.assert_close(routed(images, routes), plain(images, torch.zeros_like(routes)))


def test_routing_all_fc_has_the_papers_widths_and_counts():
    suite = tiny_suite()
    network = routing_all_fc(suite)
    assert network.shapes == [(32,), (128,), (128,), (4,)]
    assert [layer.n_blocks for layer in network.layers] == [3, 3, 3]
    assert legal_sets(network) == [{0, 1, 2}, {0, 1, 2, 3}, {0, 1, 2}]
    assert [layer.n_blocks for layer in routing_all_fc(suite, blocks=[1, 2, 5]).layers] == [1, 2, 5]
    recursive = routing_all_fc(suite, blocks=2, recursive=True, depth=5, allow_stop=True, hidden=9)
    assert recursive.shapes == [(9,)] * 6 and len(recursive.layers) == 1
    assert legal_sets(recursive) == [{0, 1, 2, 3}] * 5


def test_wrong_networks_are_refused_with_a_message_that_says_why():
    suite = tiny_suite()

    def network(layers, **settings):
        return RoutedNetwork(suite, settings.pop("encoder", small_encoder(suite)), layers, **settings)

    good, body = linears(2, 6, 4), linears(2, 6, 6)
    for match, make in {
        "0 routed layers": lambda: network([]),
        "n_depths is for a recursive network, of 1 layer; this one has 2": lambda: network([body, good], n_depths=2),
        "n_depths is 0": lambda: network([good], n_depths=0),
        "STOP needs a recursive network": lambda: network([good], allow_stop=True),
        r"encoder does not take images of shape \[3, 8, 8\]": lambda: network([good], encoder=nn.Linear(9, 6)),
        r"no block at depth 1 takes a representation of shape \[6\]": lambda: network([body, linears(2, 7, 4)]),
        r"no block at depth 0 .* \[6\]": lambda: network([[]]),
        r"no block at depth 1 .* \[4\]": lambda: network([good], n_depths=2),
        r"ends in shape \[6\]; the suite tiny needs \[4\]": lambda: network([body]),
        r"ends in shape \[5\]; the suite tiny needs \[4\]": lambda: network([body], readout=nn.Linear(6, 5)),
        "the network ends in shape": lambda: network([body], readout=nn.Linear(9, 4)),
        "depth is 0": lambda: routing_all_fc(suite, depth=0),
        "hidden 0": lambda: routing_all_fc(suite, hidden=0),
        "blocks is 0": lambda: routing_all_fc(suite, blocks=0),
        r"blocks is \[1, 2\]; give one number of at least 1, or 3": lambda: routing_all_fc(suite, blocks=[1, 2]),
    }.items():
        with pytest.raises(UserError, match=match):
            make()


def test_an_encoder_that_gives_no_tensor_or_mixes_up_the_batch_is_refused():
    class Pair(nn.Module):
        def forward(self, x):
            return x, x

    suite = tiny_suite()
    for encoder in (Pair(), nn.Flatten(0), nn.Sequential(nn.Flatten(0), nn.Unflatten(0, (1, -1)))):
        with pytest.raises(UserError, match="encoder does not take images"):
            RoutedNetwork(suite, encoder, [linears(1, 6, 4)])


def test_finding_the_shapes_leaves_no_trace_in_the_modules():
    suite = tiny_suite()
    encoder = small_encoder(suite)
    before = copy.deepcopy(encoder.state_dict())
    block = nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 4)).eval()
    network = RoutedNetwork(suite, encoder, [[block]])
    assert encoder.training and not block.training and network.training
    assert all(torch.equal(value, encoder.state_dict()[name]) for name, value in before.items())
