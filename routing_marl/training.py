"""One run: a method learns a suite, epoch by epoch, and can be stopped at any moment and resumed to the bit."""

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from routing_marl.assembly import make_game
from routing_marl.checkpoints import CHECKPOINT, CHECKPOINT_FORMAT, read_checkpoint
from routing_marl.config import RunConfig
from routing_marl.cost import Cost, cost_of
from routing_marl.engine import RoutingEngine, SplitName, Step
from routing_marl.environment import ENVIRONMENT, environment, pick_device
from routing_marl.errors import UserError
from routing_marl.evaluation import Evaluation, Tally, evaluate, reported
from routing_marl.files import output_folder, write_json, write_whole
from routing_marl.methods import find_method, settings_of
from routing_marl.protocol import Agent
from routing_marl.recipes import make_suite
from routing_marl.returns import Returns
from routing_marl.routes import ROUTES, routes_kept
from routing_marl.rows import Row, metric_rows
from routing_marl.suites import TaskSuite

RESULTS, CONFIG = "results.parquet", "config.json"

_READ_EVERY_S = 0.5
"""Seconds between two looks at the metrics: a look waits for the device."""

_RETURNS_EVERY = 8
"""Episodes between two whose returns are compared with what agents expected."""


class TrainingFailed(UserError):
    """The loss was not a finite number; the message says at which update, what is left, and what to try."""


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        run: the run's name.
        step: updates done, of ``n_steps`` in all epochs.
        epoch: the epoch under way, from 1.
        instances_per_s: training speed in this epoch.
        accuracy: on the training data of this epoch so far.
        loss: likewise, in nats.
    """

    run: str
    step: int
    n_steps: int
    epoch: int
    instances_per_s: float = math.nan
    accuracy: float = math.nan
    loss: float = math.nan


OnProgress = Callable[[Progress], None]


def play_episode(engine: RoutingEngine, agent: Agent, returns: Returns | None = None) -> Step:
    """One batch of parallel training episodes: agents act at every depth, blocks learn, agents learn.

    Args:
        engine: the game.
        agent: who plays.
        returns: where returns are counted, before agents learn from them.
    """
    observation = engine.reset()
    for _ in range(engine.spec.n_depths):
        step = engine.step(agent.act(observation), reported(agent, observation, engine))
        observation = step.observation
    trajectory = engine.trajectory
    if returns is not None:
        returns.add(trajectory)
    agent.learn(trajectory)
    return step


class Run:
    """A run in memory: the game, the agents and what was measured so far.

    Args:
        config: what to run.
        suite: its suite, where it is loaded already.
    """

    def __init__(self, config: RunConfig, suite: TaskSuite | None = None) -> None:
        self.config = settings_of(config)
        self.device = pick_device(config.device)
        self.suite = suite or make_suite(
            config.suite, config.data_dir, validation=config.validation, full_test=config.full_test
        )
        self.engine, self.agent = make_game(self.config, self.suite, self.device)
        self.epoch = 0
        self.wall_s = 0.0
        self.rows: list[Row] = []
        self.usage: list[torch.Tensor] = []
        self.policies: list[torch.Tensor] = []
        self.returns: list[torch.Tensor] = []

    @property
    def splits(self) -> tuple[SplitName, ...]:
        """The splits that are measured after each epoch."""
        return ("validation", "test") if self.suite.validation is not None else ("test",)

    def train_epoch(self, on_progress: OnProgress | None = None) -> None:
        """Trains for one epoch, then measures the other splits.

        Raises:
            TrainingFailed: a loss was not finite.
        """
        engine, tally = self.engine, Tally(self.suite, self.engine.device)
        returns = Returns(engine.spec, self.agent, self._gamma)
        n_steps, per_step = engine.steps_per_epoch, self._instances_per_step
        start = looked = time.perf_counter()
        dropped: torch.Tensor | None = None
        for step in range(1, n_steps + 1):
            outcome = play_episode(engine, self.agent, returns if step % _RETURNS_EVERY == 1 else None).outcome
            assert outcome is not None
            tally.add(engine.batch, outcome)
            if (share := engine.network.dropped()) is not None:
                dropped = share if dropped is None else dropped + share
            now = time.perf_counter()
            if step == n_steps or (now - looked > _READ_EVERY_S):
                self._check_loss()
                if on_progress:
                    on_progress(self._progress(step, step * per_step / (now - start), tally))
                looked = now
        metrics = tally.metrics()  # waits for the device, so that the time is the whole time
        seconds = time.perf_counter() - start
        self.epoch += 1
        self.wall_s += seconds
        speed = n_steps * per_step / seconds
        self.rows += metric_rows(
            self._row("train", speed, math.nan if dropped is None else float(dropped) / n_steps), metrics
        )
        for split in self.splits:
            evaluation = evaluate(engine, self.agent, split)
            if not evaluation.metrics.loss.isfinite().all():
                raise self._failure(f"the {split} loss after epoch {self.epoch} is not a finite number", self.epoch - 1)
            self.rows += metric_rows(self._row(split, speed, evaluation.dropped), evaluation.metrics)
        self._keep_routes(evaluation)
        self.returns.append(returns.means())

    @cached_property
    def cost(self) -> Cost:
        """What the network costs: known after the first epoch, since counting it loads torch's compiler."""
        return cost_of(self.engine.network, self.suite)

    @property
    def _gamma(self) -> float:
        """The discount that the agents use."""
        given = self.config.agent.gamma
        gamma = find_method(self.config.method).settings.get("gamma") if given is None else given
        return 1.0 if gamma is None else float(gamma)

    @property
    def _instances_per_step(self) -> int:
        return self.suite.n_tasks * self.config.engine.instances * self.config.engine.episodes

    def _row(self, split: str, speed: float, dropped: float) -> Row:
        return {
            "run": self.config.name,
            "suite": self.suite.name,
            "method": self.config.method,
            "settings": self.config.settings,
            "seed": self.config.seed,
            "epoch": self.epoch,
            "split": split,
            "wall_s": self.wall_s,
            "instances_per_s": speed,
            **self.cost._asdict(),
            "dropped": None if math.isnan(dropped) else dropped,
        }

    def _progress(self, step: int, speed: float, tally: Tally) -> Progress:
        metrics, n_steps = tally.metrics(), self.engine.steps_per_epoch
        return Progress(
            self.config.name,
            self.epoch * n_steps + step,
            self.config.epochs * n_steps,
            self.epoch + 1,
            speed,
            float(metrics.accuracy.mean()),
            float(metrics.loss.mean()),
        )

    def _check_loss(self) -> None:
        failed_at = int(self.engine.failed_at)
        if failed_at >= 0:
            what = f"the loss of update {failed_at + 1} (epoch {self.epoch + 1}) is not a finite number"
            raise self._failure(what, self.epoch)

    def _failure(self, what: str, last_good: int) -> TrainingFailed:
        kept = f"the checkpoint of epoch {last_good} is kept" if last_good else "there is no checkpoint yet"
        return TrainingFailed(f"{what}; {kept}; try a lower lr than {self.config.engine.lr:g}")

    def _keep_routes(self, evaluation: Evaluation) -> None:
        self.usage.append(evaluation.usage)
        if evaluation.policy is not None:
            self.policies.append(evaluation.policy)

    # -- on disk -----------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything that the rest of the run depends on, and what was measured."""
        return {
            "format": CHECKPOINT_FORMAT,
            "config": self.config.identity(),
            "engine": self.engine.state_dict(),
            "agent": self.agent.state_dict(),
            "epoch": self.epoch,
            "wall_s": self.wall_s,
            "rows": self.rows,
            "usage": self.usage,
            "policies": self.policies,
            "returns": self.returns,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from ``state_dict``; UserError where it is not that of such a game (a suite that has changed)."""
        try:
            self.engine.load_state_dict(state["engine"])
            self.agent.load_state_dict(state["agent"])
            self.epoch, self.wall_s = state["epoch"], state["wall_s"]
            self.usage, self.policies = state["usage"], state["policies"]
            self.rows = [{**row, "run": self.config.name} for row in state["rows"]]  # more epochs: another name
            self.returns = state["returns"]
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise UserError(
                f"the checkpoint does not fit suite {self.suite.name} as it is now; use the data that it was trained on"
            ) from error

    def save(self, out: Path) -> None:
        """Writes results, routes and, last, the checkpoint; each whole or not at all."""
        from routing_marl.results import table, write_results  # pandas: later than the first progress bar

        write_results(out / RESULTS, table(self.rows))
        arrays = routes_kept(self.engine, self.usage, self.policies, self.returns)
        write_whole(out / ROUTES, lambda path: _save_npz(path, arrays))
        write_whole(out / CHECKPOINT, lambda path: torch.save(self.state_dict(), path))


def train(
    config: RunConfig,
    out: Path | None = None,
    *,
    resume: bool = False,
    suite: TaskSuite | None = None,
    on_progress: OnProgress | None = None,
    on_epoch: Callable[[Run], None] | None = None,
) -> Run:
    """Runs a configuration to its end.

    Args:
        config: what to run.
        out: folder for results.parquet, routes.npz (:class:`routing_marl.routes.Routes`), config.json, environment.json
            and checkpoint.pt; nothing is written without.
        resume: go on from the checkpoint in ``out``, if there is one.
        suite: the suite, where it is loaded already.
        on_progress: called about twice a second.
        on_epoch: called after each epoch.
    """
    begun = out is not None and os.path.exists(out / CHECKPOINT)
    if begun and not resume:
        raise UserError(f"{out} holds a run already; add --resume to go on with it, or choose another --out")
    run = Run(config, suite)  # before the folder is made: bad settings leave nothing behind
    if out is not None and begun:
        run.load_state_dict(read_checkpoint(out / CHECKPOINT, run.config))
    if out is not None and run.epoch < config.epochs:  # a finished run keeps what it was made with
        write_json(output_folder(out) / CONFIG, run.config.identity())
        write_json(out / ENVIRONMENT, environment(run.device))
    while run.epoch < config.epochs:
        run.train_epoch(on_progress)
        if out is not None:
            run.save(out)
        if on_epoch:
            on_epoch(run)
    return run


def _save_npz(path: Path, arrays: dict[str, Any]) -> None:
    with path.open("wb") as file:  # by handle: np.savez would add a suffix to the name
        np.savez_compressed(file, **arrays)
