import copy
import inspect
import io
import itertools
import pickle
import random
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from test_rewards import SlowAgreement
from torch import nn

import routing_marl.engine as engine_module
from routing_marl.agents import WPL, FixedRoutes, PolicyGradient, QLearning, RandomAgent
from routing_marl.baselines.cross_stitch import CrossStitch
from routing_marl.blocks import StackedBlocks
from routing_marl.config import EngineConfig
from routing_marl.engine import Batch, RoutingEngine, _looked_up
from routing_marl.errors import UserError
from routing_marl.network import RoutedNetwork, routing_all_fc
from routing_marl.suites import TaskSuite
from routing_marl.synchronisation import synchronisations


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """On tensors this small, threads only wait for each other: ten times as long where cores are shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tiny_suite(n_classes=(3, 2, 4), n=24, seed=0):
    """Random images; task k has ``n - 4 k`` training instances, 8 for validation and ``8 + k`` for the test."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (n + 8, 8, 8, 1), dtype=np.uint8)
    test_images = rng.integers(0, 256, (12, 8, 8, 1), dtype=np.uint8)

    def tasks(start, size):
        return {
            f"t{k}": (np.arange(start, start + size(k)), np.arange(size(k)) % classes)
            for k, classes in enumerate(n_classes)
        }

    return TaskSuite.from_arrays(
        "tiny",
        images,
        tasks(0, lambda k: n - 4 * k),
        tasks(0, lambda k: 8 + k),
        test_images=test_images,
        validation=tasks(n, lambda k: 8),
    )


def linear(n_in, n_out, relu=True):
    return nn.Sequential(nn.Linear(n_in, n_out), *[nn.ReLU()] * relu)


class Maker:
    """Makes small networks, and keeps copies of the modules that the last one was made of."""

    def __init__(self, layout="layered", dtype=torch.float32, dropout=0.0):
        self.layout, self.dtype, self.dropout = layout, dtype, dropout

    def __call__(self, suite):
        encoder = nn.Sequential(nn.Conv2d(1, 3, 3, stride=2), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), linear(27, 6))
        readout, settings = nn.Identity(), {}
        if self.layout == "layered":
            layers = [[linear(6, 6) for _ in range(2)], [linear(6, 6) for _ in range(3)]]
            layers.append([linear(6, suite.max_classes, relu=False) for _ in range(2)])
        elif self.layout == "mixed":  # one looped layer, one stacked, one of a single block
            layers = [[linear(6, 6), nn.Sequential(linear(6, 4), linear(4, 6))], [linear(6, 6) for _ in range(3)]]
            layers.append([linear(6, suite.max_classes, relu=False)])
        else:
            layers, readout = [[linear(6, 6) for _ in range(3)]], nn.Linear(6, suite.max_classes)
            settings = {"n_depths": 4, "allow_stop": True}
        self.originals = copy.deepcopy((encoder, layers, readout))
        for part in (self.originals[0], self.originals[2], *itertools.chain(*self.originals[1])):
            part.to(self.dtype)
        return RoutedNetwork(suite, encoder, layers, readout=readout, **settings).to(self.dtype)


LEGAL = {  # by hand: blocks, then PASS where the shape stays, then STOP
    "layered": [{0, 1, 3}, {0, 1, 2, 3}, {0, 1}],
    "mixed": [{0, 1, 3}, {0, 1, 2, 3}, {0}],
    "recursive": [{0, 1, 2, 3, 4}] * 4,
}
PASS, STOP = 3, 4


def make(layout="layered", *, dtype=torch.float32, seed=0, suite=None, features=False, device="cpu", **config):
    settings = {"episodes": 2, "instances": 2, "history": 5, "lr": 0.01} | config
    maker = Maker(layout, dtype)
    return RoutingEngine(
        suite or tiny_suite(), maker, EngineConfig(**settings), features=features, seed=seed, device=device
    )


def any_actions(engine, generator):
    shape = (engine.config.episodes, engine.spec.n_tasks)
    return torch.randint(engine.spec.n_actions, shape, generator=generator)


def play(engine, generator, episodes=1, split="train"):
    """Plays with actions drawn by the generator, legal or not; returns what each episode's last step gave."""
    steps = []
    for _ in range(episodes):
        engine.reset(split)
        for _ in range(engine.spec.n_depths):
            step = engine.step(any_actions(engine, generator))
        steps.append(step)
    return steps


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def record(engine, generator, episodes=4):
    """Everything that a game shows, and the weights it ends with."""
    out = []
    for _ in range(episodes):
        (step,) = play(engine, generator)
        out += [engine.batch.image, engine.batch.label, *engine.trajectory[:4], *step.outcome]
    return out + [value.clone() for value in engine.network.state_dict().values()]


