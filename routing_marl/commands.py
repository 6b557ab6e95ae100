"""What the commands do once their options are known to be well-formed: loading, progress bars, tables, pictures.

What reads, draws or writes tables is imported where it is needed: pandas, scipy and matplotlib take as long to load as
torch does, and training begins without them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from routing_marl import cli, training
from routing_marl import data as data_sets
from routing_marl.allocator import keep_freed_memory
from routing_marl.checkpoints import read_checkpoint
from routing_marl.config import RunConfig
from routing_marl.display import percent, progress_bars
from routing_marl.environment import pick_device
from routing_marl.errors import UserError
from routing_marl.evaluation import Evaluation
from routing_marl.evaluation import evaluate as evaluate_split
from routing_marl.files import check_output_file, check_picture, output_folder, write_json
from routing_marl.methods import METHODS, check_settings, find_method
from routing_marl.recipes import RECIPES, make_suite
from routing_marl.routes import read_routes
from routing_marl.rows import MEAN_TASK
from routing_marl.suites import TaskSuite


def train(options: "cli.Train") -> None:
    """``routing-marl train``."""
    _set_threads(options.threads)
    find_method(options.method)
    config = options.run_config(options.method, options.seed)
    check_settings((options.method,), options.agent)
    pick_device(config.device)
    suite = make_suite(config.suite, config.data_dir, validation=config.validation, full_test=config.full_test)
    keep_freed_memory()  # from here on: what loading took on the way is not worth keeping
    out = options.out or Path("results") / config.name
    console = Console()
    with progress_bars(console) as report, _tensorboard(out if options.tensorboard else None) as write_events:
        run = training.train(config, out, resume=options.resume, suite=suite, on_progress=report, on_epoch=write_events)
    summary = {row["split"]: row for row in run.rows if row["task"] == MEAN_TASK and row["epoch"] == run.epoch}
    table = Table(title=f"{config.method} on {suite.name}, seed {config.seed}, after {run.epoch} epochs")
    for column in ("split", "accuracy", "balanced accuracy", "loss"):
        table.add_column(column, justify="left" if column == "split" else "right")
    for split, row in summary.items():
        table.add_row(split, percent(row["accuracy"]), percent(row["balanced_accuracy"]), f"{row['loss']:.3f}")
    console.print(table)
    console.print(f"{run.wall_s:.1f} s of training; results in {out}", highlight=False)
    if options.json:
        write_json(options.json, {"config": run.config.identity(), "final": summary})


def export(options: "cli.Export") -> None:
    """``routing-marl export RESULTS``."""
    from routing_marl import exports
    from routing_marl.results import read_results

    path = options.results / training.RESULTS if options.results.is_dir() else options.results
    frame = read_results(path)
    if options.format == "csv":
        out = options.out or path.with_suffix(".csv")
        exports.write_csv(out, frame)
    else:
        out = options.out or path.with_name("marl_eval.json")
        exports.write_marl_eval(out, frame, options.split)
        if uneven := exports.uneven(frame, options.split):
            Console(stderr=True).print(f"marl-eval refuses what is uneven: {uneven}", highlight=False, soft_wrap=True)
    Console().print(f"{len(frame):,} rows of {path} exported to {out}", highlight=False, soft_wrap=True)


def report(options: "cli.Report") -> None:
    """``routing-marl report RESULTS``."""
    from routing_marl.report import write_report

    folder = options.results if options.results.is_dir() else options.results.parent
    out = options.out or folder / "report.html"
    if folder.is_dir():  # else reading says what is missing
        check_output_file(out)
    facts = write_report(options.results, out)
    Console().print(f"{facts['runs']} runs of {facts['methods']} methods in {out}", highlight=False, soft_wrap=True)
    if options.json:
        write_json(options.json, facts)


def evaluate(options: "cli.Evaluate") -> None:
    """``routing-marl evaluate CHECKPOINT``."""
    run, config = _restored(options.checkpoint, options)
    evaluation = evaluate_split(run.engine, run.agent, options.split)
    console = Console()
    console.print(_task_table(f"{config.method} on {options.split}, epoch {run.epoch}", run.suite, evaluation))
    if options.json:
        names = run.suite.task_names
        rows = [dict(zip(evaluation.metrics._fields, v, strict=True)) for v in _per_task(evaluation)]
        write_json(options.json, dict(zip(names, rows, strict=True)))


def diagnose(options: "cli.Diagnose") -> None:
    """``routing-marl diagnose RUN``."""
    from routing_marl import diagnostics, plots
    from routing_marl.results import write_results

    routes = read_routes(options.run)
    out = output_folder(options.out or options.run)
    frame = diagnostics.diagnose(routes)
    last = frame[frame["epoch"] == frame["epoch"].max()]
    depths = sorted(last["depth"].unique())
    names = ["routes" if depth == diagnostics.ALL else f"depth {depth}" for depth in depths]
    table = Table("measure", title=f"{options.run.resolve().name}, epoch {frame['epoch'].max()}, means over tasks")
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("what it is")
    for measure, meaning in diagnostics.MEASURES.items():
        means = last[last["measure"] == measure].groupby("depth")["value"].mean()
        if len(means):
            table.add_row(measure, *(f"{means[d]:.3f}" if d in means else "" for d in depths), meaning)
    console = Console()
    console.print(table)
    write_results(out / "diagnostics.parquet", frame)
    pictures = {"diagnostics.png": plots.diagnostics_over_epochs(frame)}
    if len(routes.task_names) > 1:
        similarity = diagnostics.route_similarity(routes.usage[-1])
        pictures["similarity.png"] = plots.route_similarity(similarity, routes.task_names.tolist(), routes.clusters)
    for name, figure in pictures.items():
        plots.save(figure, out / name)
    console.print(f"diagnostics.parquet, {', '.join(pictures)} in {out}", highlight=False)
    if options.json:
        write_json(options.json, last.replace([np.inf, -np.inf], np.nan).to_dict("records"))


def nash_gap(options: "cli.NashGap") -> None:
    """``routing-marl nash-gap CHECKPOINT``."""
    from routing_marl import nash

    if options.max_routes < 0:
        raise UserError(f"max-routes is {options.max_routes}; it must be at least 0")
    run, config = _restored(options.checkpoint, options)
    split = options.split or run.splits[0]
    found = nash.nash_gap(run.engine, run.agent, split, greedy=not options.sampled, max_routes=options.max_routes)
    routes = "all routes tried" if found.exhaustive else "best actions looked for depth by depth"
    columns = ("task", "return now", "gap", "gain, cross-checked", "best route")
    table = Table(
        *columns,
        title=f"{config.method} on {split}, epoch {run.epoch}: what one agent alone could gain",
        caption=f"{routes}; gap: of the best route on this data; gain: chosen on one half, measured on the other",
    )
    rows = {
        name: {"value": value, "gap": gap, "gain": gain, "half_width": half, "route": route}
        for name, value, gap, gain, half, route in zip(
            run.suite.task_names,
            *(numbers.tolist() for numbers in (found.value, found.gap, found.gain, found.half_width, found.route.T)),
            strict=True,
        )
    }
    for name, row in rows.items():
        gain = f"{row['gain']:.3f} ± {row['half_width']:.3f}"
        table.add_row(name, f"{row['value']:.3f}", f"{row['gap']:.3f}", gain, " ".join(map(str, row["route"])))
    table.add_section()
    means = [f"{float(numbers.mean()):.3f}" for numbers in (found.value, found.gap, found.gain)]
    table.add_row("mean", *means)
    Console().print(table)
    if options.json:
        write_json(options.json, {"split": split, "exhaustive": found.exhaustive, "tasks": rows})


def data(options: "cli.Data") -> None:
    """``routing-marl data``."""
    from routing_marl import plots
    from routing_marl.suite_report import contact_sheet, count_rows

    console = Console()
    if options.out is not None and options.show is None:
        raise UserError(f"out is {options.out}, but nothing is drawn; name a suite with --show")
    if options.show is not None and options.out is not None:
        check_picture("out", options.out)
    for name in options.download:
        data_sets.download(name, options.data_dir)
    if options.show is not None:
        suite = make_suite(options.show, options.data_dir)
        out = options.out or Path(f"{suite.name}.png")
        check_picture("out", out)
        plots.save(contact_sheet(suite), out)
        console.print(f"{suite.n_tasks} tasks of {suite.name} in {out}", highlight=False)
        return
    table = Table("data set", "where", "images", "train", "test", "classes", "MB", title="Data sets")
    rows = data_sets.describe(options.data_dir)
    for row in rows:
        if row.found:
            shape = " x ".join(map(str, row.image_shape or ()))
            counts = (f"{row.n_train:,}", f"{row.n_test:,}", str(row.n_classes), f"{row.bytes_on_disk / 1e6:.0f}")
            table.add_row(row.name, row.where, shape, *counts)
        else:
            table.add_row(row.name, f"[yellow]{row.problem}[/yellow]", *["-"] * 5)
    console.print(table)
    per_task = Table("suite", "split", "tasks", "instances per task", "of each class, first task", title="Suites")
    listed: dict[str, Any] = {}
    missing = {row.name for row in rows if not row.found}
    for name, recipe in RECIPES.items():
        if lacking := [data_set for data_set in recipe.data_sets if data_set in missing]:
            per_task.add_row(name, f"[yellow]needs {', '.join(lacking)}[/yellow]", *["-"] * 3)
            continue
        instances = count_rows(make_suite(name, options.data_dir))
        for split in dict.fromkeys(row.split for row in instances):
            of_split = [row for row in instances if row.split == split]
            sizes = sorted({row.total for row in of_split})
            size = f"{sizes[0]:,}" if len(sizes) == 1 else f"{sizes[0]:,} to {sizes[-1]:,}"
            per_task.add_row(name, split, str(len(of_split)), size, _numbers(of_split[0].per_class))
            listed.setdefault(name, {})[split] = {row.task: row.per_class for row in of_split}
    console.print(per_task)
    if options.json:
        write_json(options.json, {"data_sets": [asdict(row) for row in rows], "suites": listed})


def methods(options: "cli.Methods") -> None:
    """``routing-marl methods``."""
    table = Table("method", "what it is, and its source", "settings")
    table.columns[0].no_wrap = table.columns[2].no_wrap = True
    for name, method in METHODS.items():
        settings = (f"--{key.replace('_', '-')} {value}" for key, value in method.settings.items())
        table.add_row(name, f"{method.summary}\n[dim]{escape(method.source)}[/dim]", "\n".join(settings))
        table.add_section()
    Console().print(table)
    if options.json:
        listed = {n: {"summary": m.summary, "source": m.source, "settings": m.settings} for n, m in METHODS.items()}
        write_json(options.json, listed)


def _restored(checkpoint: Path, options: "cli.Common") -> tuple[training.Run, RunConfig]:
    """The run that a checkpoint is of, as it was then."""
    _set_threads(options.threads)
    state = read_checkpoint(checkpoint)
    config = RunConfig.from_identity(
        state["config"], data_dir=None if options.data_dir is None else str(options.data_dir), device=options.device
    )
    run = training.Run(config)
    run.load_state_dict(state)
    return run, config


def _set_threads(threads: int | None) -> None:
    if threads is not None:
        torch.set_num_threads(threads)


def _numbers(values: tuple[int, ...]) -> str:
    """One after the other, and those that repeat as ``10 x 20``."""
    if len(values) > 2 and len(set(values)) == 1:
        return f"{len(values)} x {values[0]:,}"
    return ", ".join(map(str, values[:12])) + (", ..." if len(values) > 12 else "")


def _per_task(evaluation: Evaluation) -> list[tuple[float, ...]]:
    return list(zip(*(values.tolist() for values in evaluation.metrics), strict=True))


def _task_table(title: str, suite: TaskSuite, evaluation: Evaluation) -> Table:
    table = Table("task", title=title)
    for column in ("accuracy", "balanced accuracy", "loss"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, (accuracy, balanced, loss) in zip(suite.task_names, _per_task(evaluation), strict=True):
        table.add_row(name, percent(accuracy), percent(balanced), f"{loss:.3f}")
    table.add_section()
    accuracy, balanced, loss = (float(values.mean()) for values in evaluation.metrics)
    table.add_row("mean", percent(accuracy), percent(balanced), f"{loss:.3f}")
    return table


@contextmanager
def _tensorboard(out: Path | None) -> Iterator[Any]:
    """A function that writes the last epoch of a run as TensorBoard events; None where nobody asked for them."""
    if out is None:
        yield None
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError("--tensorboard needs TensorBoard: pip install 'routing-marl[tensorboard]'") from error
    writers: list[SummaryWriter] = []

    def write(run: training.Run) -> None:
        if not writers:  # not before: a run that is refused leaves no trace
            writers.append(SummaryWriter(str(out / "tensorboard")))
        for row in run.rows:
            if row["epoch"] == run.epoch and row["task"] == MEAN_TASK:
                for metric in ("accuracy", "balanced_accuracy", "loss"):
                    writers[0].add_scalar(f"{row['split']}/{metric}", row[metric], run.epoch)

    try:
        yield write
    finally:
        for writer in writers:
            writer.close()
