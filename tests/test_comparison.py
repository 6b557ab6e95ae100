import math
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_training import (
    CLOCK,
    one_thread,  # noqa: F401 (a fixture)
    timeless,
    tiny_config,
    train,
    write_tiny_npz,
)

from routing_marl import comparison, plots
from routing_marl.checkpoints import CHECKPOINT, read_checkpoint
from routing_marl.cli import main
from routing_marl.comparison import RUNS
from routing_marl.config import AgentConfig, RunConfig
from routing_marl.errors import UserError
from routing_marl.pool import local_runner
from routing_marl.results import SCHEMA, read_results
from routing_marl.summary import final_scores, labelled, summarise
from routing_marl.training import RESULTS
from routing_marl.units import Failure, run_unit


def here(units, on_progress):
    """Runs units here, one after the other: no seconds of importing torch for each worker."""
    return [Failure(unit.config, reason) for unit in units if (reason := run_unit(unit, on_progress))]


def compare(configs, out, *, runner=here, **options):
    return comparison.compare(configs, out, runner=runner, **options)


@pytest.fixture(scope="module")
def npz(tmp_path_factory):
    return write_tiny_npz(tmp_path_factory.mktemp("suite") / "tiny.npz")


@pytest.fixture
def configs(npz):
    return [tiny_config(npz, method=method, seed=seed) for seed in (0, 1) for method in ("wpl", "shared_bottom")]


def without_clock(frame):
    return frame.drop(columns=[*CLOCK])


def times(out):
    return {path: path.stat().st_mtime_ns for path in (out / RUNS).glob("*/*") if path.suffix != ".json"}


# -- runs ------------------------------------------------------------------------------------------------------------


def test_all_runs_are_there_in_order_and_equal_single_runs(configs, tmp_path):
    frame, failures = compare(configs, tmp_path)
    assert failures == [] and list(frame.columns) == list(SCHEMA)
    keys = frame[["seed", "method", "epoch", "split", "task"]].apply(tuple, axis=1).tolist()
    wanted = [
        (config.seed, config.method, epoch, split, task)
        for config in configs
        for epoch in (1, 2)
        for split in ("train", "test")
        for task in (-1, 0, 1, 2)
    ]
    assert keys == wanted
    pd.testing.assert_frame_equal(read_results(tmp_path / RESULTS), frame, check_exact=True)
    single = train(configs[3], tmp_path / "single")
    rows = frame[(frame["seed"] == 1) & (frame["method"] == "shared_bottom")].reset_index(drop=True)
    expected = without_clock(read_results(tmp_path / "single" / RESULTS))
    pd.testing.assert_frame_equal(without_clock(rows), expected, check_exact=True)
    state = read_checkpoint(tmp_path / RUNS / configs[3].name / CHECKPOINT)
    assert timeless(state)["rows"] == timeless(single.state_dict())["rows"]


def test_finished_runs_are_kept_and_lost_ones_made_again(configs, tmp_path):
    first, _ = compare(configs, tmp_path)
    before = times(tmp_path)
    reports = []
    again, failures = compare(configs, tmp_path, on_progress=reports.append)
    assert times(tmp_path) == before and failures == []
    assert {(report.run, report.step / report.n_steps) for report in reports} == {(c.name, 1.0) for c in configs}
    pd.testing.assert_frame_equal(again, first, check_exact=True)
    lost = tmp_path / RUNS / configs[1].name
    for path in lost.iterdir():
        path.unlink()
    third, _ = compare(configs, tmp_path)
    after = times(tmp_path)
    assert {path.parent for path in before if after[path] != before[path]} == {lost}
    pd.testing.assert_frame_equal(without_clock(third), without_clock(first), check_exact=True)


def test_without_resume_all_runs_are_made_again(configs, tmp_path):
    first, _ = compare(configs[:2], tmp_path)
    before = times(tmp_path)
    again, _ = compare(configs[:2], tmp_path, resume=False)
    after = times(tmp_path)
    assert before.keys() == after.keys() and all(after[path] != before[path] for path in before)
    pd.testing.assert_frame_equal(without_clock(again), without_clock(first), check_exact=True)


def test_an_unfinished_run_goes_on_from_its_checkpoint(configs, tmp_path):
    expected, _ = compare(configs[:1], tmp_path / "whole")

    class Stop(Exception):
        pass

    def stop(_):
        raise Stop

    with pytest.raises(Stop):
        train(configs[0], tmp_path / "parts" / RUNS / configs[0].name, on_epoch=stop)
    reports = []
    frame, _ = compare(configs[:1], tmp_path / "parts", on_progress=reports.append)
    assert {report.epoch for report in reports} == {2}  # the first epoch was not played again
    pd.testing.assert_frame_equal(without_clock(frame), without_clock(expected), check_exact=True)