def same(one, other):
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


# -- the batched engine against one instance at a time ---------------------------------------------------------------


class SlowGame:
    """The rules of the game with loops: a module per block, an Adam per block, one instance at a time."""

    def __init__(self, engine):
        self.suite, self.config = engine.suite, engine.config
        maker = engine._make_network
        self.encoder, self.layers, self.readout = maker.originals
        self.legal, self.recursive = LEGAL[maker.layout], maker.layout == "recursive"
        self.agreement = SlowAgreement(self.suite.n_tasks, engine.spec.n_actions, self.config.history)
        own = [self.encoder, self.readout, *itertools.chain(*self.layers)]
        lr = self.config.lr
        self.optimizers = [torch.optim.Adam(m.parameters(), lr=lr) for m in own if list(m.parameters())]
        self.dtype = next(self.encoder.parameters()).dtype

    def play(self, image, label, chosen, reported=None):
        """``chosen[depth][e][t]``; returns actions, illegal, active, collaboration, final reward, loss, correct."""
        episodes, tasks, instances = image.shape
        x = self.suite.images[image.flatten()].permute(0, 3, 1, 2).double() / 255
        x = (x - self.suite.mean.view(-1, 1, 1)) / self.suite.std.view(-1, 1, 1)
        v = self.encoder(x.to(self.dtype)).unflatten(0, image.shape)
        v = {key: v[key] for key in np.ndindex(*image.shape)}
        actions, illegal, active = [np.zeros((len(chosen), episodes, tasks)) for _ in range(3)]
        collaboration = np.zeros((len(chosen), episodes, tasks))
        stopped = set()
        for depth, choices in enumerate(chosen):
            blocks = self.layers[0 if self.recursive else depth]
            for e, t in np.ndindex(episodes, tasks):
                legal = {STOP} if (e, t) in stopped else self.legal[depth]
                action = int(choices[e][t])
                if action not in legal:
                    illegal[depth, e, t] = 1
                    action = PASS if PASS in legal else min(legal)
                actions[depth, e, t] = action
                active[depth, e, t] = (e, t) not in stopped
                if action < len(blocks):
                    for b in range(instances):
                        v[e, t, b] = blocks[action](v[e, t, b][None])[0]
            self.agreement.record(depth, actions[depth].astype(int).tolist(), active[depth])
            for e, t in np.ndindex(episodes, tasks):
                if active[depth, e, t]:
                    given = None if reported is None else reported[depth].mean(0).tolist()
                    worth = self.agreement(depth, int(actions[depth, e, t]), given)
                    collaboration[depth, e, t] = self.config.rho * worth
                if actions[depth, e, t] == STOP and self.recursive:
                    stopped.add((e, t))
        loss, final = {}, np.zeros((episodes, tasks))
        correct = np.zeros(image.shape, dtype=bool)
        for key in np.ndindex(*image.shape):
            logits = self.readout(v[key][None]).float()[:, : self.suite.n_classes[key[1]]]
            loss[key] = nn.functional.cross_entropy(logits, label[key][None])
            correct[key] = logits.argmax() == label[key]
            final[key[:2]] += (2 * correct[key] - 1) / instances
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        (sum(loss.values()) / len(loss)).backward()
        for optimizer in self.optimizers:
            optimizer.step()
        losses = np.array([loss[key].item() for key in np.ndindex(*image.shape)]).reshape(image.shape)
        return actions, illegal, active, collaboration, final, losses, correct


def check_close(got, wanted, tolerance=1e-5):
    wanted = torch.as_tensor(wanted)
    torch.testing.assert_close(got.to(wanted.dtype), wanted, atol=tolerance, rtol=tolerance)


def compare_blocks(engine, slow, look):
    """Compares what ``look`` finds at a parameter (its value, its gradient) for encoder, read-out and every block."""

    def looked(parameter):
        value = look(parameter)
        return torch.zeros_like(parameter) if value is None else value

    network = engine.network
    for ours, theirs in ((network.encoder, slow.encoder), (network.readout, slow.readout)):
        for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            check_close(looked(mine), looked(other))
    for layer, blocks in zip(network.layers, slow.layers, strict=True):
        for index, block in enumerate(blocks):
            if isinstance(layer, StackedBlocks):
                mine = [looked(stacked) for stacked in layer.parameters()]
                mine = [(value.to_dense() if value.is_sparse else value)[index] for value in mine]
            else:
                own = layer.blocks[index] if hasattr(layer, "blocks") else layer.block
                mine = [looked(parameter) for parameter in own.parameters()]
            for value, other in zip(mine, block.parameters(), strict=True):
                check_close(value, looked(other))


