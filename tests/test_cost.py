"""Parameters and multiply-adds, counted by hand."""

import numpy as np
import pytest
import torch
from test_network import linears, small_encoder, tiny_suite
from torch import nn

from routing_marl.baselines.cross_stitch import CrossStitch
from routing_marl.cost import cost_of
from routing_marl.network import RoutedNetwork, routing_all_fc
from routing_marl.results import LATER_COLUMNS, SCHEMA, read_results, table

CONVOLUTIONS = [(9 * 3 * 32, 64), (9 * 32 * 32, 16), (9 * 32 * 32, 4), (9 * 32 * 32, 1)]
"""Of SimpleConvNet on 8x8 images of 3 channels: weights, and pixels that they are applied to."""
NORMS = 4 * 2 * 32


def test_one_network_by_hand():
    suite = tiny_suite()
    network = RoutedNetwork(suite, nn.Sequential(nn.Flatten(), nn.Linear(192, 6)), [linears(5, 6, 7), linears(2, 7, 4)])
    cost = cost_of(network, suite)
    assert cost.parameters == 192 * 6 + 6 + 5 * (6 * 7 + 7) + 2 * (7 * 4 + 4)
    assert cost.multiply_adds == 192 * 6 + 6 * 7 + 7 * 4


@pytest.mark.parametrize("routed_convs", [0, 1, 4])
@pytest.mark.parametrize("blocks", [1, 3, 7])
def test_an_instance_takes_one_block_per_layer_whatever_their_number(blocks, routed_convs):
    suite = tiny_suite()
    cost = cost_of(routing_all_fc(suite, blocks=blocks, hidden=10, routed_convs=routed_convs), suite)
    weights = [n for n, _ in CONVOLUTIONS]
    shared, routed = sum(weights[: 4 - routed_convs]), sum(weights[4 - routed_convs :])
    heads = (32 * 10 + 10) + (10 * 10 + 10) + (10 * 4 + 4)
    norms = (4 - routed_convs + blocks * routed_convs) * 64
    assert cost.parameters == shared + norms + blocks * (routed + heads)
    assert cost.multiply_adds == sum(n * pixels for n, pixels in CONVOLUTIONS) + 32 * 10 + 10 * 10 + 10 * 4


def test_cross_stitch_sends_an_instance_through_every_column():
    suite = tiny_suite()
    cost = cost_of(CrossStitch(suite, hidden=10), suite)
    columns = 3 * (sum(n for n, _ in CONVOLUTIONS) + NORMS + (32 * 10 + 10) + (10 * 10 + 10) + (10 * 4 + 4))
    assert cost.parameters == columns + 6 * 9
    layers = 3 * (sum(n * pixels for n, pixels in CONVOLUTIONS) + 32 * 10 + 10 * 10) + 10 * 4
    stitches = 9 * sum((16 * 32, 4 * 32, 32, 32, 10, 10))
    assert cost.multiply_adds == layers + stitches


def test_counting_leaves_no_trace():
    suite = tiny_suite()
    encoder = small_encoder(suite)
    network = RoutedNetwork(suite, encoder, [linears(2, 6, 4)])
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = torch.random.get_rng_state()
    cost_of(network, suite)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert network.training and torch.equal(torch.random.get_rng_state(), state)


def test_older_results_are_read_without_the_later_columns(tmp_path):
    row = {name: "m" if kind == "string" else 1 for name, kind in SCHEMA.items()}
    frame = table([row])
    frame.drop(columns=[*LATER_COLUMNS]).to_parquet(tmp_path / "results.parquet")
    read = read_results(tmp_path / "results.parquet")
    assert list(read.columns) == list(SCHEMA)
    added = read.loc[0, [*LATER_COLUMNS]].to_dict()
    assert added.pop("run") == added.pop("settings") == "" and np.isnan([*added.values()]).all()