def test_a_script_without_its_guard_is_told(configs, tmp_path, monkeypatch):
    monkeypatch.setattr(multiprocessing.current_process(), "_inheriting", True, raising=False)  # as in a new worker
    with pytest.raises(UserError, match="a worker came upon compare in its script"):
        compare(configs, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_two_lengths_of_the_same_run_are_refused(configs, tmp_path):
    """Their common epochs would count twice, as if they were seeds."""
    longer = [*configs, replace(configs[1], epochs=5)]
    with pytest.raises(UserError, match=r"epochs is 2 and 5 for shared_bottom on .*, seed 0; give one"):
        compare(longer, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_run_that_diverges_is_reported_and_the_others_go_on(configs, tmp_path):
    bold = replace(configs[0], engine=replace(configs[0].engine, lr=1e30))
    frame, failures = compare([bold, *configs[1:]], tmp_path)
    assert [failure.config for failure in failures] == [bold]
    assert failures[0].reason.startswith("the loss of update 2") and "\n" not in failures[0].reason
    runs = frame[["method", "seed"]].drop_duplicates().apply(tuple, axis=1).tolist()
    assert runs == [(config.method, config.seed) for config in configs[1:]]


def test_a_broken_checkpoint_is_reported_and_the_others_go_on(configs, tmp_path):
    broken = tmp_path / RUNS / configs[2].name / CHECKPOINT
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"half of it")
    frame, failures = compare(configs, tmp_path)
    assert [failure.config for failure in failures] == [configs[2]]
    assert "not a readable checkpoint" in failures[0].reason and str(broken) in failures[0].reason
    assert frame[["method", "seed"]].drop_duplicates().shape[0] == 3
    assert broken.read_bytes() == b"half of it"


def test_results_of_another_run_are_not_taken_for_a_run_s_own(configs, tmp_path):
    compare(configs[:2], tmp_path)
    ours, theirs = (tmp_path / RUNS / config.name / RESULTS for config in configs[:2])
    ours.write_bytes(theirs.read_bytes())
    frame, failures = compare(configs[:2], tmp_path)
    assert [failure.config for failure in failures] == [configs[0]]
    assert f"{ours} has rows of {configs[1].name}; delete its folder" in failures[0].reason
    assert set(frame["run"]) == {configs[1].name}


def test_nothing_is_written_where_no_run_ends_well(configs, tmp_path):
    bold = replace(configs[0], engine=replace(configs[0].engine, lr=1e30))
    frame, failures = compare([bold], tmp_path)
    assert frame.empty and len(failures) == 1 and not (tmp_path / RESULTS).exists()


@pytest.mark.slow  # two processes import torch
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_workers_end_with_a_comparison_that_is_killed(npz, tmp_path):
    command = [sys.executable, "-m", "routing_marl", "compare", "--suite", str(npz), "--out", str(tmp_path)]
    options = ["--methods", "wpl,random", "--seeds", "0", "--epochs", "100000", "--workers", "2", "--threads", "1"]
    comparison = subprocess.Popen([*command, *options], start_new_session=True, stdout=subprocess.DEVNULL)
    try:
        wait_until(lambda: len(list(tmp_path.glob("runs/*/checkpoint.pt"))) == 2)
        assert len(alive(comparison.pid)) >= 3
        comparison.kill()
        comparison.wait()
        wait_until(lambda: not alive(comparison.pid))
    finally:
        if alive(comparison.pid):
            os.killpg(comparison.pid, signal.SIGKILL)
        comparison.wait()


def alive(group):
    """The processes of a group, but for those that nobody has buried yet."""
    processes = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, process_group = path.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue  # it has just ended
        if int(process_group) == group and state != "Z":
            processes.append(path.parent.name)
    return processes


def wait_until(condition, seconds=240.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "killpg"), reason="needs process groups")
def test_a_comparison_that_is_killed_again_and_again_ends_like_one_that_is_not(tmp_path):
    """``kill -9`` of everything, twice, at random; then the same command once more."""
    command = [
        sys.executable,
        "-m",
        "routing_marl",
        "compare",
        "--methods",
        "wpl,cross_stitch",
        "--seeds",
        "0,1",
    ]
    command += ["--epochs", "3", "--instances", "32", "--workers", "2", "--threads", "1", "--out"]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    rng = np.random.default_rng()
    for n_begun in (1, 3):
        process = subprocess.Popen([*command, str(killed)], start_new_session=True, stdout=subprocess.DEVNULL)
        try:
            wait_until(lambda n=n_begun: len(list(killed.glob("runs/*/checkpoint.pt"))) >= n)
            time.sleep(rng.uniform(0, 0.5))
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        wait_until(lambda pid=process.pid: not alive(pid))
    for folder in (killed, whole):
        subprocess.run([*command, str(folder)], check=True, stdout=subprocess.DEVNULL)
    frame, expected = read_results(killed / RESULTS), read_results(whole / RESULTS)
    assert frame["run"].nunique() == 4
    pd.testing.assert_frame_equal(without_clock(frame), without_clock(expected), check_exact=True)
    assert [path for path in killed.rglob(".*") if path.name != ".lock"] == []