@pytest.mark.parametrize(
    ("layout", "settings"),
    [
        ("layered", {}),
        ("layered", {"episodes": 1, "instances": 1}),
        ("layered", {"episodes": 6, "instances": 1, "rho": 1.0, "history": 1}),
        ("mixed", {"episodes": 3}),
        ("recursive", {"episodes": 3}),
        ("recursive", {"episodes": 1, "instances": 4, "agreement": "reported", "rho": 0.7}),
    ],
)
def test_engine_equals_a_loop_over_instances(path, layout, settings):
    # In float64: Adam divides gradients by their size, so what rounding does to tiny ones would count in full.
    engine = make(layout, dtype=torch.float64, **settings)
    engine.start(3)
    slow = SlowGame(engine)
    generator = seeded(1)
    seen = set()
    for _update in range(6):
        engine.reset()
        depths, shape = engine.spec.n_depths, (engine.config.episodes, engine.spec.n_tasks)
        chosen = torch.stack([any_actions(engine, generator) for _ in range(depths)])
        reported = None
        if engine.config.agreement == "reported":
            reported = torch.rand(depths, *shape, engine.spec.n_actions, generator=generator)
        steps = [engine.step(a, None if reported is None else reported[d]) for d, a in enumerate(chosen)]
        trajectory = engine.trajectory
        actions, illegal, active, collaboration, final, losses, correct = slow.play(
            engine.batch.image, engine.batch.label, chosen, reported
        )
        seen |= set(actions.flatten().tolist())
        for depth, step in enumerate(steps):
            check_close(step.illegal, illegal[depth].astype(bool))
            check_close(step.collaboration_reward, collaboration[depth].astype(np.float32))
            assert step.terminated == (depth == depths - 1) == (step.outcome is not None)
            assert step.terminated or not step.final_reward.count_nonzero()
        check_close(steps[-1].final_reward, final)
        check_close(steps[-1].outcome.loss, losses)
        check_close(steps[-1].outcome.correct, correct)
        check_close(trajectory.actions, actions.astype(int))
        check_close(trajectory.active, active.astype(bool))
        check_close(trajectory.rewards[-1], collaboration[-1] + final)
        compare_blocks(engine, slow, lambda parameter: parameter.grad)
        compare_blocks(engine, slow, lambda parameter: parameter.detach())
        for name, value in slow.encoder.state_dict().items():
            check_close(engine.network.encoder.state_dict()[name], value)
    assert engine.updates == 6
    assert len(seen) == engine.spec.n_actions  # nothing was left out, neither PASS nor STOP


@pytest.mark.parametrize("layout", LEGAL)
def test_in_single_precision_forward_loss_and_gradients_agree_as_well(layout):
    engine = make(layout, episodes=4)
    engine.start(5)
    slow = SlowGame(engine)
    engine.reset()
    chosen = torch.stack([any_actions(engine, seeded(depth)) for depth in range(engine.spec.n_depths)])
    for actions in chosen:
        step = engine.step(actions)
    *_, losses, correct = slow.play(engine.batch.image, engine.batch.label, chosen)
    check_close(step.outcome.loss, losses)
    check_close(step.outcome.correct, correct)
    compare_blocks(engine, slow, lambda parameter: parameter.grad)


@pytest.mark.parametrize("layout", LEGAL)
def test_masks_are_the_legal_sets_and_only_stop_after_stop(layout):
    engine = make(layout)
    observation = engine.reset()
    for depth in range(engine.spec.n_depths):
        assert observation.depth == depth
        for row in observation.mask.flatten(0, 1).tolist():
            assert {a for a, ok in enumerate(row) if ok} == LEGAL[layout][depth]
        observation = engine.step(torch.zeros(2, 3, dtype=torch.long)).observation
    assert observation.depth == engine.spec.n_depths
    if layout == "recursive":
        engine.reset()
        v = engine._play.v
        after = engine.step(torch.tensor([[STOP, 0, PASS], [1, STOP, 2]]))
        mask = after.observation.mask
        for e, t in np.ndindex(2, 3):
            stopped = (e, t) in {(0, 0), (1, 1)}
            assert mask[e, t].nonzero().flatten().tolist() == ([STOP] if stopped else [0, 1, 2, 3, 4])
        step = engine.step(torch.zeros(2, 3, dtype=torch.long))
        assert step.illegal.tolist() == [[True, False, False], [False, True, False]]
        assert step.collaboration_reward[0, 0] == step.collaboration_reward[1, 1] == 0
        assert (step.action == STOP).tolist() == step.illegal.tolist()
        assert torch.equal(engine._play.v[0, 0], v[0, 0])


