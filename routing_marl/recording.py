"""What another library has trained, measured by our evaluation, in the same result files as our own runs."""

import copy
from pathlib import Path

import pandas as pd

from routing_marl.engine import RoutingEngine, SplitName
from routing_marl.errors import UserError
from routing_marl.evaluation import evaluate
from routing_marl.files import output_folder
from routing_marl.protocol import Agent
from routing_marl.results import read_results, table, write_results
from routing_marl.rows import Row, metric_rows
from routing_marl.summary import summarise
from routing_marl.training import RESULTS


def record(
    out: str | Path, engine: RoutingEngine, agent: Agent, *, method: str, seed: int, wall_s: float
) -> pd.DataFrame:
    """Plays the held-out splits greedily, and adds the rows to ``out / "results.parquet"``, beside those of others.

    The epoch is the number of times that the engine has gone through the training data, so that methods of the same
    epoch have had the same budget of instances. Call it several times during training to get a learning curve: an
    episode that is under way is not disturbed. Rows of the same suite, method, seed and epoch are replaced.
    ``routing-marl compare`` writes the file anew: record after it.

    Args:
        out: folder of a comparison, or a new one.
        engine: the very game that the method was trained in.
        agent: what it learned, by an adapter of :mod:`routing_marl.agents.adapters` or an agent of ours.
        method: its name in the table.
        seed: that it was trained from.
        wall_s: training time so far.

    Returns:
        The table: a row per method in the file, the best first (:func:`routing_marl.summary.summarise`).

    Raises:
        UserError: the engine has not trained for a whole epoch yet, or the file is not a result file.
    """
    epoch = engine.updates // engine.steps_per_epoch
    if epoch == 0 or wall_s <= 0:
        raise UserError(
            f"{method} has trained for {engine.updates} updates in {wall_s:g} s; "
            f"an epoch, the least that can be recorded, is {engine.steps_per_epoch}"
        )
    instances = engine.updates * engine.spec.n_tasks * engine.config.instances * engine.config.episodes
    run: Row = {
        "run": f"{engine.suite.name}-{method}-{seed}",
        "suite": engine.suite.name,
        "method": method,
        "settings": "",
        "seed": seed,
        "epoch": epoch,
        "wall_s": wall_s,
        "instances_per_s": instances / wall_s,
    }
    splits: list[SplitName] = ["test"] if engine.suite.validation is None else ["validation", "test"]
    training = engine.network.training
    twin = copy.copy(engine)  # the same network; an episode that is under way in the engine goes on
    rows = [
        row for split in splits for row in metric_rows({**run, "split": split}, evaluate(twin, agent, split).metrics)
    ]
    engine.network.train(training)
    path = output_folder(Path(out)) / RESULTS
    frame = table(rows)
    if path.exists():
        old = read_results(path)
        same = pd.concat([old[name] == run[name] for name in ("suite", "method", "seed", "epoch")], axis=1).all(axis=1)
        frame = pd.concat([old[~same], frame], ignore_index=True)
    write_results(path, frame)
    return summarise(frame)
