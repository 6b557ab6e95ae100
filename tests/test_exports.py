"""What other tools get is what was measured, to the bit."""

import json
import math
import re
from pathlib import Path

import pandas as pd
import pytest
from test_training import one_thread, tiny_config, write_tiny_npz  # noqa: F401 (a fixture)

from routing_marl.cli import main
from routing_marl.comparison import compare
from routing_marl.config import AgentConfig
from routing_marl.errors import UserError
from routing_marl.exports import marl_eval, read_csv, uneven
from routing_marl.results import MEAN_TASK, SCHEMA, read_results
from routing_marl.units import Failure, run_unit


def here(units, on_progress):
    return [Failure(unit.config, reason) for unit in units if (reason := run_unit(unit, on_progress))]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Two methods, one of them with two settings, from two seeds."""
    folder = tmp_path_factory.mktemp("results")
    npz = write_tiny_npz(folder / "Tiny.npz")
    configs = [
        tiny_config(npz, method=method, seed=seed, agent=AgentConfig(floor=floor))
        for seed in (0, 5)
        for method, floor in (("wpl", 0.0), ("wpl", 0.1), ("random", None))
    ]
    assert compare(configs, folder / "out", runner=here)[1] == []
    return folder / "out"


def test_csv_comes_back_to_the_bit(results, tmp_path, capsys):
    main(["export", str(results), "--out", str(tmp_path / "x.csv")])
    frame = read_results(results / "results.parquet")
    assert f"{len(frame):,} rows" in capsys.readouterr().out
    again = read_csv(tmp_path / "x.csv")
    pd.testing.assert_frame_equal(again, frame, check_exact=True)
    assert (tmp_path / "x.csv").read_text().splitlines()[0] == ",".join(SCHEMA)


def test_the_columns_are_documented():
    page = (Path(__file__).parent.parent / "docs" / "results.md").read_text()
    table = page.partition("| column | type |")[2].partition("\n\n")[0]
    assert [name for name in re.findall(r"`(\w+)`", table) if name in SCHEMA] == list(SCHEMA)


def test_csv_keeps_what_is_not_known(tmp_path):
    row = {**dict.fromkeys(SCHEMA, 0), "run": "NA", "suite": "s", "method": "null", "settings": "", "split": "test"}
    frame = pd.DataFrame([{**row, "instances_per_s": math.nan}]).astype(SCHEMA)
    frame.to_parquet(tmp_path / "results.parquet")
    main(["export", str(tmp_path)])
    pd.testing.assert_frame_equal(read_csv(tmp_path / "results.csv"), frame, check_exact=True)


def rows_of(layout):
    """An independent reading of the layout: lists of numbers, and absolute metrics as the last step."""
    for suite, tasks in layout.items():
        for task, algorithms in tasks.items():
            for algorithm, runs in algorithms.items():
                for run, steps in runs.items():
                    names = list(steps)
                    assert names == [f"step_{k}" for k in range(1, len(names))] + ["absolute_metrics"]
                    last = {key: value for key, value in steps[names[-2]].items() if key != "step_count"}
                    assert steps["absolute_metrics"] == last
                    for name in names[:-1]:
                        values = dict(steps[name])
                        epoch = values.pop("step_count")
                        assert all(isinstance(value, list) and len(value) == 1 for value in values.values())
                        numbers = [values[metric][0] for metric in ("accuracy", "balanced_accuracy", "loss")]
                        yield (suite, algorithm, int(run[5:]), epoch, int(task[5:]), *numbers)


@pytest.mark.parametrize("split", ["test", "train"])
def test_marl_eval_gets_every_score_per_task(split, results, tmp_path, capsys):
    out = tmp_path / "x.json"
    main(["export", str(results / "results.parquet"), "--format", "marl-eval", "--split", split, "--out", str(out)])
    assert capsys.readouterr().err == ""
    frame = read_results(results / "results.parquet")
    rows = frame[(frame["split"] == split) & (frame["task"] != MEAN_TASK)]
    algorithm = (rows["method"] + " " + rows["settings"]).str.strip()
    columns = [rows[name] for name in ("seed", "epoch", "task", "accuracy", "balanced_accuracy", "loss")]
    wanted = zip(rows["suite"].str.lower(), algorithm, *columns, strict=True)
    found = sorted(rows_of(json.loads(out.read_text())))
    assert found == sorted(wanted) and len(found) == 6 * 2 * 3 and found[0][0] == "tiny"
    assert len({row[1] for row in found}) == 3


def test_what_marl_eval_refuses_is_said(results, tmp_path, capsys):
    frame = read_results(results / "results.parquet")
    assert uneven(frame) is None
    fewer = frame[(frame["method"] != "random") | (frame["seed"] == 0)]
    shorter = frame[(frame["method"] != "random") | (frame["epoch"] == 1)]
    assert uneven(fewer) == "Tiny has 1 to 2 seeds per method"
    assert uneven(shorter) == "Tiny has 1 to 2 epochs per run"
    fewer.to_parquet(tmp_path / "results.parquet")
    main(["export", str(tmp_path), "--format", "marl-eval"])
    assert "marl-eval refuses what is uneven: Tiny has 1 to 2 seeds" in capsys.readouterr().err
    assert (tmp_path / "marl_eval.json").exists()


def test_a_split_that_is_not_there_is_one_line(results):
    with pytest.raises(UserError, match="no scores per task of the validation split"):
        marl_eval(read_results(results / "results.parquet"), "validation")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothere"], "nothere is not there"),
        ([".", "--out", "x.csv"], "results.parquet is not there"),
    ],
)
def test_bad_input_of_export(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["export", *arguments])
    err = capsys.readouterr().err
    assert stop.value.code == 2 and message in err and len(err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