def test_actions_may_come_in_any_integer_type():
    wanted = record(make(), seeded())
    for dtype in (torch.int32, torch.int16, torch.int8):
        engine = make()
        generator = seeded()
        for _ in range(4):
            engine.reset()
            for _ in range(3):
                engine.step(any_actions(engine, generator).to(dtype))
        weights = list(engine.network.state_dict().values())
        assert same(weights, wanted[-len(weights) :])


def test_rewards_add_up():
    engine = make("recursive", rho=0.5)
    for _ in range(3):
        engine.reset()
        generator, total = seeded(), 0
        for _ in range(4):
            step = engine.step(any_actions(engine, generator))
            assert torch.equal(step.reward, step.final_reward + step.collaboration_reward)
            assert step.collaboration_reward.min() >= 0 and step.collaboration_reward.max() <= 0.5 + 1e-6
            total = total + step.reward
        torch.testing.assert_close(engine.trajectory.returns()[0], total)
        returns = engine.trajectory.returns(0.5)
        torch.testing.assert_close(returns[-2], engine.trajectory.rewards[-2] + 0.5 * engine.trajectory.rewards[-1])


def test_everyone_taking_one_action_earns_rho_at_every_depth():
    engine = make(rho=0.3)
    for _ in range(3):
        engine.reset()
        for _ in range(3):
            step = engine.step(torch.zeros(2, 3, dtype=torch.long))
            torch.testing.assert_close(step.collaboration_reward, torch.full((2, 3), 0.3))


def test_features_are_the_pooled_and_clipped_representation():
    engine = make(features=True, episodes=3)
    observation = engine.reset()
    assert engine.spec.n_features == 6
    for _ in range(3):
        v = engine._play.v.detach()
        pooled = v.mean(2).clamp(-10, 10)
        torch.testing.assert_close(observation.features[..., : v.shape[-1]], pooled)
        assert not observation.features[..., v.shape[-1] :].count_nonzero()
        observation = engine.step(torch.zeros(3, 3, dtype=torch.long)).observation
    assert engine.trajectory.features.shape == (3, 3, 3, 6)
    assert not engine.trajectory.features.requires_grad
    assert make().reset().features is None


def test_a_given_batch_is_played():
    engine = make()
    image = torch.arange(12).view(2, 3, 2)
    batch = Batch(image, torch.zeros_like(image))
    engine.reset(batch=batch)
    assert engine.batch is batch


def test_the_game_learns():
    """Constant labels per task can be learned by anybody whose blocks and gradients are the right ones."""
    engine = make(instances=4, lr=0.02)
    first = play(engine, seeded())[0].outcome.loss.mean()
    for _ in range(40):
        engine.reset()
        for _ in range(3):
            last = engine.step(torch.arange(3).clamp(max=1).repeat(2, 1))
    assert last.outcome.loss.mean() < 0.7 * first


# -- randomness ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LEGAL)
def test_one_seed_is_one_game_to_the_bit_and_another_seed_another(layout):
    wanted = record(make(layout, seed=4), seeded())
    assert same(record(make(layout, seed=4), seeded()), wanted)
    other = record(make(layout, seed=5), seeded())
    assert not torch.equal(other[0], wanted[0])  # the images
    assert not torch.equal(other[-1], wanted[-1])  # the weights
    engine = make(layout, seed=9)
    record(engine, seeded(3))
    engine.start(4)
    assert engine.updates == 0
    assert same(record(engine, seeded()), wanted)


def test_without_a_seed_every_game_is_another():
    assert not same(record(make(seed=None), seeded()), record(make(seed=None), seeded()))


def global_states():
    numpy_state = np.random.get_state()  # noqa: NPY002 (it is this global state that must not matter)
    # Not Python's, on which beartype draws while it checks.
    return [torch.get_rng_state().tolist(), [np.asarray(part).tolist() for part in numpy_state]]


def disturb(seed):
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    random.seed(seed)


@pytest.mark.parametrize("layout", LEGAL)
def test_global_generators_neither_influence_nor_are_influenced(layout):
    games = []
    for disturbance in (1, 2):
        disturb(disturbance)
        before = global_states()
        games.append(record(make(layout), seeded()))
        assert global_states() == before
    assert same(*games)