@pytest.mark.slow  # three processes import torch
def test_two_processes_give_what_one_does_also_after_an_interruption(configs, tmp_path):
    """The real pool: stopped as by Ctrl-C at the first report, then finished by two workers."""

    def interrupt(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare(configs[:2], tmp_path, runner=local_runner(1, 1), on_progress=interrupt)
    assert not (tmp_path / RESULTS).exists()
    frame, failures = compare(configs[:2], tmp_path, runner=local_runner(2, 1))
    assert failures == []
    for config in configs[:2]:
        rows = frame[frame["method"] == config.method].reset_index(drop=True)
        expected = pd.DataFrame(timeless(train(config).state_dict())["rows"], columns=without_clock(rows).columns)
        pd.testing.assert_frame_equal(without_clock(rows), expected.astype(without_clock(rows).dtypes))


def test_two_comparisons_in_one_folder_don_t_meet(configs, tmp_path):
    def meet(progress):
        with pytest.raises(UserError, match="another comparison is at work"):
            compare(configs[1:2], tmp_path)

    frame, failures = compare(configs[:1], tmp_path, on_progress=meet)
    assert failures == [] and set(frame["method"]) == {"wpl"}
    assert compare(configs[1:2], tmp_path)[1] == []  # the lock is gone


def test_what_a_killed_process_left_half_written_is_removed(configs, tmp_path):
    left = tmp_path / RUNS / configs[0].name / ".checkpoint.pt.123.partial"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    compare(configs[:1], tmp_path)
    assert not left.exists() and {path.name for path in left.parent.iterdir()} >= {CHECKPOINT, RESULTS}


def test_settings_that_a_method_does_not_have_make_no_runs_of_their_own(npz, tmp_path):
    wanted = [
        tiny_config(npz, method=method, epochs=1, agent=AgentConfig(floor=floor))
        for method in ("wpl", "random")
        for floor in (0.0, 0.1)
    ]
    frame, _ = compare(wanted, tmp_path)
    runs = frame[["method", "settings"]].drop_duplicates().apply(tuple, axis=1).tolist()
    assert [(method, settings[-9:]) for method, settings in runs] == [
        ("wpl", "8 floor=0"),
        ("wpl", "floor=0.1"),
        ("random", " hidden=8"),
    ]
    assert len(list((tmp_path / RUNS).iterdir())) == 3


MORTAL = '''
import os, signal
from routing_marl.agents import RandomAgent

class Mortal(RandomAgent):
    """Takes its process with it in the tenth update, in the second epoch: once, or in every process."""

    def learn(self, trajectory):
        self.calls = getattr(self, "calls", 0) + 1
        if self.calls == 10 - 6 * os.path.exists("died") and ({always} or not os.path.exists("died")):
            open("died", "a").write("x")
            os.kill(os.getpid(), signal.SIGKILL)
        return super().learn(trajectory)
'''


@pytest.mark.slow  # processes import torch
@pytest.mark.parametrize("always", [False, True])
def test_a_process_that_dies_harms_no_other_unit(always, configs, npz, tmp_path, monkeypatch):
    (tmp_path / "mortal.py").write_text(MORTAL.format(always=always))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    mortal = tiny_config(npz, method="mortal:Mortal", epochs=3)
    reports = []
    frame, failures = compare([mortal, *configs], tmp_path, runner=local_runner(2, 1), on_progress=reports.append)
    died = (tmp_path / "died").read_text()
    expected, _ = compare(configs, tmp_path / "alone")
    others = frame[frame["method"] != mortal.method].reset_index(drop=True)
    pd.testing.assert_frame_equal(without_clock(others), without_clock(expected), check_exact=True)
    if always:
        assert [failure.config for failure in failures] == [mortal] and died == "xxx"
        assert failures[0].reason.startswith("its process was killed by SIGKILL") and "3 times" in failures[0].reason
    else:
        assert failures == [] and died == "x"
        assert set(frame[frame["method"] == mortal.method]["epoch"]) == {1, 2, 3}
        epochs = [report.epoch for report in reports if report.run == mortal.name]
        assert epochs == sorted(epochs)  # the first epoch was not played again


# -- numbers ---------------------------------------------------------------------------------------------------------


def scores(entries):
    """Rows of a results table: (method, seed, epoch, split, task, accuracy)."""
    rows = [
        {
            **dict.fromkeys(SCHEMA, 0.0),
            "suite": "toy",
            "run": "",
            "settings": "",
            **dict(zip(("method", "seed", "epoch", "split", "task", "accuracy"), entry, strict=True)),
        }
        for entry in entries
    ]
    return pd.DataFrame(rows).assign(balanced_accuracy=lambda f: f["accuracy"] / 2).astype(SCHEMA)


TOY = scores(
    [
        ("a", 0, 1, "test", -1, 0.1),
        ("a", 0, 2, "test", -1, 0.5),
        ("a", 0, 2, "test", 0, 0.99),
        ("a", 0, 2, "train", -1, 0.98),
        ("a", 1, 2, "test", -1, 0.6),
        ("a", 2, 2, "test", -1, 0.7),
        ("b", 0, 3, "test", -1, 0.8),
        ("b", 0, 2, "test", -1, 0.9),
        ("b", 1, 2, "test", -1, 0.6),
    ]
)


def test_final_scores_are_those_of_each_runs_last_epoch():
    final = final_scores(TOY)
    assert final["accuracy"].tolist() == [0.5, 0.6, 0.7, 0.8, 0.6]
    assert final_scores(TOY, "train")["accuracy"].tolist() == [0.98]


def test_summary_by_hand():
    summary = summarise(TOY)
    assert summary["method"].tolist() == ["b", "a"] and summary["seeds"].tolist() == [2, 3]  # the best first
    assert summary["accuracy"].tolist() == pytest.approx([0.7, 0.6])
    assert summary["balanced_accuracy"].tolist() == pytest.approx([0.35, 0.3])
    # Student's quantiles at 97.5 %: 12.7062 for one degree of freedom, 4.30265 for two. Standard errors by hand.
    by_hand = [12.7062 * math.sqrt(0.02) / math.sqrt(2), 4.30265 * 0.1 / math.sqrt(3)]
    assert summary["accuracy_ci"].tolist() == pytest.approx(by_hand, rel=1e-5)
    # Curves: b has 0.9 then 0.8 in epochs 2 and 3, and a single 0.6; a has 0.1 then 0.5, and single 0.6 and 0.7.
    assert summary["auc"].tolist() == pytest.approx([(0.85 + 0.6) / 2, (0.3 + 0.6 + 0.7) / 3])
    assert summary["iqm"].isna().all()  # not all runs have scores per task


@pytest.mark.parametrize(("n_seeds", "has_interval"), [(4, False), (5, True)])
def test_the_interquartile_mean_has_an_interval_from_five_seeds_on(n_seeds, has_interval):
    values = np.random.default_rng(0).random((n_seeds, 3))
    entries = [("a", s, 1, "test", t, values[s, t]) for s in range(n_seeds) for t in range(3)]
    entries += [("a", s, 1, "test", -1, values[s].mean()) for s in range(n_seeds)]
    (row,) = summarise(scores(entries)).to_dict("records")
    ordered, cut = np.sort(values.ravel()), int(0.25 * values.size)
    assert row["iqm"] == pytest.approx(ordered[cut:-cut].mean())
    assert (row["iqm_low"] < row["iqm"] < row["iqm_high"]) == has_interval
    assert math.isnan(row["iqm_low"]) != has_interval


def test_suites_and_settings_have_lines_of_their_own():
    parts = [TOY, TOY.assign(settings="rho=0", accuracy=0.25), TOY.assign(suite="other", accuracy=0.375)]
    summary = summarise(pd.concat(parts))
    lines = summary[["suite", "method", "settings"]].apply(tuple, axis=1).tolist()
    assert lines[:2] == [("other", "b", ""), ("other", "a", "")]  # of equal accuracy: by balanced accuracy
    assert lines[2:] == [("toy", "b", ""), ("toy", "a", ""), ("toy", "b", "rho=0"), ("toy", "a", "rho=0")]
    assert summary["accuracy"].tolist() == pytest.approx([0.375, 0.375, 0.7, 0.6, 0.25, 0.25])


def test_labels_name_what_not_all_have():
    frame = pd.DataFrame({"method": ["a", "a", "b"], "settings": ["hidden=8 rho=0", "hidden=8 rho=1", "hidden=8"]})
    assert labelled(frame)["method"].tolist() == ["a rho=0", "a rho=1", "b"]
    assert labelled(frame[:1])["method"].tolist() == ["a"]


def test_settings_name_what_is_no_default(npz):
    assert RunConfig(method="random", seed=3, epochs=2, suite="mnist_mtl").settings == ""
    config = tiny_config(npz, validation=0.25, agent=AgentConfig(floor=0.0, advantage="averaged"))
    wanted = "validation=0.25 instances=4 lr=0.01 lr_decay_epochs=0 depth=2 hidden=8 advantage=averaged floor=0"
    assert config.settings == wanted


# -- pictures --------------------------------------------------------------------------------------------------------


def test_learning_curves_have_a_panel_per_metric_and_a_line_per_method():
    figure = plots.learning_curves(TOY, floors={"accuracy": 0.55})
    left, right = figure.axes
    assert [line.get_label() for line in left.lines] == ["a", "b", "always the commonest class"]
    assert [line.get_label() for line in right.lines] == ["a", "b"]
    np.testing.assert_allclose(left.lines[0].get_xydata(), [[1, 10], [2, 60]])  # percent, mean over seeds
    np.testing.assert_allclose(left.lines[1].get_xydata(), [[2, 75], [3, 80]])
    np.testing.assert_allclose(left.lines[2].get_ydata(), 55)
    assert len(left.collections) == 2  # the bands
    assert (left.get_xlabel(), left.get_ylabel()) == ("epoch", "test accuracy / %")
    assert len(plots.learning_curves(TOY, metrics=["loss"]).axes) == 1


def test_learning_curves_can_be_drawn_against_training_time():
    seconds = 10.0 * TOY["epoch"] + TOY["seed"]  # seed s takes s seconds more until each epoch's end
    (axes,) = plots.learning_curves(TOY.assign(wall_s=seconds), metrics=["accuracy"], unit="wall_s").axes
    np.testing.assert_allclose(axes.lines[0].get_xydata(), [[10, 10], [21, 60]])  # mean over seeds 0, and 0 to 2
    assert axes.get_xlabel() == "training / s"


def test_route_matrices_have_a_panel_per_router_and_depth():
    usages = {"a": np.eye(4)[None, :3].repeat(2, 0), "b": np.full((1, 3, 4), 0.25)}
    figure = plots.route_matrices(usages, ["t0", "t1", "t2"])
    panels = figure.axes[:4]
    shown = [axes for axes in panels if axes.images]
    assert len(shown) == 3 and not panels[3].axison  # b has one depth only
    np.testing.assert_array_equal(shown[0].images[0].get_array(), np.eye(4)[:3])
    assert [label.get_text() for label in shown[0].get_yticklabels()] == ["t0", "t1", "t2"]
    assert shown[0].images[0].get_clim() == (0, 1)
    assert figure.axes[4].get_ylabel() == "share of decisions"


def test_pictures_are_written_whole(tmp_path):
    path = tmp_path / "curves.png"
    plots.save(plots.learning_curves(TOY), path)
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and os.listdir(tmp_path) == ["curves.png"]


# TensorBoard's protobuf warns on import in some versions; that is not ours.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_events_hold_the_means(npz, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = tmp_path / "out"
    command = ["train", "--suite", str(npz), "--epochs", "2", "--hidden", "8", "--depth", "2", "--out", str(out)]
    main([*command, "--device", "cpu"])
    assert not (out / "tensorboard").exists()  # nobody asked
    with pytest.raises(SystemExit):  # refused: the folder holds a run, and no events are left there either
        main([*command, "--device", "cpu", "--tensorboard"])
    assert not (out / "tensorboard").exists()
    main([*command[:-1], str(tmp_path / "with"), "--device", "cpu", "--tensorboard"])
    events = EventAccumulator(str(tmp_path / "with" / "tensorboard")).Reload()
    frame = read_results(tmp_path / "with" / RESULTS)
    rows = frame[(frame["split"] == "test") & (frame["task"] == -1)]
    written = events.Scalars("test/accuracy")
    assert [event.step for event in written] == [1, 2]
    np.testing.assert_allclose([event.value for event in written], rows["accuracy"], rtol=1e-6)
    assert set(events.Tags()["scalars"]) == {
        f"{split}/{metric}" for split in ("train", "test") for metric in ("accuracy", "balanced_accuracy", "loss")
    }
