import math
import os
import queue
import signal
import subprocess
import sys
import time
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

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
from routing_marl.cli import main
from routing_marl.comparison import RUNS, compare, final_scores, half_interval, summarise
from routing_marl.results import SCHEMA, read_results
from routing_marl.training import CHECKPOINT, RESULTS, read_checkpoint


class InlinePool:
    """Runs what a pool of processes would run, here and at once: no second of importing torch for each worker."""

    def __init__(self, workers, context, initializer, arguments):
        self._processes = {}
        initializer(1, *arguments[1:])

    def submit(self, run, *arguments):
        future = Future()
        try:
            future.set_result(run(*arguments))
        except Exception as error:
            future.set_exception(error)
        return future

    def shutdown(self, **_):
        pass


@pytest.fixture
def inline(monkeypatch):
    context = SimpleNamespace(Queue=queue.Queue)
    monkeypatch.setattr(comparison, "ProcessPoolExecutor", InlinePool)
    monkeypatch.setattr(comparison, "multiprocessing", SimpleNamespace(get_context=lambda _: context))
    monkeypatch.setattr(comparison, "_progress", None)


@pytest.fixture(scope="module")
def npz(tmp_path_factory):
    return write_tiny_npz(tmp_path_factory.mktemp("suite") / "tiny.npz")


@pytest.fixture
def configs(npz):
    return [tiny_config(npz, method=method, seed=seed) for seed in (0, 1) for method in ("wpl", "shared_bottom")]


def without_clock(frame):
    return frame.drop(columns=[*CLOCK])


def times(out):
    return {path: path.stat().st_mtime_ns for path in (out / RUNS).glob("*/*") if path.name != "config.json"}


# -- runs ------------------------------------------------------------------------------------------------------------


def test_all_runs_are_there_in_order_and_equal_single_runs(configs, tmp_path, inline):
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


def test_finished_runs_are_kept_and_lost_ones_made_again(configs, tmp_path, inline):
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


def test_without_resume_all_runs_are_made_again(configs, tmp_path, inline):
    first, _ = compare(configs[:2], tmp_path)
    before = times(tmp_path)
    again, _ = compare(configs[:2], tmp_path, resume=False)
    after = times(tmp_path)
    assert before.keys() == after.keys() and all(after[path] != before[path] for path in before)
    pd.testing.assert_frame_equal(without_clock(again), without_clock(first), check_exact=True)


def test_an_unfinished_run_goes_on_from_its_checkpoint(configs, tmp_path, inline):
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


def test_a_run_that_diverges_is_reported_and_the_others_go_on(configs, tmp_path, inline):
    bold = replace(configs[0], engine=replace(configs[0].engine, lr=1e30))
    frame, failures = compare([bold, *configs[1:]], tmp_path)
    assert [failure.config for failure in failures] == [bold]
    assert failures[0].reason.startswith("TrainingFailed: the loss of update 2") and "\n" not in failures[0].reason
    runs = frame[["method", "seed"]].drop_duplicates().apply(tuple, axis=1).tolist()
    assert runs == [(config.method, config.seed) for config in configs[1:]]


def test_a_broken_checkpoint_is_reported_and_the_others_go_on(configs, tmp_path, inline):
    broken = tmp_path / RUNS / configs[2].name / CHECKPOINT
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"half of it")
    frame, failures = compare(configs, tmp_path)
    assert [failure.config for failure in failures] == [configs[2]]
    assert "not a readable checkpoint" in failures[0].reason and str(broken) in failures[0].reason
    assert frame[["method", "seed"]].drop_duplicates().shape[0] == 3
    assert broken.read_bytes() == b"half of it"


def test_nothing_is_written_where_no_run_ends_well(configs, tmp_path, inline):
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


@pytest.mark.slow  # three processes import torch
def test_two_processes_give_what_one_does_also_after_an_interruption(configs, tmp_path):
    """The real pool: stopped as by Ctrl-C at the first report, then finished by two workers."""

    def interrupt(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare(configs[:2], tmp_path, workers=1, on_progress=interrupt)
    assert not (tmp_path / RESULTS).exists()
    frame, failures = compare(configs[:2], tmp_path, workers=2)
    assert failures == []
    for config in configs[:2]:
        rows = frame[frame["method"] == config.method].reset_index(drop=True)
        expected = pd.DataFrame(timeless(train(config).state_dict())["rows"], columns=without_clock(rows).columns)
        pd.testing.assert_frame_equal(without_clock(rows), expected.astype(without_clock(rows).dtypes))


# -- numbers ---------------------------------------------------------------------------------------------------------


def scores(entries):
    """Rows of a results table: (method, seed, epoch, split, task, accuracy)."""
    rows = [
        {
            **dict.fromkeys(SCHEMA, 0.0),
            "suite": "toy",
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


@pytest.mark.parametrize(
    ("values", "level", "expected"),
    [
        ([0.0, 2.0], 0.95, 12.7062),
        ([1.0, 2.0, 3.0, 4.0, 5.0], 0.95, 2.776445 * math.sqrt(2.5 / 5)),
        ([1.0, 2.0, 3.0, 4.0, 5.0], 0.9, 2.131847 * math.sqrt(2.5 / 5)),
        ([7.0, 7.0, 7.0], 0.95, 0.0),
    ],
)
def test_half_interval_by_hand(values, level, expected):
    assert half_interval(pd.Series(values), level) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("values", [[], [1.0]])
def test_fewer_than_two_values_have_no_interval(values):
    assert math.isnan(half_interval(pd.Series(values, dtype=float)))


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