def test_keep_blocks_begins_the_data_order_anew_and_keeps_what_was_learned():
    engine = make()
    engine.start(1)
    first = play(engine, seeded()) and engine.batch
    weights = [value.clone() for value in engine.network.state_dict().values()]
    optimizers = copy.deepcopy(engine.optimizer.state_dict())
    engine.start(1, keep_blocks=True)
    assert same(list(engine.network.state_dict().values()), weights)
    assert str(optimizers) == str(engine.optimizer.state_dict())
    assert engine.updates == 1 and engine.epoch == 0
    engine.reset()
    assert torch.equal(engine.batch.image, first.image)


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda engine: pickle.loads(pickle.dumps(engine))])
def test_clones(clone):
    fresh = make(seed=None)
    assert not same(record(fresh, seeded()), record(clone(make(seed=None)), seeded()))
    fresh = make(seed=None)
    twin = clone(fresh)  # before its first reset: another game
    assert not same(record(fresh, seeded()), record(twin, seeded()))
    twin = clone(fresh)  # afterwards: the same, to the bit, and apart from it
    assert same(record(twin, seeded(1)), record(fresh, seeded(1)))
    fresh.reset()
    with pytest.raises(UserError, match="call reset first"):
        clone(fresh).step(torch.zeros(2, 3, dtype=torch.long))
    if clone is copy.deepcopy:
        assert twin.suite is fresh.suite


# -- modes of the caller ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("layout", LEGAL)
def test_blocks_learn_whatever_mode_the_caller_is_in(mode, layout):
    wanted = record(make(layout), seeded())
    with mode():
        assert same(record(make(layout), seeded()), wanted)  # all of it in the mode
    engine = make(layout)
    generator = seeded()
    play(engine, generator)
    with mode():
        play(engine, generator, 2)
    play(engine, generator)
    weights = list(engine.network.state_dict().values())
    assert same(weights, wanted[-len(weights) :])


def test_a_start_in_inference_mode_makes_a_network_like_any_other():
    engine = make()
    with torch.inference_mode():
        engine.start(0)
    assert not any(p.is_inference() for p in engine.network.state_dict().values())
    assert same(record(engine, seeded()), record(make(), seeded()))


def test_observations_and_trajectories_carry_no_graph():
    engine = make(features=True)
    (step,) = play(engine, seeded())
    tensors = [*step.outcome, step.reward, *step.observation[1:], *engine.trajectory]
    assert not any(tensor.requires_grad for tensor in tensors)


def test_evaluation_builds_no_graph():
    engine = make()
    for split, learning in (("train", True), ("test", False)):
        engine.reset(split)
        engine.step(torch.zeros(2, 3, dtype=torch.long))
        assert engine._play.v.requires_grad == learning


# -- evaluation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LEGAL)
@pytest.mark.parametrize("split", ["validation", "test"])
def test_evaluation_changes_nothing_and_training_goes_on_as_if_it_had_not_been(layout, split):
    engine, twin = make(layout), make(layout)
    record(engine, seeded(1))
    record(twin, seeded(1))
    before = copy.deepcopy(engine.state_dict())
    steps = play(engine, seeded(2), 5, split)
    for batch in engine.batches(split, 12):
        engine.reset(split, batch=batch)
        for _ in range(engine.spec.n_depths):
            engine.step(any_actions(engine, seeded(3)).repeat(len(batch.image), 1)[: len(batch.image)])
    after = engine.state_dict()
    for part in ("network", "optimizer", "agreement", "updates", "failed_at"):
        assert str(before[part]) == str(after[part]), part
    assert same(list(before["network"].values()), list(after["network"].values()))
    assert torch.equal(before["orders"]["train"]["order"], after["orders"]["train"]["order"])
    assert not engine.network.training
    assert not torch.equal(steps[0].outcome.loss, steps[1].outcome.loss)  # it draws fresh minibatches
    assert same(record(engine, seeded(4)), record(twin, seeded(4)))


