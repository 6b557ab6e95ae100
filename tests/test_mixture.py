"""Methods whose gates learn by backprop: their formulas by hand, and the networks that they must equal."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from test_network import random_images, tiny_suite
from torch import nn

from routing_marl.architecture import layered_parts
from routing_marl.assembly import make_game
from routing_marl.baselines import static
from routing_marl.baselines.cross_stitch import CrossStitch
from routing_marl.baselines.gates import GumbelMatrixGate, GumbelSoftmaxGate, InstanceGate, SoftmaxGate
from routing_marl.baselines.mixture import GumbelMatrix, gumbel_softmax, mmoe, soft_routing
from routing_marl.baselines.mixture_layers import DenseMixture
from routing_marl.baselines.sparse import SparseMixture, balance_loss, places, st_moe, switch, z_loss
from routing_marl.blocks import LoopedBlocks
from routing_marl.config import AgentConfig, EngineConfig, NetworkConfig, RunConfig
from routing_marl.errors import UserError
from routing_marl.evaluation import evaluate
from routing_marl.network import RoutedNetwork
from routing_marl.synchronisation import synchronisations
from routing_marl.training import Run, play_episode

GATED = ["mmoe", "soft_routing", "gumbel_softmax", "gumbel_matrix", "switch", "st_moe"]
SMALL = NetworkConfig(hidden=8, depth=2)


def fc_blocks(n, n_in=5, n_out=5):
    return [nn.Sequential(nn.Linear(n_in, n_out), nn.ReLU()) for _ in range(n)]


class Given(nn.Module):
    """A gate of given weights."""

    def __init__(self, weights):
        super().__init__()
        self.weights = nn.Parameter(weights)

    def forward(self, v):
        return self.weights


# -- gates -----------------------------------------------------------------------------------------------------------


def test_gumbel_softmax_draws_by_its_probabilities_and_takes_the_likeliest_in_evaluation():
    torch.manual_seed(0)
    gate = GumbelSoftmaxGate(2, 3, annealing_rate=0.0)
    gate.logits.data = torch.tensor([[0.0, math.log(2), math.log(5)], [math.log(7), 0.0, 0.0]])
    weights = gate(torch.zeros(4000, 2, 1, 5))
    assert weights.shape == (4000, 2, 1, 3)
    assert ((weights - 1).abs() < 1e-6).sum(-1).eq(1).all()  # one-hot, but for rounding
    torch.testing.assert_close(
        weights.mean((0, 2)), torch.tensor([[1, 2, 5], [7.0 * 8 / 9, 8 / 9, 8 / 9]]) / 8, atol=0.03, rtol=0
    )
    gate.eval()
    before = gate.noise.get_extra_state()
    assert gate(torch.zeros(1, 2, 1, 5)).tolist() == [[[[0, 0, 1]], [[1, 0, 0]]]]
    assert torch.equal(before, gate.noise.get_extra_state()) and int(gate.steps) == 1


def test_straight_through_gradients_are_those_of_the_tempered_softmax():
    gate = GumbelSoftmaxGate(1, 2, annealing_rate=0.2)
    gate.steps += 2  # temperature exp(-0.4)
    state = gate.noise.get_extra_state()
    upstream = torch.tensor([1.0, -2.0])
    (gate(torch.zeros(1, 1, 1, 5)) * upstream).sum().backward()
    gate.noise.set_extra_state(state)
    score = -(-gate.noise.uniform(1, 1, 2).log()).log()[0, 0]
    p = (score / math.exp(-0.4)).softmax(0)
    expected = p * (upstream - (p * upstream).sum()) / math.exp(-0.4)
    torch.testing.assert_close(gate.logits.grad[0], expected)
    assert int(gate.steps) == 3


@pytest.mark.parametrize(("step", "temperature"), [(0, 50.0), (99, 5.0), (10**6, 0.5)])
def test_gumbel_matrix_has_the_papers_temperature_and_gradient(step, temperature):
    gate = GumbelMatrixGate(1, 2, 0.5)
    gate.steps += step
    state = gate.noise.get_extra_state()
    weights = gate(torch.zeros(1, 1, 1, 5))[0, 0, 0]
    weights[0].backward()
    gate.noise.set_extra_state(state)
    uniform = gate.noise.uniform(1, 1, 2)[0, 0].double()
    score = (uniform / (1 - uniform)).log()
    active = (score > 0).double()
    if active.sum() == 0:
        active[score.argmax()] = 1
    soft = (score / temperature).sigmoid()
    slope = soft * (1 - soft) / temperature
    n = active.sum()
    # d(a0 / (a0 + a1)) by the quotient rule
    expected = torch.stack([(n - active[0]) / n**2 * slope[0], -active[0] / n**2 * slope[1]])
    torch.testing.assert_close(weights.detach().double(), active / n, atol=1e-6, rtol=0)
    torch.testing.assert_close(gate.logits.grad[0].double(), expected, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("p0", [0.1, 0.5, 0.9])
def test_gumbel_matrix_starts_with_its_initial_probability(p0):
    torch.manual_seed(0)
    gate = GumbelMatrixGate(1, 12, p0)
    weights = gate(torch.zeros(3000, 1, 1, 5))
    active = (weights > 1e-4).float()
    expected = p0 + (1 - p0) ** 12 / 12  # and where none is active, one is
    torch.testing.assert_close(active.mean(), torch.tensor(expected), atol=0.01, rtol=0)
    torch.testing.assert_close(weights.sum(-1), torch.ones(3000, 1, 1), atol=1e-5, rtol=0)


def test_an_empty_row_takes_its_likeliest_block():
    gate = GumbelMatrixGate(2, 3, 0.5).eval()
    gate.logits.data = torch.tensor([[-3.0, -1.0, -2.0], [1.0, -1.0, 2.0]])
    assert gate(torch.zeros(1, 2, 1, 5)).tolist() == [[[[0, 1, 0]], [[0.5, 0, 0.5]]]]


def test_each_task_of_mmoe_has_a_gate_over_the_features():
    gate = InstanceGate(2, 3, 4)
    v = torch.randn(1, 2, 5, 4)
    weights = gate(v)
    torch.testing.assert_close(weights[0, 1, 2], (v[0, 1, 2] @ gate.weight[1]).softmax(0))
    maps = torch.randn(1, 2, 5, 4, 3, 3)
    torch.testing.assert_close(gate(maps), gate(maps.mean((-2, -1))))


# -- mixtures --------------------------------------------------------------------------------------------------------


def test_a_mixture_is_the_weighted_sum_of_its_blocks():
    torch.manual_seed(0)
    suite = tiny_suite()
    stage, *_ = layered_parts(suite, routed_convs=1)[1]
    stages, *_ = layered_parts(suite, routed_convs=4, joint_convs=True)[1]
    for blocks, shape in ((fc_blocks(3), (5,)), (stage, (32, 1, 1)), (stages, suite.image_shape[::-1])):
        weights = torch.rand(2, 3, 4, 3)
        layer = DenseMixture(Given(weights), copy.deepcopy(blocks)).eval()
        v = torch.randn(2, 3, 4, *shape)
        out = layer(v)
        columns = torch.stack([block.eval()(v.flatten(0, 2)) for block in blocks], 1).unflatten(0, (2, 3, 4))
        torch.testing.assert_close(out, (weights[..., None] * columns).sum(3), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(layer.usage[:, :3], weights.mean((0, 2)))
        assert layer.usage[:, 3].count_nonzero() == 0


def test_a_mixture_of_one_hot_weights_is_a_routed_layer_also_in_its_gradients():
    torch.manual_seed(0)
    blocks = fc_blocks(3)
    choice = torch.tensor([2, 0, 2, 1])
    mixture = DenseMixture(Given(nn.functional.one_hot(choice, 3).float()[None, :, None]), copy.deepcopy(blocks))
    routed = LoopedBlocks(blocks)
    a = torch.randn(1, 4, 2, 5, requires_grad=True)
    b = a.detach().clone().requires_grad_()
    ours, theirs = mixture(a), routed(b[0], choice)[None]
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    upstream = torch.randn_like(ours)
    ours.backward(upstream), theirs.backward(upstream)
    torch.testing.assert_close(a.grad, b.grad, atol=1e-5, rtol=1e-5)
    wide = mixture.blocks.parts[0]
    torch.testing.assert_close(
        wide.weight.grad, torch.cat([block[0].weight.grad for block in blocks]), atol=1e-5, rtol=1e-5
    )
    torch.testing.assert_close(
        wide.bias.grad, torch.cat([block[0].bias.grad for block in blocks]), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("make", [soft_routing, gumbel_softmax, GumbelMatrix])
def test_gates_that_are_sure_of_one_block_make_a_hard_routed_network(make):
    suite = tiny_suite()
    torch.manual_seed(3)
    gated = make(suite, hidden=7, routed_convs=1, blocks=2).eval()
    torch.manual_seed(3)
    encoder, blocks = layered_parts(suite, hidden=7, routed_convs=1, blocks=2)
    routed = RoutedNetwork(suite, encoder, blocks, allow_pass=False).eval()
    table = torch.tensor([[0, 1, 1], [1, 0, 1], [0, 0, 1], [1, 0, 0]])
    for gate, row in zip(gated.gates, table, strict=True):
        gate.logits.data = 200.0 * nn.functional.one_hot(row, 2) - 100
    images = random_images(suite, 2, 3)
    routes = table[:, None].expand(-1, 2, -1)
    torch.testing.assert_close(gated(images, routes[:1]), routed(images, routes), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        gated.gate_usage(), nn.functional.pad(nn.functional.one_hot(table, 2).float(), (0, 1)), atol=1e-6, rtol=0
    )


def test_the_budget_penalty_by_hand():
    suite = tiny_suite()
    network = GumbelMatrix(suite, hidden=7, blocks=2, depth=2, budget=0.3, budget_weight=0.5)
    network.gates[0].logits.data = torch.tensor([[0.6, 0.2], [0.5, 0.9], [0.1, 0.7]]).logit()
    network.gates[1].logits.data = torch.full((3, 2), 0.25).logit()
    assert network.auxiliary_loss().item() == pytest.approx(0.5 * ((3.0 + 1.5) / 12 - 0.3), rel=1e-5)
    network.gates[0].logits.data.fill_(-5.0)
    assert network.auxiliary_loss().item() == 0


# -- sparse mixtures -------------------------------------------------------------------------------------------------


def sparse(n_blocks, n_choices=1, n_out=5, **settings):
    defaults = {"capacity": 1.0, "eval_capacity": 2.0, "balance": 0.01, "z": 0.0, "jitter": 0.0, "initial_scale": 0.1}
    return SparseMixture(fc_blocks(n_blocks, 5, n_out), n_choices=n_choices, **{**defaults, **settings})


def test_places_are_given_in_order_first_choices_before_second_ones():
    block = torch.tensor([[0, 0, 1, 0], [1, 1, 0, 1]])
    place, kept = places(block, 2, capacity=2)
    assert place.tolist() == [[0, 1, 0, 2], [1, 2, 3, 3]]
    assert kept.tolist() == [[True, True, True, False], [True, False, False, False]]


def test_balance_and_z_loss_by_hand():
    p = torch.tensor([[0.7, 0.3], [0.6, 0.4], [0.2, 0.8], [0.9, 0.1]])
    # f = (3/4, 1/4), P = (0.6, 0.4): 2 * (0.45 + 0.1)
    assert float(balance_loss(p, p.argmax(1))) == pytest.approx(1.1)
    assert float(balance_loss(torch.full((6, 3), 1 / 3), torch.arange(6) % 3)) == pytest.approx(1.0)
    logits = torch.tensor([[0.0, 0.0], [math.log(3), 0.0]])
    assert float(z_loss(logits)) == pytest.approx((math.log(2) ** 2 + math.log(4) ** 2) / 2)


def test_switch_of_one_expert_is_a_dense_layer_times_its_gate():
    layer = sparse(1)
    v = torch.randn(2, 3, 4, 5)
    torch.testing.assert_close(layer(v), (v @ layer.weight[0].T + layer.bias[0]).relu())  # its gate is 1
    assert float(layer.dropped) == 0 and layer.auxiliary.item() == pytest.approx(0.01)


def test_own_layers_above_a_mixture_are_as_many_as_by_default():
    network = soft_routing(tiny_suite(shape=(16, 16, 3)), own_fc=True, routed_convs=1)
    assert len(network.gates) == 1


@pytest.mark.parametrize("n_choices", [1, 2])
def test_room_without_limit_is_room_for_every_instance(n_choices):
    torch.manual_seed(1)
    v = torch.randn(2, 3, 4, 5)
    layers = [sparse(3, n_choices, 4, eval_capacity=capacity).eval() for capacity in (3.0, math.inf)]
    layers[1].load_state_dict(layers[0].state_dict())
    ours, endless = (layer(v) for layer in layers)
    torch.testing.assert_close(ours, endless)
    assert float(layers[1].dropped) == 0


@pytest.mark.parametrize("n_out", [5, 4])
@pytest.mark.parametrize("n_choices", [1, 2])
@pytest.mark.parametrize("training", [True, False])
def test_a_sparse_mixture_equals_a_loop_over_instances(training, n_choices, n_out):
    torch.manual_seed(1)
    layer = sparse(3, n_choices, n_out, capacity=0.6, eval_capacity=0.9, initial_scale=3.0, z=1e-3).train(training)
    v = torch.randn(2, 3, 4, 5)
    x = v.flatten(0, 2)
    room = math.ceil((0.6 if training else 0.9) * n_choices * 24 / 3)
    p = (x @ layer.gate.T).softmax(-1)
    out, taken, kept_any, n_dropped = torch.zeros(24, n_out), [0, 0, 0], [False] * 24, 0
    order = p.argsort(-1, descending=True)
    for choice in range(n_choices):
        for i in range(24):
            b = int(order[i, choice])
            if taken[b] < room:
                scale = 1.0 if n_choices == 1 else 1 / p[i, order[i, :2]].sum()
                out[i] += scale * p[i, b] * (x[i] @ layer.weight[b].T + layer.bias[b]).relu()
                kept_any[i] = True
                taken[b] += 1
            else:
                n_dropped += 1
    for i in range(24):
        if not kept_any[i] and n_out == 5:
            out[i] = x[i]
    ours = layer(v)
    assert n_dropped > 0
    torch.testing.assert_close(ours, out.view(2, 3, 4, n_out), atol=1e-5, rtol=1e-5)
    assert float(layer.dropped) == pytest.approx(n_dropped / (24 * n_choices))
    torch.testing.assert_close(layer.usage.sum(-1), torch.ones(3))
    assert float(layer.usage[:, -1].mean()) == pytest.approx(float(layer.dropped))
    if training:
        wanted = 0.01 * balance_loss(p, order[:, 0]) + 1e-3 * z_loss(x @ layer.gate.T)
        torch.testing.assert_close(layer.auxiliary, wanted)
        ours.sum().backward()
        assert layer.gate.grad.count_nonzero() > 0  # the gate learns from its scaling


def test_weights_start_small():
    torch.manual_seed(0)
    layer = SparseMixture(
        fc_blocks(8, 50, 60),
        n_choices=1,
        capacity=1.0,
        eval_capacity=1.0,
        balance=0.0,
        z=0.0,
        jitter=0.0,
        initial_scale=0.1,
    )
    deviation = math.sqrt(0.1 / 50)
    for weight in (layer.weight, layer.gate):
        assert weight.abs().max() <= 2 * deviation
    assert 0.8 * deviation < layer.weight.std() < 0.95 * deviation  # truncated at two deviations: 0.88


# -- static and cross-stitch -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("routed_convs", [0, 1, 2])
def test_identity_cross_stitch_of_the_routed_layers_is_task_specific(routed_convs):
    torch.manual_seed(0)
    suite = tiny_suite()
    ours = CrossStitch(suite, hidden=7, depth=2, routed_convs=routed_convs, off_diagonal=0.0).eval()
    assert len(ours.stitches) == routed_convs + 1
    blocks, table = static.task_specific_all(3, 2, routed_convs)
    encoder, layers = layered_parts(suite, hidden=7, depth=2, routed_convs=routed_convs, blocks=blocks)
    encoder.load_state_dict(ours.encoder.state_dict())
    for task in range(3):
        for depth in range(routed_convs):
            conv, norm = layers[depth][task][0], layers[depth][task][1]
            conv.weight.data.copy_(ours.convolutions[depth].view(3, *conv.weight.shape)[task])
            for name in ("weight", "bias", "running_mean", "running_var"):
                wide = getattr(ours.norms[depth], name)
                getattr(norm, name).data.copy_(wide.view(3, -1)[task])
        for layer, weight, bias in zip(layers[routed_convs:], ours.weights, ours.biases, strict=True):
            linear = layer[task][0] if isinstance(layer[task], nn.Sequential) else layer[task]
            linear.weight.data.copy_(weight[task])
            linear.bias.data.copy_(bias[task])
    theirs = RoutedNetwork(suite, encoder, layers, allow_pass=False).eval()
    images = random_images(suite, 2, 3)
    routes = table[:, None].expand(-1, 2, -1)
    torch.testing.assert_close(ours(images, routes[:1]), theirs(images, routes), atol=1e-5, rtol=1e-5)


def test_the_oracle_shares_by_cluster_all_but_the_last_layer():
    sharing = static.oracle(torch.tensor([7, 3, 7, 5]), depth=2, convs=1)
    assert sharing.blocks == (3, 3, 4)
    assert sharing.table.tolist() == [[2, 0, 2, 1], [2, 0, 2, 1], [0, 1, 2, 3]]


def test_methods_of_fixed_sharing():
    suite = tiny_suite()
    engine, agent = make_game(RunConfig(method="single_task", network=SMALL), suite, "cpu")
    assert agent.table.tolist() == [[0, 1, 2]] * 6  # four convolutions, two fully connected layers
    config = RunConfig(method="random_fixed", network=NetworkConfig(hidden=8, blocks=2), seed=3)
    engine, agent = make_game(config, suite, "cpu")
    assert [layer.n_blocks for layer in engine.network.layers] == [2, 2, 2]
    assert all(sorted(row) in ([0, 0, 1], [0, 1, 1]) for row in agent.table.tolist())
    assert torch.equal(agent.table, make_game(config, suite, "cpu")[1].table)
    with pytest.raises(UserError, match="suite tiny has no known clusters"):
        make_game(RunConfig(method="oracle", network=SMALL), suite, "cpu")
    known = replace(suite, clusters=torch.tensor([1, 0, 1]))
    engine, agent = make_game(RunConfig(method="oracle", network=SMALL), known, "cpu")
    assert agent.table.tolist() == [[1, 0, 1], [0, 1, 2]]
    assert [layer.n_blocks for layer in engine.network.layers] == [2, 3]
    play_episode(engine, agent)


# -- in the game -----------------------------------------------------------------------------------------------------


def game(method, **settings):
    config = RunConfig(method=method, network=SMALL, engine=EngineConfig(instances=4, episodes=2), **settings)
    return make_game(config, tiny_suite(), "cpu")


@pytest.mark.parametrize("method", [*GATED, "cross_stitch_fc", "single_task", "random_fixed"])
def test_training_never_waits_for_the_device(method):
    engine, agent = game(method)
    play_episode(engine, agent)
    with synchronisations() as found:
        play_episode(engine, agent)
    assert found == []
    assert int(engine.failed_at) == -1


@pytest.mark.parametrize("method", GATED)
def test_evaluation_draws_nothing_and_reports_the_gates(method):
    engine, agent = game(method)
    play_episode(engine, agent)
    before = engine.state_dict()["network"]
    evaluation = evaluate(engine, agent, "test")
    after = engine.network.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    torch.testing.assert_close(evaluation.usage.sum(-1), torch.ones(evaluation.usage.shape[:2]))
    assert evaluation.usage.shape[1:] == (3, 4)
    assert math.isnan(evaluation.dropped) is (method not in ("switch", "st_moe"))


def test_noise_goes_on_where_it_was_and_differs_between_seeds():
    engine, agent = game("gumbel_matrix", seed=1)
    play_episode(engine, agent)
    twin, other = game("gumbel_matrix", seed=9)[0], game("gumbel_matrix", seed=2)[0]
    twin.load_state_dict(engine.state_dict())
    other.start(2)
    gates = [e.network.gates[0].train() for e in (engine, twin, other)]
    draws = [gate.noise.uniform(3).tolist() for gate in gates]
    assert draws[0] == draws[1] != draws[2]
    clone = copy.deepcopy(engine)
    assert clone.network.gates[0].noise.uniform(3).tolist() == gates[0].noise.uniform(3).tolist()


def test_auxiliary_losses_and_own_rates_reach_the_optimizer():
    settings = AgentConfig(gate_rate=0.07, budget=0.0, budget_weight=100.0)
    engine, agent = game("gumbel_matrix", agent=settings)
    play_episode(engine, agent)
    before = [gate.logits.detach().clone() for gate in engine.network.gates]
    play_episode(engine, agent)
    for gate, old in zip(engine.network.gates, before, strict=True):
        # The penalty outweighs everything: every logit falls by about its learning rate (Adam).
        torch.testing.assert_close(old - gate.logits, torch.full_like(old, 0.07), atol=0.01, rtol=0)


def test_clones_are_made_in_the_middle_of_an_episode():
    engine, _ = game("st_moe")
    engine.reset()  # the graph of the auxiliary loss is under way
    clone = copy.deepcopy(engine)
    clone.reset()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("method", GATED)
def test_gated_methods_play_in_both_precisions_on_routed_convolutions(method, precision):
    network = NetworkConfig(hidden=8, depth=2, routed_convs=0 if method in ("switch", "st_moe") else 2)
    config = RunConfig(method=method, network=network, engine=EngineConfig(instances=4, precision=precision))
    engine, agent = make_game(config, tiny_suite(), "cpu")
    play_episode(engine, agent)
    play_episode(engine, agent)
    assert int(engine.failed_at) == -1


def test_dropped_instances_stand_in_the_results():
    suite = tiny_suite()
    config = RunConfig(method="switch", network=SMALL, epochs=1, agent=AgentConfig(capacity=0.5, eval_capacity=4.0))
    run = Run(config, suite)
    run.train_epoch()
    dropped = {row["split"]: row["dropped"] for row in run.rows}
    assert dropped["train"] >= 0.5 - 1e-6 and dropped["test"] < dropped["train"]


@pytest.mark.parametrize(
    ("match", "method", "settings"),
    [
        ("initial-probability is 1.0", GumbelMatrix, {"initial_probability": 1.0}),
        ("budget is 1.5", GumbelMatrix, {"budget": 1.5}),
        ("gate-rate is -1", soft_routing, {"gate_rate": -1.0}),
        ("annealing-rate is -1", gumbel_softmax, {"annealing_rate": -1.0}),
        ("capacity is 0", switch, {"capacity": 0.0}),
        ("z-loss is 2", st_moe, {"z_loss": 2.0}),
        ("routed-convs is 1; switch and st_moe", switch, {"routed_convs": 1}),
        ("depth is 1; switch and st_moe", st_moe, {"depth": 1}),
        ("depth is 0", mmoe, {"depth": 0}),
    ],
)
def test_wrong_settings_are_refused(match, method, settings):
    with pytest.raises(UserError, match=match):
        method(tiny_suite(), **settings)


def test_soft_gates_start_even():
    assert SoftmaxGate(2, 4)(torch.zeros(1, 2, 1, 5)).tolist() == [[[[0.25] * 4]] * 2]
