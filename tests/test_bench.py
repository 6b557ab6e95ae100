import json
import math
import re
from pathlib import Path

import pytest
import torch

from routing_marl import bench, bench_long, comparison
from routing_marl.bench import BENCHMARKS, LONG
from routing_marl.bench_games import Settings
from routing_marl.cli import main
from routing_marl.errors import UserError
from routing_marl.results import table
from routing_marl.rows import MEAN_TASK


def curve(method, seed, accuracies, seconds):
    return [
        {"suite": "cifar100_mtl", "method": method, "settings": "", "seed": seed, "epoch": epoch, "split": "test"}
        | {"task": MEAN_TASK, "accuracy": accuracy, "wall_s": epoch * seconds}
        for epoch, accuracy in enumerate(accuracies, 1)
    ]


@pytest.fixture
def measured(monkeypatch):
    """Has the long benchmark read these rows instead of training for an hour."""

    def measured(rows, failures=()):
        def compare(configs, out, **options):
            assert {config.method for config in configs} == {"cross_stitch", "wpl"}
            folders.append(out)
            return table(rows), list(failures)

        monkeypatch.setattr(bench_long, "make_suite", lambda name, data_dir: None)
        monkeypatch.setattr(comparison, "compare", compare)
        return folders

    folders: list[Path] = []
    return measured


def test_time_to_cross_stitch_is_wpl_s_time_to_the_goal_over_all_of_cross_stitch_s(measured, tmp_path):
    # The goal is 0.6, which WPL has after two epochs of 10 s; cross-stitch took three of 100 s.
    rows = curve("cross_stitch", 0, [0.4, 0.7, 0.6], 100) + curve("wpl", 0, [0.5, 0.62, 0.61], 10)
    folders = measured(rows)
    (figure,) = bench.time_to_cross_stitch(Settings(out=tmp_path / "kept"))
    assert figure.value == pytest.approx(20 / 300) and figure.met and "60.0 %" in figure.what
    assert folders == [tmp_path / "kept"]


def test_time_to_cross_stitch_is_infinite_where_wpl_never_gets_there(measured, tmp_path):
    folders = measured(curve("cross_stitch", 0, [0.7], 100) + curve("wpl", 0, [0.5, 0.6], 10))
    (figure,) = bench.time_to_cross_stitch(Settings())
    assert figure.value == math.inf and not figure.met
    assert not folders[0].exists()  # a folder of its own, and nothing is left
    main(["bench", "--only", "time_to_cross_stitch", "--json", str(tmp_path / "figures.json")])
    listed = json.loads((tmp_path / "figures.json").read_text())["figures"]["time_to_cross_stitch"]
    assert listed["value"] is None and not listed["met"]


def test_the_long_benchmark_is_run_only_when_asked_for(monkeypatch):
    ran = []
    monkeypatch.setattr(bench_long, "make_suite", lambda name, data_dir: None)
    for name in BENCHMARKS:
        monkeypatch.setitem(BENCHMARKS, name, lambda settings, name=name: ran.append(name) or [])
    quick = [name for name in BENCHMARKS if name not in LONG]
    both = ["host_syncs", *LONG]
    for options, wanted in (
        ((), quick),
        (("--long",), [*quick, *LONG]),
        (("--only", *LONG), [*LONG]),
        (("--only", "host_syncs", "--long"), both),
    ):
        main(["bench", *options])
        assert ran == wanted
        ran.clear()


def test_bench_prints_figures_with_their_targets_and_writes_them(tmp_path, capsys):
    threads = torch.get_num_threads()
    try:
        main(["bench", "--only", "host_syncs", "--threads", "1", "--json", str(tmp_path / "figures.json")])
    finally:
        torch.set_num_threads(threads)
    assert "host_syncs" in capsys.readouterr().out
    assert '"met": true' in (tmp_path / "figures.json").read_text()


def test_figures_are_kept_when_a_later_benchmark_fails(monkeypatch, tmp_path):
    def fails(settings):
        raise UserError("cross_stitch failed")

    monkeypatch.setitem(BENCHMARKS, "peak_memory", fails)
    with pytest.raises(SystemExit):
        main(["bench", "--only", "host_syncs", "peak_memory", "--json", str(tmp_path / "figures.json")])
    assert [*json.loads((tmp_path / "figures.json").read_text())["figures"]] == ["host_syncs"]


def test_a_folder_for_long_runs_needs_a_long_run(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["bench", "--only", "host_syncs", "--out", str(tmp_path / "kept")])
    assert stopped.value.code == 2 and not (tmp_path / "kept").exists()
    assert "only long runs are kept; add --long" in " ".join(capsys.readouterr().err.split())


def test_missing_data_of_a_long_run_is_said_before_any_benchmark_runs(monkeypatch, tmp_path, capsys):
    for name in BENCHMARKS:
        monkeypatch.setitem(BENCHMARKS, name, lambda settings: pytest.fail("a benchmark ran"))
    with pytest.raises(SystemExit) as stopped:
        main(["bench", "--long", "--data-dir", str(tmp_path), "--out", str(tmp_path / "kept")])
    assert stopped.value.code == 2 and not (tmp_path / "kept").exists()
    assert "cifar100" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "line"), [("cost.txt", "plot is .*cost.txt; the name of a picture ends in"), ("no/cost.png", "no folder")]
)
def test_a_plot_that_can_t_be_drawn_is_said_before_any_benchmark_runs(name, line, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(BENCHMARKS, "host_syncs", lambda settings: pytest.fail("a benchmark ran"))
    with pytest.raises(SystemExit) as stopped:
        main(["bench", "--only", "host_syncs", "--plot", str(tmp_path / name)])
    assert stopped.value.code == 2 and re.search(line, " ".join(capsys.readouterr().err.split()))
