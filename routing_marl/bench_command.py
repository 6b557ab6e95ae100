"""``routing-marl bench``: which benchmarks are run, and what came out."""

from collections.abc import Sequence
from dataclasses import asdict

import torch
from rich.console import Console

from routing_marl import cli
from routing_marl.allocator import keep_freed_memory
from routing_marl.bench import BENCHMARKS, LONG, cost_curve
from routing_marl.bench_games import Settings
from routing_marl.bench_long import long_runs
from routing_marl.environment import environment, pick_device
from routing_marl.errors import UserError
from routing_marl.files import check_picture, output_folder, write_json
from routing_marl.measuring import Figure


def bench(options: "cli.Bench") -> None:
    """``routing-marl bench``."""
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    keep_freed_memory()
    data_dir = None if options.data_dir is None else str(options.data_dir)
    settings = Settings(options.seconds, pick_device(options.device), data_dir, options.out)
    chosen = _checked(options, settings)
    machine = environment(settings.device)
    console = Console()
    console.print(", ".join(f"{name}: {value}" for name, value in machine.items()), highlight=False)
    listed: dict[str, object] = {}
    for name in chosen:
        for figure in BENCHMARKS[name](settings):
            console.print(_line(figure), highlight=False, soft_wrap=True)
            listed[figure.key] = {**asdict(figure), "met": figure.met}
            if options.json:  # each at once: the next may take an hour, or fail
                write_json(options.json, {"machine": machine, "figures": listed})
    if options.plot:
        from routing_marl import plots

        plots.save(plots.cost_curves(cost_curve(settings)), options.plot)


def _checked(options: "cli.Bench", settings: Settings) -> Sequence[str]:
    """The benchmarks that are asked for; UserError for all that would go wrong after minutes of work."""
    if unknown := [name for name in options.only if name not in BENCHMARKS]:
        raise UserError(f"only is {', '.join(unknown)}; the benchmarks are {', '.join(BENCHMARKS)}")
    if not options.seconds > 0:
        raise UserError(f"seconds is {options.seconds:g}; it must be more than 0")
    named = options.only or tuple(name for name in BENCHMARKS if name not in LONG)
    chosen = tuple(dict.fromkeys((*named, *LONG))) if options.long else named
    if options.plot is not None:
        check_picture("plot", options.plot)
    if set(chosen) & set(LONG):
        long_runs(settings)
    elif options.out is not None:
        raise UserError(f"out is {options.out}, but only long runs are kept; add --long, or leave it out")
    if options.out is not None:
        output_folder(options.out)
    return chosen


def _line(figure: Figure) -> str:
    target = "" if figure.target is None else f"target {figure.target[0]} {figure.target[1]:g}"
    verdict = {None: "", True: "[green]met[/green]", False: "[red]missed[/red]"}[figure.met]
    value = f"{figure.value:,.3g} [{figure.low:,.3g}, {figure.high:,.3g}] {figure.unit}"
    return f"{figure.key:38} {value:28} {target:16} {verdict:6} {figure.what}"
