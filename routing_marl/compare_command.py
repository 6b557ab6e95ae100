"""``routing-marl compare``: which runs, the table of what came out, and the pictures."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from routing_marl import cli, comparison, plots
from routing_marl.allocator import keep_freed_memory
from routing_marl.assembly import make_game
from routing_marl.clusters import import_ray, ray_runner
from routing_marl.config import RunConfig
from routing_marl.display import count, percent, progress_bars
from routing_marl.environment import pick_device
from routing_marl.errors import UserError
from routing_marl.files import write_json
from routing_marl.grid import check_list, expand, parse_vary, read_grid
from routing_marl.methods import check_settings, find_method, settings_of
from routing_marl.pool import local_runner
from routing_marl.routes import ROUTES
from routing_marl.statistics import caveat
from routing_marl.suite_report import count_rows
from routing_marl.suites import TaskSuite
from routing_marl.summary import labelled, summarise
from routing_marl.units import Runner, load_suite

_MOST_ROUTES = 20
"""Methods whose routes are drawn: a picture of hundreds is no use, and no size that can be drawn."""

_GPU_BYTES_PER_RUN = 2**32
"""A run keeps its host busy and the GPU idle for most of the time, so runs share one, as many as it can hold."""


class SuiteFacts(NamedTuple):
    """What table and pictures say of a suite.

    Attributes:
        name: as in the results.
        task_names: as in the suite.
        floors: what "always the commonest class" scores, per metric.
    """

    name: str
    task_names: Sequence[str]
    floors: Mapping[str, float]


def compare(options: "cli.Compare") -> None:
    """``routing-marl compare``."""
    configs = _configs(options)
    runner = _runner(options, len(configs))
    suites = _check(configs)
    console = Console()
    with progress_bars(console, len(configs)) as report:
        frame, failures = comparison.compare(
            configs, options.out, resume=options.resume, runner=runner, on_progress=report
        )
    for failure in failures:
        console.print(f"[red]failed[/red] {failure.config.name}: {failure.reason}", highlight=False)
    if frame.empty:
        raise UserError(f"none of the {len(configs)} runs ended well; the first: {failures[0].reason}")
    summary = summarise(frame)
    shown = labelled(summary)
    for suite in suites:
        if len(rows := shown[shown["suite"] == suite.name]):
            console.print(_table(rows, suite))
    if few := caveat(int(summary["seeds"].min())):
        console.print(f"[yellow]{few}[/yellow]", highlight=False)
    pictures = _draw(frame, suites, options.out)
    console.print(f"results.parquet, {', '.join(pictures)} in {options.out}", highlight=False)
    if options.json:
        write_json(options.json, summary.astype(object).where(summary.notna(), None).to_dict("records"))
    if failures:
        raise UserError(f"{len(failures)} of {len(configs)} runs failed; see above")


def commonest_class(suite: TaskSuite) -> dict[str, float]:
    """What "always the commonest class of the training data" scores on test, averaged over tasks."""
    accuracy, balanced = [], []
    counts = {(row.task, row.split): np.array(row.per_class) for row in count_rows(suite)}
    for task in suite.task_names:
        test = counts[task, "test"]
        accuracy.append(test[counts[task, "train"].argmax()] / test.sum())
        balanced.append(1 / (test > 0).sum())
    return {"accuracy": float(np.mean(accuracy)), "balanced_accuracy": float(np.mean(balanced))}


def _configs(options: "cli.Compare") -> list[RunConfig]:
    """All runs, each once; those of other settings that their method doesn't have are one."""
    check_list("methods", options.methods)
    check_list("seeds", options.seeds)
    given = {"method": options.methods, "seed": options.seeds, **parse_vary(options.vary)}
    grids = [given] if options.grid is None else [{**given, **grid} for grid in read_grid(options.grid)]
    base = options.run_config(options.methods[0], options.seeds[0])
    configs = [config for grid in grids for config in expand(grid, base)]
    for method in dict.fromkeys(config.method for config in configs):
        find_method(method)
    for agent in dict.fromkeys(config.agent for config in configs):
        check_settings(tuple(dict.fromkeys(config.method for config in configs if config.agent == agent)), agent)
    return list(dict.fromkeys(map(settings_of, configs)))


