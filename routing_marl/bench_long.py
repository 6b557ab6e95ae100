"""The benchmark that trains to the end, and so takes an hour: WPL against cross-stitch networks."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from rich.console import Console

from routing_marl.bench_games import Settings
from routing_marl.config import RunConfig
from routing_marl.display import progress_bars
from routing_marl.errors import UserError
from routing_marl.measuring import Figure, figure
from routing_marl.pool import local_runner
from routing_marl.recipes import make_suite


def long_runs(settings: Settings) -> list[RunConfig]:
    """What is trained; UserError where its data is missing, so that one can ask before any work starts."""
    from routing_marl.grid import expand, read_grid

    base = RunConfig(method="wpl", device=settings.device, data_dir=settings.data_dir)
    configs = [config for grid in read_grid(Path("paper_cross_stitch")) for config in expand(grid, base)]
    make_suite(configs[0].suite, settings.data_dir)
    return configs


def time_to_cross_stitch(settings: Settings) -> Iterator[Figure]:
    """Training time of WPL until it has cross-stitch's final test accuracy, over cross-stitch's own. An hour."""
    # What reads tables is loaded where it is needed: it takes as long as torch.
    from routing_marl.comparison import compare
    from routing_marl.statistics import time_to_accuracy
    from routing_marl.summary import final_scores

    configs = long_runs(settings)
    with ExitStack() as stack:
        out = settings.out or Path(stack.enter_context(TemporaryDirectory()))
        report = stack.enter_context(progress_bars(Console(), len(configs)))
        frame, failures = compare(configs, out, runner=local_runner(1, torch.get_num_threads()), on_progress=report)
    if failures:
        raise UserError(f"{failures[0].config.name} failed: {failures[0].reason}")
    ratios: list[float] = []
    goals: list[float] = []
    for _, runs in frame.groupby("seed"):
        stitched = final_scores(runs[runs["method"] == "cross_stitch"])
        ((goal, whole),) = stitched[["accuracy", "wall_s"]].to_numpy(float).tolist()
        reached = time_to_accuracy(runs[runs["method"] == "wpl"], goal, unit="wall_s")
        ratios += (reached.to_numpy() / whole).tolist()
        goals.append(goal)
    what = f"training time of WPL to {100 * np.mean(goals):.1f} % / cross-stitch's of {configs[0].epochs} epochs"
    yield figure("time_to_cross_stitch", what, ratios, ("<=", 0.15))
