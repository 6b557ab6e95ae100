"""What the report says of single runs: scores and settings of all, routes of as many as there is room for."""

import base64
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from routing_marl.comparison import RUNS
from routing_marl.config import flattened
from routing_marl.diagnostics import ALL, diagnose
from routing_marl.environment import ENVIRONMENT
from routing_marl.errors import UserError
from routing_marl.routes import ROUTES, Routes, read_routes
from routing_marl.summary import METHOD
from routing_marl.training import CONFIG

METRICS = ("accuracy", "balanced_accuracy", "loss")

_ROUTE_EPOCHS, _DIAGNOSTIC_POINTS = 60, 40
"""Most epochs of a run's routes and of a diagnostic that are kept; evenly spread, with both ends."""
_MOST_DIAGNOSED = 60
"""Runs whose diagnostics are counted: the first seeds of all methods, then the second ones, and so on."""
_ROUTE_BYTES, _RUN_BYTES = 2_500_000, 300_000
"""Room for the routes of all runs, filled in that order, and of one, which loses epochs where it takes more."""

Json = dict[str, Any]


def run_details(last: pd.DataFrame, orders: dict[str, list[str]], folder: Path) -> Json:
    """Scores and settings of all runs, routes of as many as there is room for, diagnostics by suite and method."""
    rank = last.groupby(METHOD)["seed"].rank(method="first")
    place = [orders[suite].index(method) for suite, method in zip(last["suite"], last["method"], strict=True)]
    rows = last.assign(rank=rank, place=place).sort_values(["rank", "suite", "place"]).to_dict("records")
    room, measured = _ROUTE_BYTES, 0
    runs: list[Json] = []
    diagnosed: dict[tuple[str, int], list[pd.DataFrame]] = {}
    for row in rows:
        at = _folder_of(folder, row["run"], len(rows))
        run = {
            "run": row["run"],
            "suite": row["suite"],
            "method": row["place"],
            "seed": row["seed"],
            "final": [_number(row[metric]) for metric in METRICS],
            "config": _words(_read_json(at / CONFIG)) if at else {},
            "environment": _words(_read_json(at / ENVIRONMENT)) if at else {},
            "routes": None,
        }
        runs.append(run)
        routes = _routes(at) if at and (room > 0 or measured < _MOST_DIAGNOSED) else None
        if routes is None:
            continue
        if measured < _MOST_DIAGNOSED:
            diagnosed.setdefault((row["suite"], row["place"]), []).append(diagnose(routes))
            measured += 1
        packed = _pack(routes)
        size = len(packed["usage"]) + len(packed["policy"] or "")
        if size <= room:
            run["routes"] = packed
            room -= size
    common = {part: _common([run[part] for run in runs]) for part in ("config", "environment")}
    for run in runs:
        for part, values in common.items():
            run[part] = {name: value for name, value in run[part].items() if name not in values}
    diagnostics: dict[str, dict[int, Json]] = {}
    for (suite, number), frames in diagnosed.items():
        diagnostics.setdefault(suite, {})[number] = _diagnostics(frames)
    return {"runs": runs, "common": common, "diagnostics": diagnostics, "diagnosed": measured}


def _folder_of(folder: Path, run: str, n_runs: int) -> Path | None:
    """Where a run's files are: in a comparison's folder, or, of a single run, beside its results."""
    at = folder / RUNS / run
    if run and at.is_dir():
        return at
    return folder if n_runs == 1 and (folder / CONFIG).exists() else None


def _routes(at: Path) -> Routes | None:
    """What the run kept; None where it kept none, or where there was nothing to choose."""
    try:
        routes = read_routes(at)
    except UserError:
        if (at / ROUTES).exists():
            raise
        return None
    return routes if routes.usage.shape[-1] > 1 else None


def _pack(routes: Routes) -> Json:
    """Shares as bytes, 255 for 1: fine enough to be seen, and small."""
    n_epochs = len(routes.usage)
    per_epoch = max(1, routes.usage[0].size * (8 if routes.policy is not None else 4) // 3)
    kept = spread(n_epochs, max(2, min(_ROUTE_EPOCHS, _RUN_BYTES // per_epoch)))
    return {
        "epochs": (kept + 1).tolist(),
        "shape": [len(kept), *routes.usage.shape[1:]],
        "blocks": int(routes.n_blocks),
        "tasks": routes.task_names.tolist(),
        "legal": routes.legal.astype(int).tolist(),
        "usage": _bytes(routes.usage[kept]),
        "policy": None if routes.policy is None else _bytes(routes.policy[kept]),
    }


def _bytes(shares: Float[np.ndarray, "epoch depth task action"]) -> str:
    return base64.b64encode(np.rint(255 * shares.clip(0, 1)).astype(np.uint8).tobytes()).decode()


def _diagnostics(frames: Sequence[pd.DataFrame]) -> Json:
    """Per measure and depth: the mean over tasks and runs at each epoch, and the range of the runs'."""
    keys = ["measure", "depth", "epoch"]
    runs = [frame.replace([np.inf, -np.inf], np.nan).groupby(keys)["value"].mean() for frame in frames]
    together = pd.concat(runs, axis=1).dropna(how="all")
    found: Json = {}
    for (measure, depth), values in together.groupby(["measure", "depth"]):
        values = values.iloc[spread(len(values), _DIAGNOSTIC_POINTS)]
        found.setdefault(str(measure), {})["all" if depth == ALL else str(depth)] = {
            "epoch": values.index.get_level_values("epoch").to_list(),
            "mean": numbers(values.mean(axis=1)),
            "low": numbers(values.min(axis=1)),
            "high": numbers(values.max(axis=1)),
        }
    return found


# -- numbers and words -----------------------------------------------------------------------------------------------


def spread(n: int, most: int) -> Int[np.ndarray, " kept"]:
    """Indices of at most so many of n, evenly spread, with both ends."""
    return np.unique(np.rint(np.linspace(0, n - 1, min(n, most))).astype(np.int64))


def columns(frame: Any) -> dict[str, list[float | None]]:
    """The numbers of each column, by its name."""
    return {str(name): numbers(frame[name]) for name in frame}


def numbers(values: Any) -> list[float | None]:
    """Five digits of each; None for what is not finite, which JSON can't say."""
    return [_number(value) for value in values]


def _number(value: float) -> float | None:
    return float(f"{value:.5g}") if math.isfinite(value) else None


def _read_json(path: Path) -> Json:
    try:
        read = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not a readable JSON file ({error}); train the run again") from error
    return read if isinstance(read, dict) else {}


def _words(values: Json) -> dict[str, str]:
    """``name.name`` and the value as text; what was not given is left out."""
    return {name: str(value) for name, value in flattened(values).items() if value is not None}


def _common(parts: Sequence[dict[str, str]]) -> dict[str, str]:
    """What all have, and alike."""
    return {name: value for name, value in parts[0].items() if all(part.get(name) == value for part in parts)}
