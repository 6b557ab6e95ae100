"""Units on the cores of one machine: a process each, of which none can harm another's unit by its death."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import parent_process
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from routing_marl.training import OnProgress, Progress
from routing_marl.units import ATTEMPTS, Failure, Runner, Unit, run_unit


def local_runner(workers: int, threads: int) -> Runner:
    """A runner with some processes at a time, of some torch threads each.

    A unit whose process dies (out of memory, ``kill -9``) goes on from its checkpoint in a new one.
    """
    return partial(_run, workers=workers, threads=threads)


class _Worker:
    """A process, our end of the pipe to it, and what it is doing."""

    def __init__(self, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, threads), daemon=True)
        self.process.start()
        theirs.close()  # so that a read ends where the process does
        self.unit: Unit | None = None
        self.epoch = 0

    def give(self, unit: Unit) -> None:
        """Has the process take up a unit. Should it be dead, the next read will tell."""
        self.unit, self.epoch = unit, 0
        with suppress(OSError):
            self.pipe.send(unit)

    def last_words(self) -> str:
        """How the process ended."""
        self.process.join()
        code = self.process.exitcode or 0
        if code >= 0:
            return f"exited with code {code}"
        hint = " (is there memory enough?)" if -code == signal.SIGKILL else ""
        return f"was killed by {signal.Signals(-code).name}{hint}"


@dataclass
class _Deaths:
    """How often a unit has taken its process down since the last epoch that it finished."""

    epoch: int = 0
    count: int = 0

    def add(self, epoch: int) -> int:
        """Counts one more, in an epoch."""
        self.count = self.count + 1 if epoch <= self.epoch else 1
        self.epoch = max(epoch, self.epoch)
        return self.count


@dataclass
class _Ledger:
    """What is left to do, and what went wrong."""

    todo: deque[Unit]
    failures: list[Failure] = field(default_factory=list)
    deaths: dict[Unit, _Deaths] = field(default_factory=dict)

    def died(self, unit: Unit, epoch: int, how: str) -> None:
        """Puts a unit back, after all others, or gives it up."""
        count = self.deaths.setdefault(unit, _Deaths()).add(epoch)
        if count < ATTEMPTS:
            self.todo.append(unit)
        else:
            self.failures.append(Failure(unit.config, f"its process {how}, {count} times in the same epoch"))


def _run(units: Sequence[Unit], on_progress: OnProgress, *, workers: int, threads: int) -> list[Failure]:
    ledger = _Ledger(deque(units))
    team: dict[Connection, _Worker] = {}
    try:
        while ledger.todo or team:
            while ledger.todo and len(team) < workers:
                worker = _Worker(threads)
                worker.give(ledger.todo.popleft())
                team[worker.pipe] = worker
            for pipe in wait([*team]):
                assert isinstance(pipe, Connection)
                if not _listen(team[pipe], ledger, on_progress):
                    team.pop(pipe).pipe.close()  # a process that lives sees it, and ends
    except BaseException:
        # Those that run are stopped too, at their last checkpoint.
        for worker in team.values():
            worker.process.terminate()
        raise
    return ledger.failures


def _listen(worker: _Worker, ledger: _Ledger, on_progress: OnProgress) -> bool:
    """Reads one message; False where the worker is dead, or nothing is left for it to do."""
    assert worker.unit is not None
    try:
        message = worker.pipe.recv()
    except (EOFError, OSError):
        ledger.died(worker.unit, worker.epoch, worker.last_words())
        return False
    if isinstance(message, Progress):
        worker.epoch = message.epoch
        on_progress(message)
        return True
    if message is not None:
        ledger.failures.append(Failure(worker.unit.config, message))
    if not ledger.todo:
        return False
    worker.give(ledger.todo.popleft())
    return True


def _work(pipe: Any, threads: int) -> None:
    """A process's life: units come in; reports go out, and at the end of each unit what went wrong, or None."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    torch.set_num_threads(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    while True:
        try:
            unit = pipe.recv()
        except (EOFError, OSError):
            return
        pipe.send(run_unit(unit, on_progress=pipe.send))


def _end_with_parent() -> None:
    """A comparison that is killed can't stop its workers: they see to it themselves."""
    if (parent := parent_process()) is not None:
        wait([parent.sentinel])
        os._exit(1)
