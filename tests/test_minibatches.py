import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from routing_marl.errors import UserError
from routing_marl.minibatches import Minibatches, sequential
from routing_marl.partition import Split
from routing_marl.randomness import RandomStream


def split_of(sizes):
    """Image indices and labels that tell the task (hundred thousands) and the instance apart."""
    return Split.of([(np.arange(n) + 100_000 * t, np.arange(n) + 7 * t) for t, n in enumerate(sizes)])


def make(sizes, n_episodes=2, instances=3, seed=0):
    return Minibatches(split_of(sizes), n_episodes, instances, RandomStream(seed))


def by_task(batches):
    """The images of each task in the order they came, ``[T, L]``."""
    return torch.cat([image.transpose(0, 1).flatten(1) for image, *_ in batches], dim=1)


many_sizes = st.lists(st.integers(1, 40), min_size=1, max_size=5)


@settings(deadline=None, max_examples=60)
@given(many_sizes, st.integers(1, 3), st.integers(1, 4), st.integers(0, 99))
def test_every_pass_of_an_epoch_holds_each_instance_once(sizes, n_episodes, instances, seed):
    batches = make(sizes, n_episodes, instances, seed)
    for _ in range(2):
        drawn = by_task([batches.draw() for _ in range(batches.steps_per_epoch)])
        for task, size in enumerate(sizes):
            everything = set(range(100_000 * task, 100_000 * task + size))
            row = drawn[task].tolist()
            assert set(row) == everything
            for start in range(0, len(row), size):
                one_pass = row[start : start + size]
                assert len(set(one_pass)) == len(one_pass)


@settings(deadline=None, max_examples=60)
@given(many_sizes, st.integers(1, 4), st.integers(1, 60))
def test_sequential_weighs_every_instance_exactly_once(sizes, instances, max_images):
    split = split_of(sizes)
    weights = {}
    for image, label, weight in sequential(split, instances, max_images):
        assert image.shape[1:] == (len(sizes), instances)
        assert image.numel() <= max(max_images, len(sizes) * instances)
        task = image // 100_000
        assert (task == torch.arange(len(sizes))[:, None]).all()
        assert (label == image % 100_000 + 7 * task).all()
        for key, value in zip(image.flatten().tolist(), weight.flatten().tolist(), strict=True):
            weights[key] = weights.get(key, 0) + value
    assert weights == dict.fromkeys(split.image.tolist(), 1.0)


def test_shapes_labels_and_length_of_an_epoch():
    batches = make([13, 5], n_episodes=2, instances=3)
    assert batches.steps_per_epoch == 3
    image, label = batches.draw()
    assert image.shape == label.shape == (2, 2, 3)
    assert (label == image % 100_000 + 7 * (image // 100_000)).all()
    epochs = [batches.epoch]
    for _ in range(5):
        batches.draw()
        epochs.append(batches.epoch)
    assert epochs == [0, 0, 0, 1, 1, 1]


def test_passes_epochs_and_tasks_have_orders_of_their_own():
    batches = make([30, 30, 10], n_episodes=1, instances=30)
    first, second = by_task([batches.draw()]) % 100_000, by_task([batches.draw()]) % 100_000
    assert (first[0] != second[0]).any()
    assert (first[0] != first[1]).any()
    assert (first[2, :10] != first[2, 10:20]).any()
    assert first[0].tolist() != list(range(30))


def test_all_orders_are_equally_likely():
    batches = make([3], n_episodes=1, instances=3)
    counts = {}
    for _ in range(3000):
        order = tuple(batches.draw()[0].flatten().tolist())
        counts[order] = counts.get(order, 0) + 1
    assert len(counts) == 6
    assert all(abs(count - 500) < 110 for count in counts.values())  # five standard deviations


def test_a_pass_cut_short_by_the_epoch_is_not_made_of_the_first_instances():
    batches = make([4, 3], n_episodes=1, instances=4)
    assert {int(batches.draw()[0][0, 1, 3]) % 100_000 for _ in range(60)} == {0, 1, 2}


def test_seed_decides_the_order_and_nothing_else_does():
    def draws(seed):
        torch.rand(seed + 1)
        batches = make([40, 11], seed=seed)
        return by_task([batches.draw() for _ in range(20)])

    assert torch.equal(draws(3), draws(3))
    assert not torch.equal(draws(3), draws(4))


@pytest.mark.parametrize("before", [0, 1, 6, 7, 9])
def test_a_reloaded_order_goes_on_to_the_bit(before):
    batches = make([40, 11], n_episodes=2, instances=3)
    for _ in range(before):
        batches.draw()
    state = pickle.loads(pickle.dumps((batches.state_dict(), batches._stream.state_dict())))
    other_stream = RandomStream(99)
    other = Minibatches(split_of([40, 11]), 2, 3, other_stream)
    other.draw()
    other.load_state_dict(state[0])
    other_stream.load_state_dict(state[1])
    for _ in range(20):
        assert torch.equal(batches.draw()[0], other.draw()[0])
        assert batches.epoch == other.epoch


def test_a_deep_copy_goes_on_alone_and_shares_the_split():
    batches = make([40])
    batches.draw()
    twin = copy.deepcopy(batches)
    assert twin._split is batches._split
    expected = [twin.draw()[0] for _ in range(15)]
    assert all(torch.equal(batches.draw()[0], image) for image in expected)


def test_a_restart_with_a_reseeded_stream_repeats():
    stream = RandomStream(5)
    batches = Minibatches(split_of([20, 30]), 1, 4, stream)
    first = [batches.draw()[0] for _ in range(10)]
    stream.reseed(5)
    batches.restart()
    assert all(torch.equal(batches.draw()[0], image) for image in first)
    assert batches.epoch == 1


def test_unseeded_twins_copied_before_the_first_draw_differ():
    batches = Minibatches(split_of([200]), 1, 50, RandomStream())
    twin = copy.deepcopy(batches)
    assert not torch.equal(batches.draw()[0], twin.draw()[0])


def test_a_draw_never_makes_the_host_wait():
    class Counter(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            assert func not in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
            return func(*args, **(kwargs or {}))

    batches = make([40, 11])
    with Counter():
        for _ in range(20):
            batches.draw()
        for _ in sequential(split_of([40, 11]), 3, 60):
            pass


def test_bad_input_is_named():
    with pytest.raises(UserError, match="n_episodes is 0"):
        make([4], n_episodes=0)
    with pytest.raises(UserError, match="max_images is 0"):
        sequential(split_of([4]), 1, 0)
    state = make([40, 11])
    state.draw()
    with pytest.raises(UserError, match="saved for"):
        make([40]).load_state_dict(state.state_dict())


@pytest.mark.gpu
def test_cpu_stream_gives_the_same_order_on_cuda():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA")
    here = Minibatches(split_of([40, 11]), 2, 3, RandomStream(1))
    there = Minibatches(split_of([40, 11]).to("cuda"), 2, 3, RandomStream(1))
    for _ in range(20):
        assert torch.equal(here.draw()[0], there.draw()[0].cpu())
