import errno
import json
import math
import os
import pickle
import re
import resource
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from routing_marl import training
from routing_marl.checkpoints import CHECKPOINT, CHECKPOINT_FORMAT, read_checkpoint
from routing_marl.config import AgentConfig, EngineConfig, NetworkConfig, RunConfig
from routing_marl.engine import Batch, Outcome
from routing_marl.environment import ENVIRONMENT, pick_device
from routing_marl.errors import UserError
from routing_marl.evaluation import Tally, evaluate
from routing_marl.files import check_output_file, write_json, write_whole
from routing_marl.methods import METHODS
from routing_marl.recipes import make_suite
from routing_marl.results import MEAN_TASK, SCHEMA, read_results, table
from routing_marl.suites import TaskSuite
from routing_marl.training import CONFIG, RESULTS, ROUTES, Run, TrainingFailed, train

PLAYABLE = [name for name in METHODS if name != "oracle"]  # whose suite must know its clusters
N_CLASSES = (2, 2, 4)
N_TRAIN, N_TEST = 24, 24


def tiny_arrays(n, seed):
    """Noise with one bright quarter, and what three tasks say of it: is it below, is it the last one, which one."""
    rng = np.random.default_rng(seed)
    quarter = np.arange(n) % 4
    images = rng.integers(0, 60, (n, 8, 8), dtype=np.uint8)
    for k in range(4):
        row, column = divmod(k, 2)
        images[quarter == k, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 150
    return images, np.stack([quarter // 2, quarter == 3, quarter], 1).astype(np.int64)


def write_tiny_npz(path, **changes):
    """A separable suite of three tasks, ``below``, ``corner`` and ``quarter``, as a file; None leaves a key out."""
    (x_train, y_train), (x_test, y_test) = tiny_arrays(N_TRAIN, 0), tiny_arrays(N_TEST, 1)
    names = np.array(["below", "corner", "quarter"])
    arrays = {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test, "task_names": names}
    np.savez(path, **{key: value for key, value in {**arrays, **changes}.items() if value is not None})
    return path


def tiny_config(path, **settings):
    base = {
        "suite": str(path),
        "epochs": 2,
        "engine": EngineConfig(instances=4, lr=1e-2, lr_decay_epochs=0),
        "network": NetworkConfig(hidden=8, depth=2),
        "device": "cpu",
    }
    return RunConfig(**{**base, **settings})


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """So tiny a game is slower on two threads, and many times slower where they have to share a core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def npz(tmp_path_factory):
    return write_tiny_npz(tmp_path_factory.mktemp("suite") / "tiny.npz")


@pytest.fixture(scope="module")
def suite(npz):
    return make_suite(npz)


@pytest.fixture
def config(npz):
    return tiny_config(npz)


def same(a, b):
    """Equal to the bit, however deep; nan is itself."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and a.shape == b.shape and a.equal(b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return a == b or (isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b))


CLOCK = ("wall_s", "instances_per_s")


def timeless(state):
    """A run's state without what the clock says."""
    rows = [{key: value for key, value in row.items() if key not in CLOCK} for row in state["rows"]]
    return {**{key: value for key, value in state.items() if key != "wall_s"}, "rows": rows}


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class Stop(Exception):
    """Whatever ends a run before its time."""


def stop_after(epoch):
    def on_epoch(run):
        if run.epoch == epoch:
            raise Stop

    return on_epoch


# -- what is measured ------------------------------------------------------------------------------------------------


def test_results_have_the_documented_columns_and_one_row_per_epoch_split_and_task(config, tmp_path):
    train(replace(config, validation=0.25), tmp_path)
    frame = read_results(tmp_path / RESULTS)
    assert {name: str(kind) for name, kind in frame.dtypes.items()} == SCHEMA
    assert list(frame.columns) == list(SCHEMA)
    keys = frame[["epoch", "split", "task"]].apply(tuple, axis=1).tolist()
    wanted = [(e, s, t) for e in (1, 2) for s in ("train", "validation", "test") for t in (-1, 0, 1, 2)]
    assert sorted(keys) == sorted(wanted)
    assert set(frame["suite"]) == {"tiny"} and set(frame["method"]) == {"wpl"} and set(frame["seed"]) == {0}
    assert frame[["accuracy", "balanced_accuracy"]].stack().between(0, 1).all() and (frame["loss"] > 0).all()
    wall = frame.groupby("epoch")["wall_s"].agg(["min", "max"])
    assert (wall["min"] == wall["max"]).all() and 0 < wall["min"][1] < wall["min"][2]


def test_task_minus_one_is_the_mean_of_the_tasks(config, suite):
    frame = table(train(config, suite=suite).rows)
    metrics = ["accuracy", "balanced_accuracy", "loss"]
    means = frame[frame["task"] == MEAN_TASK].set_index(["epoch", "split"])[metrics].sort_index()
    expected = frame[frame["task"] != MEAN_TASK].groupby(["epoch", "split"])[metrics].mean().sort_index()
    assert expected["accuracy"].nunique() > 1
    pd.testing.assert_frame_equal(means, expected, rtol=1e-12)


@pytest.mark.parametrize("instances", [4, 5])  # 5: the last decision is filled up with instances that must not count
def test_test_metrics_equal_a_count_image_by_image(config, suite, instances):
    run = train(replace(config, epochs=1, engine=replace(config.engine, instances=instances)), suite=suite)
    engine = run.engine
    observation, routes = engine.reset("test"), []
    for _ in range(engine.spec.n_depths):
        action = run.agent.act(observation, greedy=True)
        routes.append(action[:1])
        observation = engine.step(action).observation
    network, routes = engine.network.eval(), torch.stack(routes)
    for t in range(suite.n_tasks):
        hits, losses = {}, []
        for at in range(int(suite.test.offset[t]), int(suite.test.offset[t + 1])):
            image, label = suite.images[suite.test.image[at]], int(suite.test.label[at])
            with torch.no_grad():
                logits = network(image.expand(1, suite.n_tasks, 1, -1, -1, -1), routes)[0, t, 0]
            hits.setdefault(label, []).append(int(logits.argmax()) == label)
            losses.append(float(logits.logsumexp(0) - logits[label]))
        every = [hit for of_class in hits.values() for hit in of_class]
        (row,) = [row for row in run.rows if row["split"] == "test" and row["task"] == t]
        assert row["accuracy"] == pytest.approx(sum(every) / len(every), abs=1e-6)
        recalls = [sum(of_class) / len(of_class) for of_class in hits.values()]
        assert row["balanced_accuracy"] == pytest.approx(sum(recalls) / N_CLASSES[t], abs=1e-6)
        assert row["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-4)


def test_always_no_has_half_the_balanced_accuracy(suite):
    corner = suite.test.label[suite.test.offset[1] : suite.test.offset[2]]
    label = corner.expand(1, suite.n_tasks, -1).contiguous()
    tally = Tally(suite, torch.device("cpu"))
    tally.add(Batch(torch.zeros_like(label), label), Outcome(label == 0, label.float()))
    metrics = tally.metrics()
    assert metrics.accuracy[1] == 0.75 and metrics.balanced_accuracy[1] == 0.5 and metrics.loss[1] == 0.25


def test_instances_of_weight_zero_do_not_count(suite):
    label = torch.tensor([[[0, 1, 1]]]).expand(1, 3, 3).contiguous()
    weight = torch.tensor([1.0, 1.0, 0.0]).expand(1, 3, 3)
    tally = Tally(suite, torch.device("cpu"))
    tally.add(Batch(label, label, weight), Outcome(torch.tensor([True, False, True]).expand(1, 3, 3), label.float()))
    metrics = tally.metrics()
    assert metrics.accuracy.tolist() == metrics.balanced_accuracy.tolist() == metrics.loss.tolist() == [0.5] * 3


def test_a_tally_of_many_batches_is_that_of_all_instances_and_can_be_read_between(suite):
    generator = torch.Generator().manual_seed(0)
    shape = (150, suite.n_tasks, 2)
    correct, loss = torch.rand(shape, generator=generator) < 0.3, torch.rand(shape, generator=generator)
    label = torch.zeros(shape, dtype=torch.long)
    tally = Tally(suite, torch.device("cpu"))
    for n, (y, right, nats) in enumerate(zip(label[:, None], correct[:, None], loss[:, None], strict=True), start=1):
        tally.add(Batch(y, y), Outcome(right, nats))
        if n in (1, 64, 100, 150):
            metrics = tally.metrics()
            torch.testing.assert_close(metrics.accuracy, correct[:n].float().mean((0, 2)))
            torch.testing.assert_close(metrics.loss, loss[:n].mean((0, 2)))


def test_routes_file_holds_shares_per_epoch_that_evaluation_repeats(config, tmp_path):
    run = train(config, tmp_path)
    spec = run.engine.spec
    with np.load(tmp_path / ROUTES) as arrays:
        usage, policy = arrays["usage"], arrays["policy"]
    assert usage.shape == policy.shape == (2, spec.n_depths, spec.n_tasks, spec.n_actions)
    np.testing.assert_allclose(usage.sum(-1), 1, atol=1e-6)
    np.testing.assert_allclose(policy.sum(-1), 1, atol=1e-5)
    again = evaluate(run.engine, run.agent, "test")
    np.testing.assert_array_equal(again.usage.numpy(), usage[-1])


# -- determinism, stopping and resuming ------------------------------------------------------------------------------


@pytest.mark.parametrize("method", PLAYABLE)
def test_a_run_stopped_and_resumed_is_the_uninterrupted_one_to_the_bit(method, config, tmp_path):
    config = replace(config, method=method, validation=0.25)
    whole = train(config, tmp_path / "whole")
    with pytest.raises(Stop):
        train(config, tmp_path / "parts", on_epoch=stop_after(1))
    resumed = train(config, tmp_path / "parts", resume=True)
    assert resumed.epoch == 2
    assert same(timeless(resumed.state_dict()), timeless(whole.state_dict()))
    tables = [read_results(tmp_path / name / RESULTS).drop(columns=[*CLOCK]) for name in ("whole", "parts")]
    pd.testing.assert_frame_equal(*tables, check_exact=True)
    with np.load(tmp_path / "whole" / ROUTES) as a, np.load(tmp_path / "parts" / ROUTES) as b:
        assert a.files == b.files
        for key in a.files:
            np.testing.assert_array_equal(a[key], b[key])


@pytest.mark.parametrize(
    ("network", "engine"),
    [
        ({"recursive": True, "allow_stop": True}, {}),
        ({}, {"agreement": "reported", "lr_decay_epochs": 1}),
        ({}, {"instances": 1, "episodes": 3}),
    ],
)
def test_other_games_resume_to_the_bit_too(network, engine, config, suite, tmp_path):
    config = replace(
        config,
        method="q_learning",
        epochs=3,
        network=replace(config.network, **network),
        engine=replace(config.engine, **engine),
    )
    whole = train(config, suite=suite)
    with pytest.raises(Stop):
        train(config, tmp_path, suite=suite, on_epoch=stop_after(2))
    resumed = train(config, tmp_path, suite=suite, resume=True)
    assert same(timeless(resumed.state_dict()), timeless(whole.state_dict()))
    assert len(resumed.usage) == len(resumed.policies) == 3


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)  # sums depend on the number of threads
sys.path.insert(0, {tests!r})
from test_training import tiny_config
from routing_marl import training
play, calls = training.play_episode, 0
def dying(engine, agent, *returns):
    global calls
    calls += 1
    if calls == 9:
        os.kill(os.getpid(), signal.SIGKILL)
    return play(engine, agent, *returns)
training.play_episode = dying
training.train(tiny_config({suite!r}), Path({out!r}))
"""


@pytest.mark.slow
def test_a_run_killed_in_the_middle_of_an_epoch_resumes_to_the_bit(config, npz, tmp_path):
    assert training.Run(config).engine.steps_per_epoch == 6  # the ninth update is in the second epoch
    code = KILLED.format(tests=str(Path(__file__).parent), suite=str(npz), out=str(tmp_path))
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert read_checkpoint(tmp_path / CHECKPOINT)["epoch"] == 1
    resumed = train(config, tmp_path, resume=True)
    assert same(timeless(resumed.state_dict()), timeless(train(config).state_dict()))


def test_a_killed_first_epoch_starts_anew(config, suite, tmp_path, monkeypatch):
    def stop(*_):
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(training, "play_episode", stop)
        with pytest.raises(Stop):
            train(config, tmp_path, suite=suite)
    assert not (tmp_path / CHECKPOINT).exists()
    resumed = train(config, tmp_path, suite=suite, resume=True)
    assert same(timeless(resumed.state_dict()), timeless(train(config, suite=suite).state_dict()))


def test_one_seed_gives_one_run_and_another_seed_another(config, suite):
    def weights(run):
        return [parameter.detach() for parameter in run.engine.network.parameters()]

    config = replace(config, epochs=1)
    torch.manual_seed(1)
    one = train(config, suite=suite)
    torch.manual_seed(2)  # nothing may depend on the global generator
    twin, other = train(config, suite=suite), train(replace(config, seed=1), suite=suite)
    assert same(timeless(one.state_dict()), timeless(twin.state_dict()))
    assert not same(weights(one), weights(other))
    assert not same(one.agent.state_dict(), other.agent.state_dict())


def test_more_epochs_are_accepted_on_resume_and_fewer_change_nothing(config, suite, tmp_path):
    train(replace(config, epochs=1), tmp_path, suite=suite)
    longer = train(config, tmp_path, suite=suite, resume=True)
    assert longer.epoch == 2
    assert same(timeless(longer.state_dict()), timeless(train(config, suite=suite).state_dict()))
    before = files(tmp_path)
    assert train(replace(config, epochs=1), tmp_path, suite=suite, resume=True).epoch == 2
    assert files(tmp_path) == before


# -- learning --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [name for name in PLAYABLE if name != "random"])
def test_every_method_learns_more_than_the_commonest_class(method, config, suite):
    run = train(replace(config, method=method, epochs=12, network=NetworkConfig(hidden=16, depth=2)), suite=suite)
    (last,) = [r for r in run.rows if (r["epoch"], r["split"], r["task"]) == (12, "test", MEAN_TASK)]
    commonest = sum(1 / n for n in N_CLASSES) / 3
    assert last["balanced_accuracy"] > commonest + 0.1


@pytest.mark.parametrize("method", PLAYABLE)
def test_every_method_plays_with_reported_agreement(method, config, suite):
    run = train(
        replace(config, method=method, epochs=1, engine=replace(config.engine, agreement="reported")), suite=suite
    )
    assert run.engine.updates == run.engine.steps_per_epoch


def test_settings_of_other_methods_are_left_out(config):
    assert Run(replace(config, agent=AgentConfig(alpha=0.5, gamma=0.9))).config.agent.given() == {"gamma": 0.9}


def test_progress_is_reported_to_the_last_step(config, suite):
    seen = []
    train(config, suite=suite, on_progress=seen.append)
    last = seen[-1]
    assert last.step == last.n_steps == 2 * 6 and last.epoch == 2 and last.instances_per_s > 0
    assert 0 <= last.accuracy <= 1 and last.loss > 0
    assert [report.step for report in seen] == sorted(report.step for report in seen)


# -- losses that are not numbers -------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_names_its_update(config, suite, tmp_path):
    bold = replace(config, engine=replace(config.engine, lr=1e30))
    with pytest.raises(TrainingFailed, match=r"update 2 \(epoch 1\).* no checkpoint yet; try a lower lr than 1e\+30"):
        train(bold, tmp_path, suite=suite)
    assert not (tmp_path / CHECKPOINT).exists()


def test_a_last_update_that_breaks_the_network_is_no_good_checkpoint(config, suite, tmp_path):
    bold = replace(config, epochs=1, engine=replace(config.engine, lr=1e30, instances=N_TRAIN))
    with pytest.raises(TrainingFailed, match="the test loss after epoch 1 is not a finite number"):
        train(bold, tmp_path, suite=suite)
    assert not (tmp_path / CHECKPOINT).exists()


def test_the_last_good_checkpoint_survives_a_failure(config, suite, tmp_path):
    def poison(run):
        with torch.no_grad():
            next(run.engine.network.parameters()).fill_(math.nan)

    with pytest.raises(TrainingFailed, match=r"update 7 \(epoch 2\).* the checkpoint of epoch 1 is kept"):
        train(config, tmp_path, suite=suite, on_epoch=poison)
    assert read_checkpoint(tmp_path / CHECKPOINT)["epoch"] == 1
    resumed = train(config, tmp_path, suite=suite, resume=True)
    assert same(timeless(resumed.state_dict()), timeless(train(config, suite=suite).state_dict()))


# -- checkpoints that don't fit --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(npz, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    train(tiny_config(npz, epochs=1), folder)
    return folder


@pytest.fixture
def checkpoint(finished, tmp_path):
    path = tmp_path / "run" / CHECKPOINT
    path.parent.mkdir()
    path.write_bytes((finished / CHECKPOINT).read_bytes())
    return path


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"engine": EngineConfig(instances=4, lr=1e-2, lr_decay_epochs=0, rho=0.5)}, "engine.rho was 0.3, now 0.5"),
        ({"method": "random"}, "method was 'wpl', now 'random'"),
        ({"seed": 7}, "seed was 0, now 7"),
        ({"network": NetworkConfig(hidden=9, depth=2)}, "network.hidden was 8, now 9"),
        ({"agent": AgentConfig(gamma=0.5)}, "agent.gamma was None, now 0.5"),
    ],
)
def test_a_checkpoint_of_another_configuration_is_refused(change, difference, config, suite, checkpoint):
    before = files(checkpoint.parent)
    with pytest.raises(UserError, match="another configuration.*" + difference.replace(".", r"\.")):
        train(replace(config, **change), checkpoint.parent, suite=suite, resume=True)
    assert files(checkpoint.parent) == before


def test_a_checkpoint_of_a_version_with_fewer_options_is_gone_on_with(config, suite, checkpoint):
    state = read_checkpoint(checkpoint)
    for name in ("same_start", "own_fc"):
        del state["config"]["network"][name]
    torch.save(state, checkpoint)
    assert train(config, checkpoint.parent, suite=suite, resume=True).epoch == config.epochs
    del state["config"]["network"]["hidden"]  # which the run has given another value than the default
    torch.save(state, checkpoint)
    with pytest.raises(UserError, match=r"network\.hidden was 128, now 8"):
        train(config, checkpoint.parent, suite=suite, resume=True)


def test_a_new_option_leaves_the_names_of_runs_as_they_are(config, monkeypatch):
    many = [RunConfig(agent=AgentConfig(epsilon_steps=n)) for n in (1_000_000, 1_000_001)]
    assert [run.settings for run in many] == ["epsilon_steps=1e+06", "epsilon_steps=1000001"]
    names = [run.name for run in (config, replace(config, seed=1), replace(config, engine=EngineConfig(rho=0.5)))]
    assert len(set(names)) == 3
    identity = RunConfig.identity
    monkeypatch.setattr(RunConfig, "identity", lambda self: identity(self) | {"new": 1})
    assert [config.name, replace(config, seed=1).name] == names[:2]


def test_a_checkpoint_of_a_suite_that_has_changed_is_refused(config, checkpoint):
    images, labels = tiny_arrays(24, 0)
    other = TaskSuite.from_arrays("tiny", images, {"a": labels[:, 2]}, {"a": labels[:, 2]}, test_images=255 - images)
    with pytest.raises(UserError, match="does not fit suite tiny as it is now"):
        train(config, checkpoint.parent, suite=other, resume=True)


@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_checkpoint_cut_off_is_refused(keep, config, suite, checkpoint):
    content = checkpoint.read_bytes()
    checkpoint.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(UserError, match="not a readable checkpoint"):
        train(config, checkpoint.parent, suite=suite, resume=True)
    assert checkpoint.read_bytes() == content[: int(keep * len(content))]


class Malicious:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("kind", ["noise", "text", "numbers", "pickle", "torch", "other dict", "bare dict", "folder"])
def test_what_is_no_checkpoint_is_refused_and_never_executed(kind, tmp_path):
    path, marker = tmp_path / CHECKPOINT, tmp_path / "executed"
    if kind == "noise":
        path.write_bytes(np.random.default_rng(0).bytes(5000))
    elif kind == "text":
        path.write_text("once upon a time\n" * 50)
    elif kind == "numbers":
        with path.open("wb") as file:
            np.savez(file, x=np.zeros(3))
    elif kind == "pickle":
        path.write_bytes(pickle.dumps({"format": 1, "config": Malicious(marker)}))
    elif kind == "torch":
        torch.save({"format": 1, "config": Malicious(marker)}, path)
    elif kind == "other dict":
        torch.save({"format": 99, "config": {}, "epoch": 1}, path)
    elif kind == "bare dict":
        torch.save({"format": CHECKPOINT_FORMAT}, path)
    else:
        path.mkdir()
    with pytest.raises(UserError, match="checkpoint"):
        read_checkpoint(path)
    assert not marker.exists()


def test_no_noise_gets_through_as_another_error(tmp_path):
    rng, path = np.random.default_rng(0), tmp_path / CHECKPOINT
    for size in [*range(40), *range(40, 2000, 70)]:
        path.write_bytes(rng.bytes(size) if size % 2 else b"\x80\x02" + rng.bytes(size))  # as a pickle begins
        with pytest.raises(UserError, match="not a readable checkpoint"):
            read_checkpoint(path)


def test_a_checkpoint_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="is not there"):
        read_checkpoint(tmp_path / CHECKPOINT)


@pytest.mark.parametrize("kind", ["missing", "noise", "columns"])
def test_results_that_are_no_results_are_refused(kind, tmp_path):
    path = tmp_path / RESULTS
    if kind == "noise":
        path.write_bytes(b"PAR1 but no more")
    elif kind == "columns":
        pd.DataFrame({"suite": ["digits"]}).to_parquet(path)
    with pytest.raises(UserError, match={"missing": "not there", "noise": "Parquet", "columns": "no column"}[kind]):
        read_results(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda frame: pd.concat([frame, frame[:1]]),
            "two rows for suite made_up method wpl seed 0 epoch 1 split test",
        ),
        (lambda frame: frame.assign(task="all"), "something else than int64 in its column task"),
        (lambda frame: frame.assign(seed=np.nan), "something else than int64 in its column seed"),
    ],
)
def test_tables_that_would_be_misread_are_refused(change, message, tmp_path):
    row = {**dict.fromkeys(SCHEMA, 0), "run": "r", "suite": "made_up", "method": "wpl", "settings": "", "split": "test"}
    frame = pd.DataFrame([{**row, "epoch": epoch} for epoch in (1, 2)]).astype(SCHEMA)
    change(frame).to_parquet(tmp_path / RESULTS)
    with pytest.raises(UserError, match=message):
        read_results(tmp_path / RESULTS)
    frame.assign(task=frame["task"].astype(str)).to_parquet(tmp_path / RESULTS)  # a number is a number
    pd.testing.assert_frame_equal(read_results(tmp_path / RESULTS), frame, check_exact=True)


# -- the output folder -----------------------------------------------------------------------------------------------


def test_an_existing_run_is_left_untouched(config, suite, checkpoint):
    before = files(checkpoint.parent)
    with pytest.raises(UserError, match="holds a run already; add --resume"):
        train(config, checkpoint.parent, suite=suite)
    assert files(checkpoint.parent) == before


def test_bad_settings_leave_no_folder_behind(config, suite, tmp_path):
    with pytest.raises(UserError, match="policy_rate is -1"):
        train(replace(config, agent=AgentConfig(policy_rate=-1.0)), tmp_path / "out", suite=suite)
    with pytest.raises(UserError, match=r"method is 'wpk'.*did you mean wpl"):
        train(replace(config, method="wpk"), tmp_path / "out", suite=suite)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("below", ["", "deeper/run"])
def test_an_output_folder_that_is_a_file_is_refused(below, config, suite, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match=r"the output folder .* can't be written to"):
        train(config, tmp_path / "file" / below, suite=suite)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_read_only_output_folder_is_refused_before_any_work(config, suite, tmp_path, monkeypatch):
    def read_only(*_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "write_bytes", read_only)  # root may write everywhere, so it can't be had for real
    with pytest.raises(UserError, match="can't be written to: Permission denied"):
        train(config, tmp_path, suite=suite, on_progress=lambda _: pytest.fail("it trained"))
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_up_while_saving_keeps_the_last_checkpoint(config, suite, tmp_path, monkeypatch):
    def full(_, path):
        path.write_bytes(b"half of it")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fill(run):
        saved.append((tmp_path / CHECKPOINT).read_bytes())
        monkeypatch.setattr(torch, "save", full)

    saved = []
    with pytest.raises(UserError, match=r"checkpoint\.pt can't be written: No space left on device; what was there"):
        train(config, tmp_path, suite=suite, on_epoch=fill)
    assert (tmp_path / CHECKPOINT).read_bytes() == saved[0]
    assert {path.name for path in tmp_path.iterdir()} == {CHECKPOINT, RESULTS, ROUTES, CONFIG, ENVIRONMENT}
    monkeypatch.undo()
    resumed = train(config, tmp_path, suite=suite, resume=True)
    assert same(timeless(resumed.state_dict()), timeless(train(config, suite=suite).state_dict()))


@pytest.mark.parametrize("how", ["bytes", "torch", "fsync"])
def test_a_file_is_whole_or_the_old_one(how, tmp_path, monkeypatch):
    """A file that may not grow beyond 10,000 bytes: the kernel says no, as it does on a full disk."""
    path, limits = tmp_path / "file", resource.getrlimit(resource.RLIMIT_FSIZE)
    path.write_text("old")
    writers = {
        "bytes": lambda temporary: temporary.write_bytes(bytes(100_000)),
        "torch": lambda temporary: torch.save(torch.zeros(100_000), temporary),
        "fsync": lambda temporary: temporary.write_bytes(b"new"),
    }

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if how == "fsync":
        monkeypatch.setattr(os, "fsync", full)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(UserError, match="can't be written") as caught:
            write_whole(path, writers[how])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(caught.value)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_gone_is_an_error_of_one_line(tmp_path):
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "gone" / "x.json", tmp_path / "file" / "x.json"):
        with pytest.raises(UserError, match=r"x\.json can't be written"):
            write_json(path, {})
        with pytest.raises(UserError, match="is no folder that takes files"):
            check_output_file(path)
    with pytest.raises(UserError, match="is a folder"):
        check_output_file(tmp_path)
    check_output_file(tmp_path / "new.json")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("device", ["cpu:x", "cuda:-3", "gpu"])
def test_devices_that_do_not_exist_are_refused(device):
    with pytest.raises(UserError, match=f"device is '{device}'"):
        pick_device(device)


@pytest.mark.parametrize("split", ["train", "test"])
def test_nobody_learns_from_being_evaluated(split, npz):
    run = Run(RunConfig(suite=str(npz), epochs=1))
    run.train_epoch()
    before = pickle.dumps(
        [*(p.detach().cpu().numpy() for p in run.engine.network.state_dict().values()), run.engine.updates]
    )
    evaluate(run.engine, run.agent, split)
    after = pickle.dumps(
        [*(p.detach().cpu().numpy() for p in run.engine.network.state_dict().values()), run.engine.updates]
    )
    assert before == after


def test_the_environment_is_that_of_the_process_that_trained(config, suite, tmp_path):
    run = train(config, tmp_path, suite=suite)
    kept = json.loads((tmp_path / ENVIRONMENT).read_text())
    assert kept["torch"] == torch.__version__ and kept["device"] == run.device and kept["threads"] == 1
    assert kept["processor"] and (kept["commit"] is None or re.fullmatch(r"[0-9a-f]{12}(-dirty)?", kept["commit"]))
    (tmp_path / ENVIRONMENT).write_text("{}")
    train(config, tmp_path, suite=suite, resume=True)  # nothing is left to do: whoever did it stays named
    assert (tmp_path / ENVIRONMENT).read_text() == "{}"
