"""Units of a comparison: one run each, that any process on any machine can take up where it was left."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from routing_marl.allocator import keep_freed_memory
from routing_marl.checkpoints import CHECKPOINT, read_checkpoint
from routing_marl.config import RunConfig
from routing_marl.errors import UserError, described
from routing_marl.recipes import make_suite
from routing_marl.suites import TaskSuite
from routing_marl.training import OnProgress, Run, train

ATTEMPTS = 3
"""Times that a unit may take its process down with it, without an epoch being finished between."""


@dataclass(frozen=True)
class Unit:
    """One run of a comparison.

    Attributes:
        config: what to run.
        folder: where its files are; its name is that of the config, which tells any two runs apart.
    """

    config: RunConfig
    folder: Path

    @property
    def finished(self) -> bool:
        """Whether all epochs are done. What can't be read is not: the run itself will say what is wrong with it."""
        path = self.folder / CHECKPOINT
        try:
            return path.exists() and bool(read_checkpoint(path)["epoch"] >= self.config.epochs)
        except UserError:
            return False


@dataclass(frozen=True)
class Failure:
    """A run that did not end well.

    Attributes:
        config: what was run.
        reason: one line.
    """

    config: RunConfig
    reason: str


Runner = Callable[[Sequence[Unit], OnProgress], list[Failure]]
"""Brings units to their end, in parallel and in any order, and returns those that failed."""


def run_unit(
    unit: Unit, on_progress: OnProgress | None = None, on_epoch: Callable[[Run], None] | None = None
) -> str | None:
    """Takes a unit from its last checkpoint to its end, here; returns the reason where that fails."""
    config = unit.config
    try:
        suite = load_suite(config)
        keep_freed_memory()  # from here on: what loading took on the way is not worth keeping
        train(config, unit.folder, resume=True, suite=suite, on_progress=on_progress, on_epoch=on_epoch)
    except UserError as error:
        return str(error)
    except Exception as error:
        return described(error)
    return None


def load_suite(config: RunConfig) -> TaskSuite:
    """The suite of a run; most runs of a process have that of the run before."""
    return _suite(config.suite, config.data_dir, config.validation, config.full_test)


@lru_cache(maxsize=1)
def _suite(name: str, data_dir: str | None, validation: float | None, full_test: bool) -> TaskSuite:
    return make_suite(name, data_dir, validation=validation, full_test=full_test)
