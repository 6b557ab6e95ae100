import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from test_image_folders import write_tasks
from test_training import one_thread, tiny_arrays, write_tiny_npz  # noqa: F401 (a fixture)

from routing_marl import cli, compare_command, training
from routing_marl.checkpoints import read_checkpoint
from routing_marl.cli import COMMANDS, main
from routing_marl.data import DATA_SETS
from routing_marl.diagnostics import diagnose
from routing_marl.errors import UserError
from routing_marl.methods import METHODS
from routing_marl.results import read_results
from routing_marl.units import Failure, run_unit

SMALL = ["--epochs", "1", "--instances", "4", "--hidden", "8", "--depth", "2", "--device", "cpu"]


@pytest.fixture(scope="module")
def npz(tmp_path_factory):
    return write_tiny_npz(tmp_path_factory.mktemp("suite") / "tiny.npz")


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    """Whatever a command leaves behind is found; tables are wide enough for whole words."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "240")
    monkeypatch.delenv("ROUTING_MARL_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder


@pytest.fixture
def run(capsys):
    """Runs a command; its exit code, standard output and standard error."""

    def run(*arguments):
        code = 0
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = stop.code
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def inline(monkeypatch):
    """Runs of a comparison here, one after the other; tests of the real pool are in test_comparison."""

    def here(units, on_progress):
        return [Failure(unit.config, reason) for unit in units if (reason := run_unit(unit, on_progress))]

    monkeypatch.setattr(compare_command, "local_runner", lambda workers, threads: here)


@pytest.fixture(scope="module")
def trained(npz, tmp_path_factory):
    out = tmp_path_factory.mktemp("trained") / "run"
    main(["train", "--suite", str(npz), *SMALL, "--out", str(out)])
    return out


def left_behind(folder):
    return [str(path.relative_to(folder)) for path in folder.rglob("*")]


# -- what works ------------------------------------------------------------------------------------------------------


def test_train(npz, run, in_an_empty_folder):
    code, out, err = run("train", "--suite", npz, *SMALL, "--out", "out", "--json", "summary.json", "--seed", "3")
    assert (code, err) == (0, "") and "wpl on tiny, seed 3, after 1 epochs" in out
    assert {path.name for path in (in_an_empty_folder / "out").iterdir()} == {
        "checkpoint.pt",
        "config.json",
        "environment.json",
        "results.parquet",
        "routes.npz",
    }
    summary = json.loads((in_an_empty_folder / "summary.json").read_text())
    frame = read_results(in_an_empty_folder / "out" / "results.parquet")
    (row,) = frame[(frame["split"] == "test") & (frame["task"] == -1)].to_dict("records")
    assert math.isnan(row.pop("dropped"))  # wpl drops nothing
    row["dropped"] = None  # which JSON has no nan for
    assert summary["final"]["test"] == row and summary["config"]["seed"] == 3
    assert summary["config"] == json.loads((in_an_empty_folder / "out" / "config.json").read_text())
    assert f"{100 * row['accuracy']:.1f}" in out


def test_train_names_its_own_folder_and_resumes(npz, run, in_an_empty_folder):
    command = ["train", "--suite", npz, *SMALL, "--method", "random"]
    assert run(*command)[0] == 0
    (out,) = (in_an_empty_folder / "results").iterdir()
    assert re.fullmatch(r"tiny-random-0-[0-9a-f]{8}", out.name)
    before = (out / "checkpoint.pt").read_bytes()
    code, _, err = run(*command)
    assert code == 2 and "--resume" in err and (out / "checkpoint.pt").read_bytes() == before
    code, text, _ = run(*command, "--out", out, "--resume", "--epochs", "2")
    assert code == 0 and "after 2 epochs" in text


def strict_json(path):
    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


def test_compare(npz, run, inline, in_an_empty_folder):
    command = ["compare", "--suite", npz, *SMALL, "--out", "out", "--json", "summary.json", "--workers", "1"]
    code, out, err = run(*command, "--methods", "wpl,shared_bottom", "--seeds", "0,1")
    assert (code, err) == (0, "") and ", 2 seeds" in out and "(commonest class)" in out
    folder = in_an_empty_folder / "out"
    assert {path.name for path in folder.glob("[!.]*")} == {
        "results.parquet",
        "learning_curves.png",
        "routes.png",
        "runs",
    }
    assert len(list((folder / "runs").iterdir())) == 4
    summary = strict_json(in_an_empty_folder / "summary.json")
    assert {row["method"]: row["seeds"] for row in summary} == {"wpl": 2, "shared_bottom": 2}
    assert all(row["accuracy_ci"] >= 0 for row in summary)
    assert "wpl" in out and "shared_bottom" in out


def test_compare_of_one_seed_writes_json_without_intervals(npz, run, inline, in_an_empty_folder):
    command = ["compare", "--suite", npz, *SMALL, "--out", "out", "--json", "summary.json"]
    assert run(*command, "--methods", "shared_bottom", "--seeds", "0")[0] == 0
    (row,) = strict_json(in_an_empty_folder / "summary.json")
    assert row["accuracy_ci"] is None and 0 <= row["accuracy"] <= 1
    assert not (in_an_empty_folder / "out" / "routes.png").exists()  # static sharing needs no picture


@pytest.mark.parametrize("words", [["0,1"], ["0", "1"], ["0,", "1"], ["0", ",1"]])
def test_lists_are_separated_by_commas_or_spaces(words, monkeypatch):
    seen = []
    monkeypatch.setattr("routing_marl.compare_command.compare", seen.append)
    main(["compare", "--seeds", *words, "--methods", "wpl", "random"])
    assert seen[0].seeds == (0, 1) and seen[0].methods == ("wpl", "random")


def test_compare_varies_settings_and_suites_from_a_file_and_from_options(npz, run, inline, tmp_path, monkeypatch):
    other = write_tiny_npz(tmp_path / "other.npz")
    (tmp_path / "grid.toml").write_text(
        f'suites = ["{npz}", "{other}"]\nmethods = ["wpl", "random"]\nseeds = 3\nrho = [0.1, 0.2]\nfloor = [0, 0.1]\n'
    )
    monkeypatch.setenv("COLUMNS", "80")
    command = ["compare", *SMALL, "--grid", tmp_path / "grid.toml", "--out", "out", "--vary", "hidden=4,8"]
    code, out, err = run(*command)
    assert (code, err) == (0, "") and "tiny, test, 1 seed" in out and "other, test, 1 seed" in out
    frame = read_results(Path("out/results.parquet"))
    # Each of two suites: WPL has a floor and a rho, random has no floor; each with two widths.
    units = frame[["suite", "method", "settings", "seed"]].drop_duplicates()
    assert units.groupby(["suite", "method"]).size().tolist() == [4, 8, 4, 8] and set(units["seed"]) == {3}
    assert frame["run"].nunique() == 24 == len(os.listdir("out/runs"))
    assert "one seed: nothing can be said about chance" in out
    assert max(map(len, out.splitlines())) <= 80
    pictures = {f"{kind}_{suite}.png" for kind in ("learning_curves", "routes") for suite in ("tiny", "other")}
    assert pictures == {name for name in os.listdir("out") if name.endswith(".png")}


@pytest.mark.slow
def test_the_table_of_many_seeds_fits_80_columns(npz, run, inline, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    command = ["compare", "--suite", npz, *SMALL, "--out", "out", "--seeds", "0,1,2,3,4", "--json", "s.json"]
    code, out, err = run(*command, "--methods", "random,task_specific_all_fc", "--vary", "rho=0,0.3", "hidden=4,8")
    assert (code, err) == (0, "") and "task_specific_all_fc" in out and "random" in out
    assert max(map(len, out.splitlines())) <= 80
    summary = pd.DataFrame(json.loads(Path("s.json").read_text()))
    assert len(summary) == 8 and (summary["iqm_low"] <= summary["iqm_high"]).all()
    row = summary.iloc[0]
    assert f"{100 * row['iqm_low']:.1f}-{100 * row['iqm_high']:.1f}" in out and "MACs" in out.splitlines()[3]
    assert "hints, not findings" not in out


def test_compare_reports_failures_and_still_shows_the_rest(npz, run, inline, in_an_empty_folder):
    command = ["compare", "--suite", npz, *SMALL, "--out", "out", "--methods", "random", "--seeds", "0,1"]
    assert run(*command)[0] == 0
    broken = next((in_an_empty_folder / "out" / "runs").glob("tiny-random-1-*")) / "checkpoint.pt"
    broken.write_bytes(broken.read_bytes()[:500])
    code, out, err = run(*command)
    assert code == 2 and err == "routing-marl: 1 of 2 runs failed; see above\n"
    assert f"failed {broken.parent.name}: {broken.relative_to(in_an_empty_folder)}" in out and ", 1 seed" in out


def test_a_loss_that_is_no_number_is_one_line(npz, run, inline):
    code, _, err = run("train", "--suite", npz, *SMALL, "--out", "out", "--lr", "1e30")
    assert code == 2 and "the loss of update 2" in err and len(err.splitlines()) == 1
    code, _, err = run("compare", "--suite", npz, *SMALL, "--methods", "wpl", "--seeds", "0", "--lr", "1e30")
    assert code == 2 and err.startswith("routing-marl: none of the 1 runs ended well") and len(err.splitlines()) == 1


@pytest.mark.parametrize("split", ["train", "test"])
def test_evaluate_repeats_what_training_measured(split, trained, run, in_an_empty_folder):
    code, out, err = run(
        "evaluate", trained / "checkpoint.pt", "--split", split, "--json", "tasks.json", "--device", "cpu"
    )
    assert (code, err) == (0, "") and f"wpl on {split}, epoch 1" in out
    tasks = json.loads((in_an_empty_folder / "tasks.json").read_text())
    assert list(tasks) == ["below", "corner", "quarter"]
    assert all(name in out for name in tasks)
    if split == "test":
        frame = read_results(trained / "results.parquet")
        rows = frame[(frame["split"] == "test") & (frame["task"] >= 0)]
        for metric in ("accuracy", "balanced_accuracy", "loss"):
            assert [task[metric] for task in tasks.values()] == pytest.approx(rows[metric].tolist())


def test_diagnose(trained, run, in_an_empty_folder):
    code, out, err = run("diagnose", trained, "--out", "here", "--json", "last.json")
    assert (code, err) == (0, "")
    for word in ("entropy", "settled_after", "blocks_in_use", "depth 1", "diagnostics.png"):
        assert word in out
    assert {path.name for path in (in_an_empty_folder / "here").iterdir()} == {
        "diagnostics.parquet",
        "diagnostics.png",
        "similarity.png",
    }
    frame = diagnose(trained)
    assert pd.read_parquet(in_an_empty_folder / "here" / "diagnostics.parquet").equals(frame)
    listed = json.loads((in_an_empty_folder / "last.json").read_text())
    assert len(listed) == (frame["epoch"] == frame["epoch"].max()).sum()


def test_nash_gap(trained, run, in_an_empty_folder):
    code, out, err = run("nash-gap", trained / "checkpoint.pt", "--device", "cpu", "--json", "gap.json")
    assert (code, err) == (0, "")
    assert "all routes tried" in out and "wpl on test, epoch 1" in out
    listed = json.loads((in_an_empty_folder / "gap.json").read_text())
    assert listed["split"] == "test" and listed["exhaustive"]
    assert all(row["gap"] >= -1e-6 and row["half_width"] >= 0 for row in listed["tasks"].values())
    code, out, err = run("nash-gap", trained / "checkpoint.pt", "--sampled", "--max-routes", "0", "--device", "cpu")
    assert (code, err) == (0, "") and "depth by depth" in out


def test_data(run, in_an_empty_folder):
    code, out, err = run("data", "--json", "data.json")
    assert (code, err) == (0, "") and "digits" in out and "mnist: not found" in out
    listed = json.loads((in_an_empty_folder / "data.json").read_text())
    assert [(row["name"], row["found"]) for row in listed["data_sets"]] == [(name, False) for name in DATA_SETS]
    assert [*listed["suites"]] == ["digits", "digit_clusters"] and "needs cifar100, mnist, omniglot" in out
    digits = listed["suites"]["digits"]
    assert set(digits) == {"train", "validation", "test"} and len(digits["train"]) == 10
    assert sum(sum(digits[split]["is_3"]) for split in digits) == 1797


def test_data_shows_a_suite(run, in_an_empty_folder):
    code, out, err = run("data", "--show", "digit_clusters")
    assert (code, err) == (0, "") and "9 tasks of digit_clusters in digit_clusters.png" in out
    assert (in_an_empty_folder / "digit_clusters.png").read_bytes()[:4] == b"\x89PNG"
    write_tasks(in_an_empty_folder / "mine", {"a": ["b", "c"]})
    code, out, err = run("data", "--show", "mine", "--out", "sheet.svg")
    assert (code, err) == (0, "") and "1 tasks of mine in sheet.svg" in out
    assert "<svg" in (in_an_empty_folder / "sheet.svg").read_text()


def test_train_takes_a_folder(run, in_an_empty_folder):
    write_tasks(in_an_empty_folder / "mine", {"a": ["b", "c"], "d": ["e", "f", "g"]})
    code, out, err = run("train", "--suite", "mine", "--method", "task_specific_all_fc", *SMALL, "--out", "out")
    assert (code, err) == (0, "") and "task_specific_all_fc on mine" in out
    (in_an_empty_folder / "mine/d/f/01.png").write_text("no image")
    code, out, err = run("train", "--suite", "mine", *SMALL, "--out", "other")
    assert (code, out) == (2, "") and re.fullmatch(r"routing-marl: mine/d/f/01\.png: not a readable image .*\n", err)


def test_methods(run, in_an_empty_folder):
    code, out, err = run("methods", "--json", "methods.json")
    assert (code, err) == (0, "") and all(name in out for name in METHODS)
    assert "--epsilon-steps 300" in out and "…" not in out
    listed = json.loads((in_an_empty_folder / "methods.json").read_text())
    assert listed["q_learning"]["settings"]["epsilon_end"] == METHODS["q_learning"].settings["epsilon_end"]


# -- help ------------------------------------------------------------------------------------------------------------

FIXED = {
    "train": "suite method seed epochs instances episodes blocks rho lr data-dir out device precision resume json",
    "compare": "suite methods seeds epochs instances episodes blocks rho lr data-dir out device precision resume json",
    "evaluate": "split data-dir device json",
    "data": "download show out data-dir json",
    "diagnose": "out json",
    "nash-gap": "split sampled max-routes data-dir device json",
    "methods": "json",
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_has_a_help_text(command, run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")  # wide terminals have the options in several columns
    code, out, _ = run(command, "--help")
    assert code == 0
    options = {}
    for line in (re.sub(r"[│|]", "", line).rstrip() for line in out.splitlines()):
        # An option and its text, which may begin on the next line; of what is indented further, all is text.
        if found := re.match(r" {0,3}(?:-h, )?--([a-z][a-z-]*)(.*)", line):
            name = found[1]
            options[name] = re.split(r" {2,}", found[2], maxsplit=1)[1:]
        elif options and re.match(r" {8,}\S", line):
            options[name].append(line.strip())
        else:
            name = "?"
            options.setdefault(name, [])
    options.pop("?", None)
    assert set(FIXED.get(command, "json").split()) <= set(options)
    for name, text in options.items():
        words = re.sub(r"\((default|required|repeatable).*", "", " ".join(text)).strip()
        assert len(words) > 8, f"--{name} of {command} has no help"


def test_the_commands_are_listed(run):
    code, out, _ = run("--help")
    assert code == 0 and all(re.search(rf"\b{command}\b", out) for command in FIXED)


def test_help_does_not_load_torch():
    code = "import sys, routing_marl.cli as c\ntry: c.main(['train', '--help'])\nexcept SystemExit: pass\n"
    code += "assert not {'torch', 'pandas', 'matplotlib', 'sklearn'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    module = subprocess.run([sys.executable, "-m", "routing_marl", "--help"], capture_output=True, text=True)
    assert module.returncode == 0 and "compare" in module.stdout


# -- what does not ---------------------------------------------------------------------------------------------------


def damaged(path):
    content = write_tiny_npz(path).read_bytes()
    path.write_bytes(content[: len(content) // 2])


def bad_file(path, kind):
    images, labels = tiny_arrays(24, 0)
    no_tasks = {"y_train": labels[:, :0], "y_test": labels[:, :0], "task_names": None}
    changes = {
        "wrong keys": {"y_train": None},
        "fewer labels": {"y_train": labels[:5]},
        "shape": {"x_train": images[0, 0]},
        "label below": {"y_train": labels - 2},
        "label above": {"y_test": labels + 9},
        "nan": {"x_train": images * np.nan},
        "objects": {"y_train": labels.astype(object)},
        "one class": {"y_train": labels * [0, 1, 1]},
        "zero tasks": no_tasks,
        "no images": {"x_train": images[:0], "y_train": labels[:0]},
    }
    write_tiny_npz(path, **changes[kind])


BAD_FILES = {  # what the message has to name
    "wrong keys": "y_train",
    "fewer labels": "y_train",
    "shape": "x_train",
    "label below": "label -2",
    "label above": "label 1",
    "nan": "NaN",
    "objects": "object array",
    "one class": "one class",
    "zero tasks": "zero tasks",
    "no images": "x_train",
}

BAD_PLAY = [
    (["--suite", "nothere"], "no suite 'nothere'"),
    (["--suite", "digit"], "did you mean digits"),
    (["--suite", ""], "no suite ''"),
    (["--suite", "./nothere.npz"], "nothere.npz: no such file"),
    (["--suite", "mnist_mtl", "--data-dir", "nothere"], "mnist: not found"),
    (["--lr", "-1"], "lr is -1"),
    (["--lr", "nan"], "lr is nan"),
    (["--lr", "inf"], "lr is inf"),
    (["--lr-decay", "0"], "lr-decay is 0"),
    (["--lr-decay-epochs", "-1"], "lr-decay-epochs is -1"),
    (["--rho", "1.5"], "rho is 1.5"),
    (["--rho", "-0.1"], "rho is -0.1"),
    (["--history", "0"], "history is 0"),
    (["--blocks", "0"], "blocks is 0"),
    (["--depth", "0"], "depth is 0"),
    (["--hidden", "-5"], "hidden is -5"),
    (["--epochs", "0"], "epochs is 0"),
    (["--instances", "0"], "instances is 0"),
    (["--episodes", "-1"], "episodes is -1"),
    (["--validation", "1.0"], "validation is 1.0"),
    (["--validation", "-0.1"], "validation is -0.1"),
    (["--full-test"], "full_test is for mnist_mtl"),
    (["--allow-stop"], "STOP needs --recursive"),
    (["--threads", "0"], "threads is 0"),
    (["--device", "gpu"], "device is 'gpu'"),
    (["--device", "cpu:x"], "device is 'cpu:x'"),
    (["--policy-rate", "-1"], "policy_rate is -1"),
    (["--return-rate", "2"], "return_rate is 2"),
    (["--gamma", "1.5"], "gamma is 1.5"),
    (["--floor", "0.9"], "floor is 0.9"),
    (["--alpha", "0.1"], "alpha means nothing to wpl; it is a setting of q_learning"),
    (["--out", "file"], "the output folder file.* can't be written to"),
    (["--out", "file/below"], "the output folder file/below.* can't be written to"),
    (["--json", "nothere/x.json"], "nothere/x.json can't be written"),
    (["--json", "file/x.json"], "file/x.json can't be written"),
    (["--json", "."], ". is a folder"),
]

BAD_TRAIN = [
    (["--method", "wpk"], "method is 'wpk'; it must be one of .*did you mean wpl"),
    (["--method", "q_learning", "--alpha", "-0.5"], "alpha is -0.5"),
    (["--method", "q_learning", "--epsilon-start", "2"], "epsilon_start is 2"),
    (["--method", "q_learning", "--epsilon-steps", "-1"], "epsilon_steps is -1"),
    (["--method", "q_learning", "--trace-decay", "-1"], "trace_decay is -1"),
    (["--method", "policy_gradient", "--baseline-rate", "-1"], "baseline_rate is -1"),
    (["--method", "policy_gradient", "--entropy", "nan"], "entropy is nan"),
    (["--method", "shared_bottom", "--recursive"], "shared_bottom .* can't be recursive"),
    (["--seed", "-1"], "seed is -1"),
    (["--seed", str(2**63)], "seed is 9223372036854775808"),
]

BAD_COMPARE = [
    (["--methods", "wpl,wpk"], "method is 'wpk'"),
    (["--methods", "wpl,random,wpl"], "methods is wpl,random,wpl; each may be given once"),
    (["--methods"], "methods is empty"),
    (["--methods", "shared_bottom,wpl", "--recursive"], "shared_bottom .* can't be recursive"),
    (["--methods", "random", "--policy-rate", "0.1"], "policy-rate means nothing to random"),
    (["--seeds", "0,0"], "seeds is 0,0; each may be given once"),
    (["--seeds"], "seeds is empty"),
    (["--seeds", ","], "seeds is empty"),
    (["--seeds", "0,-1"], "seed is -1"),
    (["--workers", "0"], "workers is 0"),
    (["--vary", "rho"], "vary is 'rho'; it is written NAME=VALUE,VALUE"),
    (["--vary", "rho=0,2"], "rho is 2.0; it must lie in"),
    (["--vary", "alpha=0.1,0.2"], "alpha means nothing to wpl"),
    (["--vary", "policy-rate=0.1,-1"], "policy_rate is -1"),
    (["--vary", "suite=digits,nothere"], "no suite 'nothere'"),
    (["--vary", "suite=digits,here/digits.npz"], "here/digits.npz: no such file"),
    (["--grid", "nothere.toml"], "the grid nothere.toml can't be read"),
    (["--grid", "file"], "the grid file is a str"),
    (["--ray", "local"], "workers is 1, but Ray decides"),
    (["--gpus-per-run", "0.5"], "gpus-per-run is 0.5; it needs --ray"),
    (["--gpus-per-run", "-1"], "gpus-per-run is -1"),
]

PLAY = {"train": ["--out", "out"], "compare": ["--out", "out", "--methods", "wpl", "--seeds", "0", "--workers", "1"]}


@pytest.mark.parametrize(
    ("command", "extra", "message"),
    [
        *((command, *case) for command in PLAY for case in BAD_PLAY),
        *(("train", *case) for case in BAD_TRAIN),
        *(("compare", *case) for case in BAD_COMPARE),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing_behind(command, extra, message, npz, run, in_an_empty_folder):
    (in_an_empty_folder / "file").write_text("mine")
    code, out, err = run(command, "--suite", npz, *SMALL, *PLAY[command], *extra)
    assert code == 2 and "Traceback" not in out
    assert re.fullmatch(rf"routing-marl: .*{message.replace('(', '[(]')}.*\n", err), err
    assert left_behind(in_an_empty_folder) == ["file"] and (in_an_empty_folder / "file").read_text() == "mine"


@pytest.mark.parametrize("kind", BAD_FILES)
@pytest.mark.parametrize("command", PLAY)
def test_bad_data_files_are_one_line_and_leave_nothing_behind(command, kind, run, in_an_empty_folder, tmp_path):
    bad_file(tmp_path / "bad.npz", kind)
    code, out, err = run(command, *SMALL, *PLAY[command], "--suite", tmp_path / "bad.npz")
    assert (code, out, len(err.splitlines())) == (2, "", 1), err
    assert "bad" in err and BAD_FILES[kind] in err
    assert left_behind(in_an_empty_folder) == []


def test_half_a_data_file(run, in_an_empty_folder, tmp_path):
    damaged(tmp_path / "half.npz")
    code, _, err = run("train", "--suite", tmp_path / "half.npz", "--out", "out")
    assert code == 2 and re.fullmatch(r"routing-marl: .*half\.npz: not a readable \.npz file.*\n", err)
    assert left_behind(in_an_empty_folder) == []


@pytest.mark.parametrize(("gib", "workers"), [(80, 4), (8, 2), (2, 1)])
def test_runs_share_a_gpu_as_far_as_its_memory_goes(gib, workers, monkeypatch):
    gpu = SimpleNamespace(total_memory=gib * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: gpu)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(compare_command, "pick_device", lambda device: device)
    asked = []
    monkeypatch.setattr(compare_command, "local_runner", lambda *given: asked.append(given) or list)
    for options in (cli.Compare(device="cuda"), cli.Compare(device="cpu"), cli.Compare(device="cuda", workers=3)):
        compare_command._runner(options, 21)
    assert asked == [(workers, 4 // workers), (4, 1), (3, 1)]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_cuda_without_a_gpu(device, npz, run, in_an_empty_folder):
    code, _, err = run("train", "--suite", npz, "--out", "out", "--device", device)
    assert code == 2 and err == f"routing-marl: device is '{device}', but torch sees no GPU here; use auto or cpu\n"
    assert left_behind(in_an_empty_folder) == []


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "subcommand"),
        (["trian"], "trian"),
        (["train", "--nosuch", "3"], "--nosuch"),
        (["train", "--methods", "wpl"], "--methods"),
        (["train", "--epochs", "x"], "--epochs"),
        (["train", "--epochs", "1.5"], "--epochs"),
        (["train", "--epochs"], "--epochs"),
        (["train", "--precision", "fp8"], "--precision"),
        (["train", "--advantage", "none"], "--advantage"),
        (["compare", "--seeds", "a"], "--seeds"),
        (["compare", "--seeds", "0.5"], "--seeds"),
        (["evaluate", "checkpoint.pt", "--split", "tset"], "--split"),
        (["methods", "wpl"], "wpl"),
    ],
)
def test_what_the_command_line_does_not_know_is_named(arguments, named, run, in_an_empty_folder):
    code, out, err = run(*arguments)
    assert code == 2 and named in out + err and "Traceback" not in out + err
    assert left_behind(in_an_empty_folder) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "nothere.pt"], "nothere.pt is not there"),
        (["evaluate", "."], ". is not a readable checkpoint"),
        (["evaluate", "nothere.pt", "--json", "nothere/x"], "nothere/x can't be written"),
        (["data", "--download", "minst"], "no data set 'minst'; there are mnist, "),
        (["diagnose", "nothere"], "nothere/routes.npz is not there; give the folder of a run"),
        (["nash-gap", "nothere.pt"], "nothere.pt is not there"),
        (["nash-gap", "nothere.pt", "--max-routes", "-1"], "max-routes is -1; it must be at least 0"),
        (["data", "--json", "nothere/x"], "nothere/x can't be written"),
        (["data", "--show", "digit"], "no suite 'digit'; there are digits, "),
        (["data", "--show", "digits", "--out", "nothere/x.png"], "nothere/x.png can't be written"),
        (["data", "--show", "digits", "--out", "x.txt"], "out is x.txt; the name of a picture ends in .png"),
        (["data", "--out", "x.png"], "out is x.png, but nothing is drawn; name a suite with --show"),
        (["methods", "--json", "nothere/x"], "nothere/x can't be written"),
        (["methods", "--threads", "-1"], "threads is -1"),
    ],
)
def test_bad_input_of_the_other_commands(arguments, message, run, in_an_empty_folder):
    code, out, err = run(*arguments)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert err.startswith(f"routing-marl: {message}")
    assert left_behind(in_an_empty_folder) == []


def test_evaluate_refuses_damaged_checkpoints_and_splits_that_are_not_there(trained, run, in_an_empty_folder, tmp_path):
    content = (trained / "checkpoint.pt").read_bytes()
    (tmp_path / "half.pt").write_bytes(content[: len(content) // 2])
    for arguments, message in (
        ([tmp_path / "half.pt"], "is not a readable checkpoint"),
        ([trained / "checkpoint.pt", "--split", "validation"], "has no validation split"),
        ([trained / "checkpoint.pt", "--device", "gpu"], "device is 'gpu'"),
    ):
        code, out, err = run("evaluate", *arguments)
        assert (code, out, len(err.splitlines())) == (2, "", 1) and message in err


def test_evaluate_refuses_a_checkpoint_whose_suite_has_changed(run, tmp_path):
    path = write_tiny_npz(tmp_path / "changing.npz")
    assert run("train", "--suite", path, *SMALL, "--out", "out")[0] == 0
    _, labels = tiny_arrays(24, 0)
    write_tiny_npz(path, y_train=labels[:, :2], y_test=labels[:, :2], task_names=None)
    code, out, err = run("evaluate", "out/checkpoint.pt")
    assert (code, out, len(err.splitlines())) == (2, "", 1) and "does not fit suite changing" in err
    path.unlink()
    code, _, err = run("evaluate", "out/checkpoint.pt")
    assert code == 2 and "changing.npz: no such file" in err and len(err.splitlines()) == 1


def test_a_checkpoint_of_another_configuration_is_left_alone(npz, trained, run, tmp_path):
    out = tmp_path / "copy"
    out.mkdir()
    for path in trained.iterdir():
        (out / path.name).write_bytes(path.read_bytes())
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    code, _, err = run("train", "--suite", npz, *SMALL, "--rho", "0.5", "--out", out, "--resume")
    assert code == 2 and "engine.rho was 0.3, now 0.5" in err and len(err.splitlines()) == 1
    (out / "checkpoint.pt").write_bytes(before["checkpoint.pt"][:1000])
    code, _, err = run("train", "--suite", npz, *SMALL, "--out", out, "--resume")
    assert code == 2 and "not a readable checkpoint" in err and len(err.splitlines()) == 1
    after = {path.name: path.read_bytes() for path in out.iterdir()}
    assert after == {**before, "checkpoint.pt": before["checkpoint.pt"][:1000]}


def test_debug_shows_the_traceback(npz):
    with pytest.raises(UserError, match="rho is 2"):
        main(["train", "--suite", str(npz), "--rho", "2", "--debug"])


def test_ctrl_c_is_130_and_says_how_to_go_on(npz, run, monkeypatch, in_an_empty_folder):
    command = ["train", "--suite", npz, *SMALL, "--out", "out", "--epochs", "2"]
    play, calls = training.play_episode, []

    def interrupted(engine, agent, *returns):
        calls.append(1)
        if len(calls) == 8:  # in the second epoch of six updates
            raise KeyboardInterrupt
        return play(engine, agent, *returns)

    monkeypatch.setattr(training, "play_episode", interrupted)
    code, _, err = run(*command)
    assert code == 130 and "the same command with --resume goes on" in err and len(err.splitlines()) == 1
    assert read_checkpoint(in_an_empty_folder / "out" / "checkpoint.pt")["epoch"] == 1
    assert not [name for name in os.listdir("out") if name.startswith(".")]
    monkeypatch.undo()
    os.chdir(in_an_empty_folder)
    assert run(*command, "--resume")[0] == 0
