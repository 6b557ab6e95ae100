"""The command line: ``routing-marl COMMAND OPTIONS``.

Options are the fields of frozen dataclasses. Nothing heavy is imported before a command is known to be well-formed.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro

from routing_marl.config import AgentConfig, EngineConfig, NetworkConfig, RunConfig
from routing_marl.errors import UserError
from routing_marl.files import check_output_file

T = TypeVar("T")


def _listed(parse: Callable[[str], T], metavar: str) -> Any:
    """A tuple option whose items are separated by commas or spaces."""

    def of_strings(words: list[str]) -> tuple[T, ...]:
        return tuple(parse(word) for words_ in words for word in words_.split(",") if word)

    return tyro.constructors.PrimitiveConstructorSpec(
        nargs="*",
        metavar=metavar,
        instance_from_str=of_strings,
        is_instance=lambda value: isinstance(value, tuple),
        str_from_instance=lambda value: [",".join(str(item) for item in value)],
    )


def _words(metavar: str) -> Any:
    """A tuple option whose items are separated by spaces."""
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs="*",
        metavar=f"{metavar} ...",
        instance_from_str=tuple,
        is_instance=lambda value: isinstance(value, tuple),
        str_from_instance=lambda value: [*value],
    )


@dataclass(frozen=True)
class Common:
    """What every command that plays takes."""

    data_dir: Path | None = None
    """Folder with data sets; by default $ROUTING_MARL_DATA, else a cache folder of yours."""
    device: str = "auto"
    """auto, cpu or cuda."""
    threads: int | None = None
    """Threads that torch may use; by default all, shared fairly between parallel runs."""
    json: Path | None = None
    """Also write the summary to this file, as JSON."""
    debug: bool = False
    """Show the traceback of an error."""


@dataclass(frozen=True)
class Play(Common):
    """The settings of a run that `train` and `compare` share."""

    suite: str = "digits"
    """One that `routing-marl data` lists, or the path of an .npz file or a folder (task/class/image) of yours."""
    epochs: int = 5
    """Times that the training data is gone through."""
    validation: float | None = None
    """Share of the training data held out for validation; by default the suite's own."""
    full_test: bool = False
    """All test images for each task, instead of the paper's 200 (mnist_mtl, fashion_mtl)."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    agent: AgentConfig = field(default_factory=AgentConfig)

    def run_config(self, method: str, seed: int) -> RunConfig:
        """The configuration of one run."""
        shared = {f.name: getattr(self, f.name) for f in fields(RunConfig) if hasattr(self, f.name)}
        data_dir = None if self.data_dir is None else str(self.data_dir)
        return RunConfig(**{**shared, "method": method, "seed": seed, "data_dir": data_dir})


@dataclass(frozen=True)
class Train(Play):
    """Trains one method on one suite from one seed."""

    method: str = "wpl"
    """What to train; `routing-marl methods` lists them."""
    seed: int = 0
    """Decides weights, data order and choices."""
    out: Path | None = None
    """Folder for results, routes and checkpoint; by default results/<name of the run>."""
    resume: bool = False
    """Go on from the checkpoint in the output folder."""
    tensorboard: bool = False
    """Also write TensorBoard events into the output folder."""

    def __call__(self) -> None:
        from routing_marl.commands import train

        train(self)


@dataclass(frozen=True)
class Compare(Play):
    """Trains several methods from several seeds, and compares them: a table, learning curves and routes.

    The same command again goes on where it was stopped, however that was.
    """

    methods: Annotated[tuple[str, ...], _listed(str, "NAME,NAME,...")] = (
        "wpl",
        "q_learning",
        "policy_gradient",
        "random",
        "shared_bottom",
        "task_specific_1_fc",
        "task_specific_all_fc",
    )
    """What to compare; `routing-marl methods` lists them."""
    seeds: Annotated[tuple[int, ...], _listed(int, "INT,INT,...")] = (0, 1, 2)
    """One run of each method for each seed."""
    vary: Annotated[tuple[str, ...], _words("NAME=VALUE,VALUE")] = ()
    """Also one run for each value of other settings: `--vary rho=0,0.3 suite=digits,mnist_mtl`."""
    grid: Path | None = None
    """A TOML or YAML file with methods, suites, seeds and settings, or the name of one that comes with the package;
    what it leaves open is as on the command line."""
    out: Path = Path("results/compare")
    """Folder for results.parquet, the pictures, and a folder of each run."""
    resume: bool = True
    """Keep finished runs that are in the output folder, and go on with unfinished ones."""
    workers: int | None = None
    """Runs at a time; by default one per core, on a GPU at most one per 4 GiB of its memory."""
    ray: str | None = None
    """Run on a Ray cluster: auto for the one of this machine, its address, or local for a new one on this machine."""
    gpus_per_run: float = 0.0
    """Share of a GPU that a run on the cluster takes."""

    def __call__(self) -> None:
        from routing_marl.compare_command import compare

        compare(self)


@dataclass(frozen=True)
class Export(Common):
    """Writes the results of a comparison for other tools."""

    results: tyro.conf.Positional[Path] = Path("results/compare")
    """Folder of a run or a comparison, or its results.parquet."""
    format: Literal["csv", "marl-eval"] = "csv"
    """csv: the same rows; marl-eval: the JSON that the tool of that name reads (one split)."""
    split: Literal["train", "validation", "test"] = "test"
    """Part of the data whose scores marl-eval gets."""
    out: Path | None = None
    """File to write; by default beside the results."""

    def __call__(self) -> None:
        from routing_marl.commands import export

        export(self)


@dataclass(frozen=True)
class Report(Common):
    """Writes one HTML page about a comparison: tables, curves, routes, diagnostics; it opens without a network."""

    results: tyro.conf.Positional[Path] = Path("results/compare")
    """Folder of a run or a comparison, or its results.parquet."""
    out: Path | None = None
    """File to write; by default report.html beside the results."""

    def __call__(self) -> None:
        from routing_marl.commands import report

        report(self)


@dataclass(frozen=True)
class Evaluate(Common):
    """Measures a trained checkpoint."""

    checkpoint: tyro.conf.Positional[Path] = Path("checkpoint.pt")
    """The checkpoint.pt of a run."""
    split: Literal["train", "validation", "test"] = "test"
    """Part of the data to measure it on."""

    def __call__(self) -> None:
        from routing_marl.commands import evaluate

        evaluate(self)


@dataclass(frozen=True)
class Diagnose(Common):
    """Says whether a run has converged, and to what; writes all numbers and pictures beside it."""

    run: tyro.conf.Positional[Path] = Path("results")
    """The folder of a run."""
    out: Path | None = None
    """Folder for diagnostics.parquet and the pictures; by default the run's own."""

    def __call__(self) -> None:
        from routing_marl.commands import diagnose

        diagnose(self)