def test_evaluation_uses_the_running_statistics_of_batch_norm():
    engine = make(episodes=1, instances=1)
    record(engine, seeded(1))
    routes = torch.zeros(3, 1, 3, dtype=torch.long)
    batches = list(engine.batches("test", 3))  # one instance per task
    alone = []
    for batch in batches:
        engine.reset("test", batch=batch)
        for actions in routes:
            step = engine.step(actions)
        alone.append(step.outcome.loss)
    (together,) = engine.batches("test")
    engine.reset("test", batch=together)
    for actions in routes:
        step = engine.step(actions.expand(len(together.image), -1))
    torch.testing.assert_close(step.outcome.loss, torch.cat(alone), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("split", ["train", "validation", "test"])
@pytest.mark.parametrize("max_images", [1, 12, 25, 4000])
def test_batches_cover_the_split_once(split, max_images):
    engine = make(instances=3)
    part = engine.suite.split(split)
    weight = {
        (task, int(image)): 0.0 for task in range(3) for image in part.image[slice(*part.offset[task : task + 2])]
    }
    labels = {}
    for batch in engine.batches(split, max_images):
        assert batch.image.shape[1:] == (3, 3)
        assert batch.image.numel() <= max(max_images, 9)
        for e, t, b in np.ndindex(*batch.image.shape):
            weight[t, int(batch.image[e, t, b])] += float(batch.weight[e, t, b])
            labels[t, int(batch.image[e, t, b])] = int(batch.label[e, t, b])
    assert set(weight.values()) == {1.0}
    for task in range(3):
        own = slice(*part.offset[task : task + 2])
        assert [labels[task, int(image)] for image in part.image[own]] == part.label[own].tolist()


@pytest.mark.parametrize(("make_network", "images"), [(routing_all_fc, 15), (CrossStitch, 3)])
def test_networks_with_larger_tensors_are_evaluated_in_smaller_batches(make_network, images, monkeypatch):
    # 32 filters on 8x8 pixels; cross-stitch has a column of them for each of the three tasks.
    monkeypatch.setattr(engine_module, "EVALUATED_NUMBERS", 15 * 32 * 8 * 8)
    engine = RoutingEngine(tiny_suite(), make_network, EngineConfig(instances=1), seed=0)
    before = copy.deepcopy(engine.state_dict())
    assert max(batch.image.numel() for batch in engine.batches("train")) == images
    assert same(list(before["network"].values()), list(engine.state_dict()["network"].values()))
    monkeypatch.undo()
    assert make(instances=1)._images_at_once == engine_module.EVALUATED_IMAGES


# -- saving ----------------------------------------------------------------------------------------------------------


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("layout", LEGAL)
@pytest.mark.parametrize("carry", [through_a_file, lambda state: state])
@pytest.mark.parametrize("episodes", [0, 3, 8])  # an epoch has 6 updates
def test_a_saved_game_goes_on_to_the_bit(layout, carry, episodes):
    engine = make(layout, seed=1, lr_decay_epochs=1)
    play(engine, seeded(1), episodes)
    play(engine, seeded(2), 2, "validation")
    state = carry(engine.state_dict())
    other = make(layout, seed=2, lr_decay_epochs=1)
    play(other, seeded(3), 2)
    other.load_state_dict(state)
    assert (other.updates, other.epoch) == (engine.updates, engine.epoch) == (episodes, episodes // 7)
    assert same(record(other, seeded(4), 7), record(engine, seeded(4), 7))
    for game in (engine, other):
        play(game, seeded(5), 2, "validation")
    assert torch.equal(other.batch.image, engine.batch.image)


def test_a_state_is_a_snapshot():
    engine = make()
    play(engine, seeded(1), 3)
    state = engine.state_dict()
    wanted = record(engine, seeded(2))
    for game in (engine, make(), make()):  # going back; and again from a state that was loaded and played on
        game.load_state_dict(state)
        assert same(record(game, seeded(2)), wanted)


# -- errors ----------------------------------------------------------------------------------------------------------


def test_errors_say_what_to_do():
    engine = make()
    actions = torch.zeros(2, 3, dtype=torch.long)
    with pytest.raises(UserError, match="no episode is under way; call reset first"):
        engine.step(actions)
    with pytest.raises(UserError, match="call reset first"):
        _ = engine.trajectory
    with pytest.raises(UserError, match="call reset first"):
        _ = engine.batch
    engine.reset()
    with pytest.raises(UserError, match="the episode is running; play it to the end"):
        _ = engine.trajectory
    for _ in range(3):
        engine.step(actions)
    with pytest.raises(UserError, match="the episode is over; call reset first"):
        engine.step(actions)
    with pytest.raises(UserError, match="split is 'dev'; it must be one of train, validation, test"):
        inspect.unwrap(RoutingEngine.reset)(engine, "dev")  # past the checks of types that only tests have
    assert engine.trajectory.actions.shape == (3, 2, 3)  # errors changed nothing
    with pytest.raises(UserError, match="no validation split"):
        make(suite=TaskSuite.from_arrays("s", *no_validation())).reset("validation")
    with pytest.raises(UserError, match="seed is -1"):
        make(seed=-1)


def no_validation():
    images = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 1), dtype=np.uint8)
    return images, {"a": (np.arange(4), np.arange(4) % 2)}, {"a": (np.arange(4, 8), np.arange(4) % 2)}


