"""Result tables: their columns, and how they get to disk and back."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from routing_marl.errors import UserError
from routing_marl.files import write_whole
from routing_marl.rows import MEAN_TASK as MEAN_TASK
from routing_marl.rows import Row

SCHEMA: dict[str, str] = {
    "run": "string",
    "suite": "string",
    "method": "string",
    "settings": "string",
    "seed": "int64",
    "epoch": "int64",
    "split": "string",
    "task": "int64",
    "accuracy": "float64",
    "balanced_accuracy": "float64",
    "loss": "float64",
    "wall_s": "float64",
    "instances_per_s": "float64",
    "parameters": "float64",
    "multiply_adds": "float64",
    "dropped": "float64",
}
"""Columns of results.parquet (docs/results.md). One row per task, and one with task -1 for their mean. ``run`` names
the run and its folder; ``settings`` is what it was given that is no default. ``wall_s`` is the training time from the
start of the run to the end of the epoch, evaluation not counted; ``instances_per_s`` is the epoch's. ``parameters`` are
the network's, ``multiply_adds`` those of one instance (see :class:`routing_marl.cost.Cost`), and ``dropped`` is the
share of instances that found a block full; nan where blocks have no capacity, or nobody counted."""

LATER_COLUMNS: dict[str, str | float] = {
    "run": "",
    "settings": "",
    "parameters": float("nan"),
    "multiply_adds": float("nan"),
    "dropped": float("nan"),
}
"""What older files lack, and what stands there instead."""

KEY = ["suite", "method", "settings", "seed", "epoch", "split", "task"]
"""The columns that tell rows apart."""


def table(rows: Sequence[Row]) -> pd.DataFrame:
    """Rows as a data frame of the documented columns and types."""
    return pd.DataFrame(list(rows), columns=list(SCHEMA)).astype(SCHEMA)


def write_results(path: Path, frame: pd.DataFrame) -> None:
    """Writes results.parquet, whole or not at all."""
    write_whole(path, lambda temporary: frame.to_parquet(temporary, index=False))


def _typed(path: Path, column: "pd.Series[Any]") -> "pd.Series[Any]":
    """The column as its documented type."""
    kind = SCHEMA[str(column.name)]
    try:
        return column.astype(kind)  # type: ignore[call-overload,no-any-return]
    except (TypeError, ValueError) as error:
        raise UserError(f"{path} has something else than {kind} in its column {column.name}") from error


def read_results(path: Path) -> pd.DataFrame:
    """Reads results.parquet.

    Raises:
        UserError: it is missing, broken, of other columns, or has two rows for the same scores.
    """
    try:
        frame = pd.read_parquet(path)
    except FileNotFoundError as error:
        raise UserError(f"{path} is not there; give the folder of a finished run or comparison") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not a readable Parquet file ({error})") from error
    missing = [name for name in SCHEMA if name not in frame and name not in LATER_COLUMNS]
    if missing:
        raise UserError(f"{path} has no column {', '.join(missing)}; it needs {', '.join(SCHEMA)}")
    added: dict[str, Any] = {name: value for name, value in LATER_COLUMNS.items() if name not in frame}
    frame = frame.assign(**added)
    frame = frame.assign(**{name: _typed(path, frame[name]) for name in SCHEMA})
    if (twice := frame.duplicated(KEY)).any():
        row = frame[twice].iloc[0]
        what = " ".join(f"{name} {row[name]}" for name in KEY if row[name] != "")
        raise UserError(f"{path} has two rows for {what}; give tables of different runs other settings or seeds")
    return frame[[*SCHEMA, *(name for name in frame if name not in SCHEMA)]]
