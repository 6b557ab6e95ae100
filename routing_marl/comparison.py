"""Comparisons: the runs of methods x seeds, side by side on the cores of one machine."""

import multiprocessing
import os
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import parent_process
from multiprocessing.connection import wait as wait_for_any
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import pandas as pd
import torch
from scipy import stats

from routing_marl.allocator import keep_freed_memory
from routing_marl.config import RunConfig
from routing_marl.errors import UserError
from routing_marl.files import output_folder
from routing_marl.recipes import make_suite
from routing_marl.results import MEAN_TASK, read_results, write_results
from routing_marl.suites import TaskSuite
from routing_marl.training import CHECKPOINT, RESULTS, Progress, read_checkpoint, train

RUNS = "runs"

_progress: Callable[[Progress], None] | None = None


@runtime_checkable
class _Reports(Protocol):
    """A queue between processes (which is no ``queue.Queue``)."""

    def put(self, report: Progress) -> None: ...

    def get_nowait(self) -> Progress: ...


@dataclass(frozen=True)
class Failure:
    """A run that did not end well.

    Attributes:
        config: what was run.
        reason: one line.
    """

    config: RunConfig
    reason: str


def compare(
    configs: Sequence[RunConfig],
    out: Path,
    *,
    resume: bool = True,
    workers: int = 1,
    threads: int = 1,
    on_progress: Callable[[Progress], None] | None = None,
) -> tuple[pd.DataFrame, list[Failure]]:
    """Runs all configurations, and gathers their results in ``out / "results.parquet"``.

    Args:
        configs: the runs.
        out: folder; each run has its own below ``out / "runs"``.
        resume: keep finished runs and go on with unfinished ones, instead of starting anew.
        workers: runs at a time, each in a process of its own.
        threads: torch threads of each.
        on_progress: called, here, whenever a run reports.

    Returns:
        The rows of all runs, in the order of ``configs``; and the runs that failed.
    """
    output_folder(out / RUNS)
    folders = {config: out / RUNS / config.name for config in configs}
    if not resume:
        for folder in folders.values():
            (folder / CHECKPOINT).unlink(missing_ok=True)
    todo = [config for config, folder in folders.items() if not _finished(config, folder)]
    for config in configs:
        if on_progress and config not in todo:
            on_progress(Progress(config.name, step=1, n_steps=1, epoch=config.epochs))
    failures = _run_all(todo, folders, workers, threads, on_progress)
    failed = {failure.config for failure in failures}
    done = [read_results(folder / RESULTS) for config, folder in folders.items() if config not in failed]
    frame = pd.concat(done, ignore_index=True) if done else pd.DataFrame()
    if done:
        write_results(out / RESULTS, frame)
    return frame, failures


def _finished(config: RunConfig, folder: Path) -> bool:
    if not (folder / CHECKPOINT).exists():
        return False
    try:
        return bool(read_checkpoint(folder / CHECKPOINT)["epoch"] >= config.epochs)
    except UserError:
        return False  # the run itself will say what is wrong, and the others go on


def _run_all(
    configs: Sequence[RunConfig],
    folders: dict[RunConfig, Path],
    workers: int,
    threads: int,
    on_progress: Callable[[Progress], None] | None,
) -> list[Failure]:
    if not configs:
        return []
    context = multiprocessing.get_context("spawn")
    failures: list[Failure] = []
    reports = context.Queue()
    pool = ProcessPoolExecutor(min(workers, len(configs)), context, _start_worker, (threads, reports))
    try:
        runs: dict[Future[None], RunConfig] = {pool.submit(_run, config, folders[config]): config for config in configs}
        waiting = set(runs)
        while waiting:
            finished, waiting = wait(waiting, timeout=0.1, return_when=FIRST_COMPLETED)
            _pass_on(reports, on_progress)
            failures += [
                Failure(runs[future], f"{type(error).__name__}: {error}")
                for future in finished
                if (error := future.exception())
            ]
        _pass_on(reports, on_progress)
    except BaseException:
        # Not only the runs that wait: those that run are stopped too, at their last checkpoint.
        for process in list(pool._processes.values()):
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
    return failures


def _pass_on(reports: _Reports, on_progress: Callable[[Progress], None] | None) -> None:
    while True:
        try:
            report = reports.get_nowait()
        except queue.Empty:
            return
        if on_progress:
            on_progress(report)


def _start_worker(threads: int, reports: _Reports) -> None:
    global _progress
    torch.set_num_threads(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _progress = reports.put


def _end_with_parent() -> None:
    """A comparison that is killed can't stop its workers: they see to it themselves."""
    if (parent := parent_process()) is not None:
        wait_for_any([parent.sentinel])
        os._exit(1)


def _run(config: RunConfig, folder: Path) -> None:
    suite = _suite(config.suite, config.data_dir, config.validation, config.full_test)
    keep_freed_memory()  # from here on: what loading took on the way is not worth keeping
    train(config, folder, resume=True, suite=suite, on_progress=_progress)


@lru_cache(maxsize=1)
def _suite(name: str, data_dir: str | None, validation: float | None, full_test: bool) -> TaskSuite:
    """A worker's runs are mostly of the same suite."""
    return make_suite(name, data_dir, validation=validation, full_test=full_test)


def final_scores(frame: pd.DataFrame, split: str = "test") -> pd.DataFrame:
    """The last epoch's mean over tasks: one row per method and seed."""
    rows = frame[(frame["split"] == split) & (frame["task"] == MEAN_TASK)]
    last = rows.groupby(["suite", "method", "seed"])["epoch"].transform("max")
    return rows[rows["epoch"] == last]


def summarise(frame: pd.DataFrame, split: str = "test") -> pd.DataFrame:
    """A row per method, the best first: means over seeds, with half widths of 95 % intervals.

    The intervals are Student's, over seeds (nan for a single seed).
    """
    scores = final_scores(frame, split)
    metrics = [
        "accuracy",
        "balanced_accuracy",
        "loss",
        "wall_s",
        "instances_per_s",
        "parameters",
        "multiply_adds",
        "dropped",
    ]
    grouped = scores.groupby("method")
    summary = grouped[metrics].mean()
    for metric in metrics[:3]:
        summary[f"{metric}_ci"] = grouped[metric].apply(half_interval)
    summary.insert(0, "seeds", grouped.size())
    return summary.sort_values(["accuracy", "balanced_accuracy"], ascending=False).reset_index()


def half_interval(values: "pd.Series[float]", level: float = 0.95) -> float:
    """Half the width of Student's confidence interval for the mean; nan for fewer than two values."""
    n = len(values)
    if n < 2:
        return float("nan")
    return float(stats.t.ppf((1 + level) / 2, n - 1) * values.std(ddof=1) / np.sqrt(n))