def test_reported_agreement_needs_the_report_and_a_step_without_it_changes_nothing():
    engine, twin = make(agreement="reported"), make(agreement="reported")
    actions, reported = torch.zeros(2, 3, dtype=torch.long), torch.full((2, 3, 4), 0.25)
    for game in (engine, twin):
        game.reset()
    with pytest.raises(UserError, match="step needs `reported`"):
        engine.step(actions)
    ours, theirs = engine.step(actions, reported), twin.step(actions, reported)
    assert torch.equal(ours.reward, theirs.reward)
    torch.testing.assert_close(ours.collaboration_reward, torch.full((2, 3), 0.3 * 0.25))


@pytest.mark.parametrize(
    ("actions", "wrong"),
    [
        (torch.zeros(3, dtype=torch.long), r"\[3\] of torch.int64"),
        (torch.zeros(1, 3, dtype=torch.long), r"\[1, 3\] of torch.int64"),
        (torch.zeros(2, 3), r"\[2, 3\] of torch.float32"),
        (torch.zeros(2, 3, dtype=torch.bool), r"\[2, 3\] of torch.bool"),
        (torch.tensor([[0, 1, 4], [0, 1, 2]]), "from 0 to 4"),
        (torch.tensor([[0, -1, 3], [0, 1, 2]]), "from -1 to 3"),
        (np.zeros((2, 3), np.int64), "a ndarray"),
        (None, "a NoneType"),
    ],
)
def test_actions_that_are_none_are_refused_in_a_line(actions, wrong):
    mask = torch.ones(2, 3, 4, dtype=torch.bool)
    right = r"they must be a tensor of whole numbers from 0 to 3, of shape \[2, 3\] \(episode, task\)"
    with pytest.raises(UserError, match=f"^the actions are {wrong}; {right}$"):
        _looked_up(actions, mask)
    elsewhere = torch.zeros(2, 3, dtype=torch.long, device="meta")
    with pytest.raises(UserError, match=rf"^the actions are \[2, 3\] of torch.int64 on meta; {right}, on cpu$"):
        _looked_up(elsewhere, mask)


def test_a_refused_action_changes_nothing():
    engine, twin = make(), make()
    record(engine, seeded(1))
    record(twin, seeded(1))
    actions = torch.zeros(2, 3, dtype=torch.int32)
    for game in (engine, twin):
        game.reset()
    with pytest.raises(UserError, match="the actions are from 99 to 99"):
        engine.step(actions + 99)
    assert torch.equal(engine.step(actions).reward, twin.step(actions).reward)


