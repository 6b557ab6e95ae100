"""Comparisons: many runs side by side, that together can be stopped at any moment and gone on with."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import current_process
from pathlib import Path

import pandas as pd
from filelock import FileLock, Timeout

from routing_marl.checkpoints import CHECKPOINT
from routing_marl.config import RunConfig
from routing_marl.errors import UserError
from routing_marl.files import output_folder, remove_leftovers
from routing_marl.methods import settings_of
from routing_marl.pool import local_runner
from routing_marl.results import read_results, write_results
from routing_marl.training import RESULTS, OnProgress, Progress
from routing_marl.units import Failure, Runner, Unit

RUNS = "runs"


def compare(
    configs: Sequence[RunConfig],
    out: Path,
    *,
    resume: bool = True,
    runner: Runner | None = None,
    on_progress: OnProgress = lambda progress: None,
) -> tuple[pd.DataFrame, list[Failure]]:
    """Runs all configurations, and gathers their results in ``out / "results.parquet"``.

    A script calls it under ``if __name__ == "__main__":``, since workers import the script.

    Args:
        configs: the runs. Those that differ only in settings of agents that their method doesn't have are one.
        out: folder; each run has its own below ``out / "runs"``. Only one comparison may be at work in it.
        resume: keep finished runs and go on with unfinished ones, instead of starting anew.
        runner: what brings the runs to their end; by default one process after the other, here.
        on_progress: called, here, whenever a run reports.

    Returns:
        The rows of all runs, in the order of ``configs``; and the runs that failed.

    Raises:
        UserError: runs differ in nothing but their epochs, a script is without its guard, the folder can't be written
            to, or another comparison is at work in it.
    """
    if getattr(current_process(), "_inheriting", False):  # as multiprocessing itself finds out
        raise UserError('a worker came upon compare in its script; write it below `if __name__ == "__main__":`')
    runs = list(dict.fromkeys(map(settings_of, configs)))
    _check_epochs(runs)
    output_folder(out / RUNS)
    with _alone_in(out):
        remove_leftovers(out / RUNS)
        units = [Unit(config, out / RUNS / config.name) for config in runs]
        if not resume:
            for unit in units:
                (unit.folder / CHECKPOINT).unlink(missing_ok=True)
        todo = [unit for unit in units if not unit.finished]
        for unit in units:
            if unit not in todo:
                on_progress(Progress(unit.config.name, step=1, n_steps=1, epoch=unit.config.epochs))
        failures = (runner or local_runner(workers=1, threads=1))(todo, on_progress)
        frames = []
        failed = {failure.config for failure in failures}
        for unit in units:
            if unit.config not in failed:
                try:
                    frames.append(_rows_of(unit))
                except UserError as error:
                    failures.append(Failure(unit.config, str(error)))
        frame = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()
        if frames:
            write_results(out / RESULTS, frame)
        return frame, failures


def _rows_of(unit: Unit) -> pd.DataFrame:
    """The results of a finished run; UserError where its file is missing, broken or somebody else's."""
    path = unit.folder / RESULTS
    frame = read_results(path)
    if others := sorted({*frame["run"]} - {unit.config.name}):
        raise UserError(f"{path} has rows of {others[0]}; delete its folder, and the run is made again")
    return frame


def _check_epochs(configs: Sequence[RunConfig]) -> None:
    """Raises UserError for two lengths of the same run: its scores after each epoch would count twice."""
    lengths: dict[RunConfig, int] = {}
    for config in configs:
        length = lengths.setdefault(replace(config, epochs=1), config.epochs)
        if length != config.epochs:
            raise UserError(
                f"epochs is {length} and {config.epochs} for {config.method} on {config.suite}, seed {config.seed}; "
                "give one, since a run keeps its scores after every epoch"
            )


@contextmanager
def _alone_in(out: Path) -> Iterator[None]:
    """Keeps other comparisons out of a folder; the lock goes with the process, however that ends."""
    lock = FileLock(out / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise UserError(f"another comparison is at work in {out}; wait for its end, or choose another --out") from error
    except OSError as error:
        raise UserError(f"the output folder {out} can't be locked: {error.strerror}; choose another") from error
    try:
        yield
    finally:
        lock.release()
