"""What the commands show while they work, and how they write numbers."""

from collections.abc import Iterator
from contextlib import contextmanager
from math import isnan

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from routing_marl import training


def percent(value: float, half: float = float("nan")) -> str:
    """A share in percent, with half an interval where there is one."""
    return f"{100 * value:.1f}" if isnan(half) else f"{100 * value:.1f} ± {100 * half:.1f}"


def count(number: float) -> str:
    """Three digits, and what they stand for; nothing for what nobody counted."""
    if isnan(number):
        return ""
    return f"{number / 1e6:.3g}M" if number >= 999_500 else f"{number / 1e3:.3g}k"


@contextmanager
def progress_bars(console: Console, n_runs: int | None = None) -> Iterator[training.OnProgress]:
    """A bar for one run, or for all runs of a comparison with a bar for each one under way."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[metrics]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bars:
        whole = None if n_runs is None else bars.add_task("all runs", total=n_runs, metrics="")
        runs: dict[str, TaskID] = {}
        done: dict[str, float] = {}

        def report(progress: training.Progress) -> None:
            if progress.run not in runs:
                runs[progress.run] = bars.add_task(progress.run, total=progress.n_steps, metrics="")
            metrics = (
                f"accuracy {100 * progress.accuracy:.1f} %  loss {progress.loss:.3f}  "
                f"{progress.instances_per_s:,.0f} instances/s"
            )
            bars.update(runs[progress.run], completed=progress.step, metrics=metrics)
            if whole is not None:
                done[progress.run] = progress.step / progress.n_steps
                bars.update(whole, completed=sum(done.values()))
                bars.update(runs[progress.run], visible=progress.step < progress.n_steps)

        yield report