def _runner(options: "cli.Compare", n_runs: int) -> Runner:
    if options.workers is not None and options.workers < 1:
        raise UserError(f"workers is {options.workers}; it must be at least 1")
    if not options.gpus_per_run >= 0:
        raise UserError(f"gpus-per-run is {options.gpus_per_run:g}; it must be at least 0")
    if options.ray is not None:
        if options.workers is not None:
            raise UserError(
                f"workers is {options.workers}, but Ray decides how many; leave out one of --workers, --ray"
            )
        import_ray()
        return ray_runner(options.ray, options.threads or 1, options.gpus_per_run)
    if options.gpus_per_run:
        raise UserError(f"gpus-per-run is {options.gpus_per_run:g}; it needs --ray")
    cores, device = torch.get_num_threads(), pick_device(options.device)
    workers = options.workers or min(cores, n_runs, _room_for_runs(device))
    return local_runner(workers, options.threads or max(1, cores // workers))


def _room_for_runs(device: str) -> int:
    """Runs at a time that the device has memory for, at least one."""
    if not device.startswith("cuda"):
        return sys.maxsize
    return max(1, torch.cuda.get_device_properties(device).total_memory // _GPU_BYTES_PER_RUN)


def _check(configs: Sequence[RunConfig]) -> list[SuiteFacts]:
    """Finds out, before any run starts, whether a setting doesn't fit."""
    facts = []
    kinds = dict.fromkeys(replace(config, seed=0) for config in configs)
    for name in dict.fromkeys(config.suite for config in configs):
        of_suite = [config for config in kinds if config.suite == name]
        for config in of_suite:
            suite = load_suite(config)
            make_game(config, suite, "cpu")
        facts.append(SuiteFacts(suite.name, suite.task_names, commonest_class(suite)))
    keep_freed_memory()
    names = [suite.name for suite in facts]
    if len(set(names)) < len(names):
        raise UserError(f"suites are named {', '.join(names)}; names must differ, or their results can't be told apart")
    return facts


def _table(rows: pd.DataFrame, suite: SuiteFacts) -> Table:
    """Not wider than 80 columns; a long name takes two lines."""
    fewest, most = int(rows["seeds"].min()), int(rows["seeds"].max())
    seeds = f"{fewest} to {most} seeds" if fewest < most else f"{most} seed{'s' * (most > 1)}"
    # Where all classes are equally common the two accuracies are one, and there is no room to say it twice.
    balanced = not np.allclose(rows["accuracy"], rows["balanced_accuracy"], atol=5e-4)
    with_iqm = rows["iqm_low"].notna().any()
    caption = f"accuracy{' and balanced accuracy' * balanced} in %, mean ± 95 % interval\n"
    if with_iqm:
        caption += "iqm: 95 % interval of the interquartile mean of the accuracy\n"
    caption += "params: of the whole network; MACs: multiply-adds for one instance"
    title = f"{suite.name}, test, {seeds}"
    table = Table(title=title, caption=caption, box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    words = " ".join([*rows["method"], "(commonest class)"]).split()
    table.add_column("method", min_width=max(map(len, words)))
    columns = ["accuracy", *["balanced"] * balanced, "iqm" if with_iqm else "loss", "train s", "params", "MACs"]
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows.to_dict("records"):
        table.add_row(
            row["method"],
            percent(row["accuracy"], row["accuracy_ci"]),
            *[percent(row["balanced_accuracy"], row["balanced_accuracy_ci"])] * balanced,
            f"{percent(row['iqm_low'])}-{percent(row['iqm_high'])}" if with_iqm else f"{row['loss']:.3f}",
            f"{row['wall_s']:.1f}",
            count(row["parameters"]),
            count(row["multiply_adds"]),
        )
    table.add_section()
    floors = [suite.floors["accuracy"], *[suite.floors["balanced_accuracy"]] * balanced]
    table.add_row("(commonest class)", *map(percent, floors))
    return table


def _draw(frame: pd.DataFrame, suites: Sequence[SuiteFacts], out: Path) -> list[str]:
    """Learning curves and final routes of each suite; returns the files' names."""
    names: list[str] = []
    for suite in suites:
        rows = labelled(frame)
        rows = rows[rows["suite"] == suite.name]
        if rows.empty:
            continue
        suffix = f"_{suite.name}" if len(suites) > 1 else ""
        pictures = {f"learning_curves{suffix}.png": plots.learning_curves(rows, floors=suite.floors)}
        first = rows[["method", "run"]].drop_duplicates("method")
        if usages := _last_usages(first.head(_MOST_ROUTES).itertuples(index=False), out):
            pictures[f"routes{suffix}.png"] = plots.route_matrices(usages, suite.task_names)
        for name, figure in pictures.items():
            plots.save(figure, out / name)
        names += pictures
    return names


def _last_usages(runs: Iterable[tuple[str, str]], out: Path) -> dict[str, np.ndarray]:
    """The final routes of each router's first seed (static sharing needs no picture)."""
    usages: dict[str, np.ndarray] = {}
    for label, run in runs:
        path = out / comparison.RUNS / run / ROUTES
        if find_method(label.split()[0]).sharing is None and path.exists():
            with np.load(path, allow_pickle=False) as arrays:
                usage = arrays["usage"][-1]
                if usage.shape[-1] > 1:  # else there is nothing to choose
                    usages[label] = usage
    return usages
