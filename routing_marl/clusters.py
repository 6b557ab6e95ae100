"""Units on a Ray cluster: one Ray task each. The machines share nothing but Ray, and their results end up here.

A task sends its files, checkpoint included, to an actor beside the driver after each epoch, and the driver writes them
to the folder of the comparison. A task whose worker or machine dies is retried by Ray, and goes on from what the actor
has.
"""

import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from routing_marl.checkpoints import CHECKPOINT
from routing_marl.config import RunConfig
from routing_marl.errors import UserError
from routing_marl.files import output_folder, write_whole
from routing_marl.training import OnProgress, Progress, Run
from routing_marl.units import ATTEMPTS, Failure, Runner, Unit, run_unit

Files = Mapping[str, bytes]


def ray_runner(address: str, threads: int = 1, gpus_per_run: float = 0.0) -> Runner:
    """A runner on a Ray cluster.

    Args:
        address: ``"auto"`` for the cluster that this machine belongs to, the address of one, or ``"local"`` for a new
            one on this machine. Where Ray is initialised already, it is used as it is.
        threads: of torch, and CPUs that Ray reserves, per run.
        gpus_per_run: GPUs that Ray reserves for a run; a fraction lets as many runs share one.
    """
    return partial(_run, address=address, threads=threads, gpus_per_run=gpus_per_run)


def import_ray() -> Any:
    """The library; UserError where it is missing."""
    try:
        import ray
    except ImportError as error:
        raise UserError("--ray needs Ray: pip install 'routing-marl[ray]'") from error
    return ray


class _Desk:
    """The actor: what tasks left for the driver, and each unfinished run's last files."""

    def __init__(self) -> None:
        self._inbox: list[Progress | tuple[str, Files]] = []
        self._last: dict[str, Files] = {}

    def report(self, progress: Progress) -> None:
        """Takes a report."""
        self._inbox.append(progress)

    def keep(self, name: str, files: Files) -> None:
        """Takes a run's files after an epoch."""
        self._inbox.append((name, files))
        self._last[name] = files

    def last(self, name: str) -> Files | None:
        """A run's last files, where it has sent any."""
        return self._last.get(name)

    def forget(self, name: str) -> None:
        """Drops the files of a run that has ended."""
        self._last.pop(name, None)

    def collect(self) -> list[Progress | tuple[str, Files]]:
        """All that came in since the last time, in its order."""
        inbox, self._inbox = self._inbox, []
        return inbox


def _run(
    units: Sequence[Unit], on_progress: OnProgress, *, address: str, threads: int, gpus_per_run: float
) -> list[Failure]:
    if not units:
        return []
    ray = import_ray()
    ours = not ray.is_initialized()
    if ours:
        _connect(ray, address)
    try:
        return _run_tasks(ray, units, on_progress, threads, gpus_per_run)
    except ray.exceptions.RayError as error:
        what = " ".join(str(error).split())
        raise UserError(f"the Ray cluster was lost ({what}); the same command goes on where it was") from error
    finally:
        if ours:
            ray.shutdown()


def _connect(ray: Any, address: str) -> None:
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address == "local":
        options["include_dashboard"] = False
    try:
        ray.init(address=address, **options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        what = " ".join(str(error).split())
        raise UserError(f"ray is {address!r}, but no cluster answers there ({what}); is `ray start` done?") from error


def _run_tasks(
    ray: Any, units: Sequence[Unit], on_progress: OnProgress, threads: int, gpus_per_run: float
) -> list[Failure]:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    desk = ray.remote(_Desk).options(num_cpus=0, scheduling_strategy=here).remote()
    task = ray.remote(_play).options(num_cpus=threads, num_gpus=gpus_per_run, max_retries=ATTEMPTS - 1)
    folders = {unit.config.name: unit.folder for unit in units}
    running = {task.remote(unit.config, _read(unit.folder), desk, threads, os.getcwd()): unit for unit in units}
    failures: list[Failure] = []
    while running:
        ended, _ = ray.wait([*running], timeout=0.5)
        for message in ray.get(desk.collect.remote()):
            if isinstance(message, Progress):
                on_progress(message)
            else:
                _write(folders[message[0]], message[1])
        for reference in ended:
            unit = running.pop(reference)
            desk.forget.remote(unit.config.name)
            try:
                reason = ray.get(reference)
            except ray.exceptions.RayError as error:
                reason = f"its worker died {ATTEMPTS} times ({' '.join(str(error).split())})"
            if reason is not None:
                failures.append(Failure(unit.config, reason))
    return failures


def _play(config: RunConfig, begun: Files, desk: Any, threads: int, folder: str) -> str | None:
    """The task: a unit, in a folder that goes with it. Returns what went wrong."""
    import ray
    import torch

    torch.set_num_threads(threads)
    with suppress(OSError):  # where methods and suites of one's own are looked for; not all machines need have it
        os.chdir(folder)
    with tempfile.TemporaryDirectory() as scratch:
        unit = Unit(config, Path(scratch) / config.name)
        _write(unit.folder, ray.get(desk.last.remote(config.name)) or begun)

        def report(progress: Progress) -> None:
            desk.report.remote(progress)

        def send(run: Run) -> None:
            ray.get(desk.keep.remote(config.name, _read(unit.folder)))

        return run_unit(unit, on_progress=report, on_epoch=send)


def _read(folder: Path) -> Files:
    """A run's files; none where it has not begun."""
    return {path.name: path.read_bytes() for path in folder.glob("[!.]*") if path.is_file()}


def _write(folder: Path, files: Files) -> None:
    """Writes a run's files, each whole or not at all, and the checkpoint last: it says how far the others are."""
    output_folder(folder)
    for name in sorted(files, key=CHECKPOINT.__eq__):
        write_whole(folder / name, lambda path, name=name: path.write_bytes(files[name]))  # type: ignore[misc]