def test_the_learning_rate_is_cut_at_the_right_epochs():
    engine = make(episodes=4, instances=3, lr=0.01, lr_decay=0.5, lr_decay_epochs=2)
    assert engine.steps_per_epoch == 2
    seen = []
    for _ in range(2 * 6):
        play(engine, seeded())
        rates = {group["lr"] for group in engine.optimizer.param_groups}
        assert len(rates) == 1
        seen.append((engine.epoch, *rates))
    assert seen == [(update // 2, 0.01 * 0.5 ** (update // 4)) for update in range(12)]
    never = make(lr=0.01, lr_decay_epochs=0, episodes=6, instances=4)
    play(never, seeded(), 12)
    assert never.epoch == 11 and never.optimizer.param_groups[0]["lr"] == 0.01


def test_a_cut_learning_rate_reaches_every_weight():
    engine = make(lr_decay=1e-30, lr_decay_epochs=1, episodes=6, instances=4)  # one update per epoch
    start = [p.detach().clone() for p in engine.network.parameters()] if engine.start(0) is None else []
    play(engine, seeded())
    weights = [p.detach().clone() for p in engine.network.parameters()]
    assert not same(start, weights)
    play(engine, seeded(), 3)
    assert same([p.detach() for p in engine.network.parameters()], weights)


@pytest.mark.parametrize("layout", LEGAL)
def test_failed_at_names_the_first_update_without_a_finite_loss(layout):
    engine = make(layout)
    play(engine, seeded(), 3)
    assert engine.failed_at == -1
    with torch.no_grad():
        engine.network.encoder[0].weight.fill_(torch.nan)
    play(engine, seeded(), 3)
    assert engine.failed_at == 3
    assert engine.updates == 6
    other = make(layout)
    other.load_state_dict(engine.state_dict())
    assert other.failed_at == 3
    engine.start(0)
    assert engine.failed_at == -1
    wild = make(layout, lr=1e38)
    losses = torch.stack([step.outcome.loss.mean() for step in play(wild, seeded(), 4)])
    assert wild.failed_at == losses.isfinite().int().argmin() > 0


# -- bf16 ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LEGAL)
def test_bf16_plays_nearly_the_same_game(layout):
    exact, rough = make(layout), make(layout, precision="bf16")
    (one,), (other,) = play(exact, seeded()), play(rough, seeded())
    assert other.outcome.loss.dtype == torch.float32
    torch.testing.assert_close(one.outcome.loss, other.outcome.loss, atol=0.05, rtol=0.05)
    assert not torch.equal(one.outcome.loss, other.outcome.loss)
    assert all(p.dtype == torch.float32 for p in rough.network.parameters())


# -- no waiting for the device ---------------------------------------------------------------------------------------


class Synchronises(AssertionError):
    """An operator of which a GPU's host would wait for the result."""


@contextmanager
def no_synchronisation():
    """Runs a block as on a GPU, and raises if it would have waited there."""
    with synchronisations() as found:
        yield
    if found:
        raise Synchronises(found[0])


AGENTS = {
    "wpl": lambda spec: WPL(spec, seed=0),
    "wpl original averaged": lambda spec: WPL(
        spec, weighting="original", advantage="averaged", projection="euclidean", floor=0.01, seed=0
    ),
    "q": lambda spec: QLearning(spec, seed=0),
    "policy gradient": lambda spec: PolicyGradient(spec, seed=0),
    "random": lambda spec: RandomAgent(spec, seed=0),
    "fixed": lambda spec: FixedRoutes(spec, torch.zeros(spec.n_depths, spec.n_tasks, dtype=torch.long)),
}


def train(engine, agent, updates):
    for _ in range(updates):
        observation = engine.reset()
        while observation.depth < engine.spec.n_depths:
            reported = agent.policy(observation) if engine.config.agreement == "reported" else None
            observation = engine.step(agent.act(observation), reported).observation
        agent.learn(engine.trajectory)


@pytest.mark.parametrize("agent", AGENTS)
@pytest.mark.parametrize("layout", ["layered", "recursive"])
def test_training_never_waits_for_the_device(layout, agent):
    engine = make(layout, features=True, agreement="reported" if "wpl" in agent else "empirical", episodes=4)
    learner = AGENTS[agent](engine.spec)
    engine.reset()  # draws the order of an epoch of 3 updates
    with no_synchronisation():
        train(engine, learner, 2)
    assert engine.updates == 2 and engine.epoch == 0


@pytest.mark.parametrize("settings", [{"episodes": 12, "instances": 1}, {"precision": "bf16"}])
def test_training_never_waits_with_tiles_or_in_bf16(settings):
    engine = make(**settings)
    engine.reset()
    with no_synchronisation():
        train(engine, RandomAgent(engine.spec, seed=0), 1)


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: x.tolist(),
        lambda x: float(x[0]),
        lambda x: int(x[0]),
        lambda x: bool(x[0]),
        lambda x: [0, 1][x[0].long()],
        lambda x: x.cpu(),
        lambda x: x.numpy(),
        lambda x: np.asarray(x),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: x.masked_select(x > 0),
        lambda x: x.clone().index_put_((x > 0,), x.sum()),
        lambda x: torch.where(x > 0),
        lambda x: x.unique(),
        lambda x: x.unique_consecutive(),
        lambda x: torch.equal(x, x),
        lambda x: torch.allclose(x, x),
        lambda x: x.long().bincount(),
        lambda x: x.repeat_interleave(x.long()),
        lambda x: x.to_sparse(),
        lambda x: f"{x.sum():.2f}",
        lambda x: repr(x),
        lambda x: 1 if (x > 0).any() else 0,
    ],
)
def test_the_detector_detects(wait):
    x = torch.tensor([0.0, 1.0, 1.0])
    with pytest.raises(Synchronises), no_synchronisation():
        wait(x)


def test_the_detector_detects_in_a_step_also_in_its_backward_pass():
    class Waits(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient * gradient.nonzero().shape[0]

    for hook in (lambda _, __, out: out * out.sum().item(), lambda _, __, out: Waits.apply(out)):
        engine = make()
        engine.reset()
        engine.network.readout.register_forward_hook(hook)
        with pytest.raises(Synchronises), no_synchronisation():
            train(engine, RandomAgent(engine.spec, seed=0), 1)
    engine = make("mixed")  # a looped layer waits for the routes, as its docstring says
    engine.reset()
    with pytest.raises(Synchronises), no_synchronisation():
        train(engine, RandomAgent(engine.spec, seed=0), 1)