@dataclass(frozen=True)
class NashGap(Common):
    """Measures what each agent of a checkpoint could gain by another route, blocks frozen."""

    checkpoint: tyro.conf.Positional[Path] = Path("checkpoint.pt")
    """The checkpoint.pt of a run."""
    split: Literal["validation", "test"] | None = None
    """Part of the data to measure it on; by default validation, or test where none was held out."""
    sampled: bool = False
    """Deviate from play as in training, not from greedy routes."""
    max_routes: int = 2048
    """Up to how many routes all are tried; with more, the best action is looked for depth by depth."""

    def __call__(self) -> None:
        from routing_marl.commands import nash_gap

        nash_gap(self)


@dataclass(frozen=True)
class Data(Common):
    """Lists the data sets that are there, where they were looked for, and the suites with the instances of tasks."""

    download: Annotated[tuple[str, ...], _listed(str, "NAME,NAME,...")] = ()
    """Data sets to fetch first (mnist, fashion_mnist, cifar100, omniglot)."""
    show: str | None = None
    """A suite to draw a contact sheet of, instead: a row of training images per task."""
    out: Path | None = None
    """Picture that the contact sheet goes to; by default <suite>.png."""

    def __call__(self) -> None:
        from routing_marl.commands import data

        data(self)


@dataclass(frozen=True)
class Methods(Common):
    """Lists the methods, where they come from, and their settings."""

    def __call__(self) -> None:
        from routing_marl.commands import methods

        methods(self)


@dataclass(frozen=True)
class Bench(Common):
    """Measures what routing costs beside the convolutions: ratios, with their targets."""

    only: Annotated[tuple[str, ...], _listed(str, "NAME,NAME,...")] = ()
    """Some of the benchmarks only."""
    seconds: float = 8.0
    """Time for each comparison."""
    plot: Path | None = None
    """Also draw the cost of an instance against the number of tasks, into this picture."""
    long: bool = False
    """Also measure the time to cross-stitch's accuracy (an hour), which needs CIFAR-100."""
    out: Path | None = None
    """Folder in which the long runs are kept, to go on there if they are stopped."""

    def __call__(self) -> None:
        from routing_marl.bench_command import bench

        bench(self)


COMMANDS: dict[str, Callable[..., Any]] = {
    "train": Train,
    "compare": Compare,
    "export": Export,
    "report": Report,
    "evaluate": Evaluate,
    "diagnose": Diagnose,
    "nash-gap": NashGap,
    "data": Data,
    "methods": Methods,
    "bench": Bench,
}


def parse(arguments: Sequence[str]) -> Any:
    """The command that these words stand for; exits with code 2 where they stand for none."""
    return tyro.extras.subcommand_cli_from_dict(
        COMMANDS,
        prog="routing-marl",
        description="Routing networks as a multi-agent game.",
        args=arguments,
        config=(tyro.conf.OmitSubcommandPrefixes, tyro.conf.OmitArgPrefixes),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command. Bad input is one line and exit code 2; Ctrl-C is exit code 130."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    try:
        command = parse(arguments)
        if command.threads is not None and command.threads < 1:
            raise UserError(f"threads is {command.threads}; it must be at least 1")
        if command.json is not None:
            check_output_file(command.json)
        command()
    except UserError as error:
        if debug:
            raise
        _stop(f"routing-marl: {error}", 2)
    except KeyboardInterrupt:
        if debug:
            raise
        goes_on = arguments[:1] in (["train"], ["compare"])
        hint = "; the same command with --resume goes on from the last finished epoch" if goes_on else ""
        _stop(f"routing-marl: stopped{hint}", 130)


def _stop(message: str, code: int) -> None:
    print(message, file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
