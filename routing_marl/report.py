"""One HTML page about a comparison, that needs nothing else: tables, curves, routes, policies, diagnostics.

Python counts, the page's script draws. What it draws from is one block of JSON, so that a page of hundreds of runs
stays a few megabytes: curves are aggregated over seeds, and details of single runs are kept up to a limit.
"""

import base64
import json
import math
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from jinja2 import Environment, PackageLoader
from markupsafe import Markup
from plotly.offline import get_plotlyjs
from scipy import stats

from routing_marl import __version__
from routing_marl.comparison import RUNS
from routing_marl.diagnostics import ALL, MEASURES, diagnose
from routing_marl.display import count, percent
from routing_marl.environment import ENVIRONMENT
from routing_marl.errors import UserError
from routing_marl.files import write_whole
from routing_marl.results import MEAN_TASK, read_results
from routing_marl.routes import ROUTES, Routes, read_routes
from routing_marl.statistics import caveat, time_to_accuracy
from routing_marl.summary import METHOD, final_scores, labelled, summarise
from routing_marl.training import CONFIG, RESULTS

METRICS = ("accuracy", "balanced_accuracy", "loss")

_CURVE_POINTS, _ROUTE_EPOCHS, _DIAGNOSTIC_POINTS = 200, 60, 40
"""Most epochs of a curve, of a run's routes and of a diagnostic that are kept; evenly spread, with both ends."""
_MOST_DIAGNOSED = 60
"""Runs whose diagnostics are counted: the first seeds of all methods, then the second ones, and so on."""
_ROUTE_BYTES, _RUN_BYTES = 2_500_000, 300_000
"""Room for the routes of all runs, filled in that order, and of one, which loses epochs where it takes more."""
_TARGETS = 41

Json = dict[str, Any]


def write_report(results: Path, out: Path) -> Json:
    """Writes the page, whole or not at all.

    Args:
        results: folder of a run or a comparison, or its results.parquet.
        out: the HTML file.

    Returns:
        How many runs, methods, suites, seeds and epochs it is about.

    Raises:
        UserError: there are no readable results.
    """
    what = content(results)
    page = render(what)
    write_whole(out, lambda temporary: temporary.write_text(page, encoding="utf-8"))
    facts: Json = what["facts"]
    return facts


def render(what: Json) -> str:
    """The page of a :func:`content`; everything in it is escaped."""
    templates = Environment(loader=PackageLoader("routing_marl"), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    templates.filters |= {"percent": percent, "count": count}
    return templates.get_template("report.html").render(
        **{**what, "data": Markup(_json(what["data"]))},
        version=__version__,
        plotly=Markup(get_plotlyjs()),
        script=Markup(files("routing_marl").joinpath("templates", "report.js").read_text(encoding="utf-8")),
    )


def content(results: Path) -> Json:
    """What the page says: ``title``, ``notes``, tables by suite, and ``data`` for the script."""
    path = results / RESULTS if results.is_dir() else results
    frame = read_results(path)
    if frame.empty:
        raise UserError(f"{path} has no rows; give the results of finished runs")
    splits = list(dict.fromkeys(frame["split"]))
    split = "test" if "test" in splits else splits[-1]
    frame = labelled(frame)
    summary = summarise(frame, split)
    means = frame[frame["task"] == MEAN_TASK]
    suites: dict[str, Json] = {}
    for suite, rows in summary.groupby("suite", sort=False):
        order = list(rows["method"])
        of_suite = means[means["suite"] == suite]
        suites[str(suite)] = {
            "methods": order,
            "final": _columns(rows[[*METRICS, *(f"{metric}_ci" for metric in METRICS)]]),
            "curves": {name: _curves(of_suite[of_suite["split"] == name], order) for name in splits},
            "reached": _reached(of_suite, order, split),
        }
    last = final_scores(frame, split)
    details = _details(last, {suite: facts["methods"] for suite, facts in suites.items()}, path.parent)
    seeds = summary["seeds"]
    few = caveat(int(seeds.min()))
    return {
        "title": path.parent.resolve().name,
        "facts": {
            "runs": len(last),
            "methods": summary["method"].nunique(),
            "suites": len(suites),
            "seeds": f"{seeds.min()} to {seeds.max()}" if seeds.nunique() > 1 else f"{seeds.max()}",
            "epochs": int(frame["epoch"].max()),
        },
        "split": split,
        "notes": [few] if few else [],
        "tables": {str(suite): rows.to_dict("records") for suite, rows in summary.groupby("suite", sort=False)},
        "data": {"split": split, "splits": splits, "suites": suites, "measures": MEASURES, **details},
    }


# -- all runs --------------------------------------------------------------------------------------------------------


def _curves(means: pd.DataFrame, order: Sequence[str]) -> list[Json | None]:
    """Per method: epochs, training time, and of each metric the mean over seeds and half of its 95 % interval."""
    groups = means.groupby(["method", "epoch"])
    mean, deviation, size = groups[[*METRICS, "wall_s"]].mean(), groups[[*METRICS]].std(), groups.size()
    quantile: pd.Series[float] = pd.Series(stats.t.ppf(0.975, (size - 1).clip(lower=1)), size.index) / np.sqrt(size)
    half = deviation.mul(quantile.where(size > 1), axis=0)
    curves: list[Json | None] = []
    for method in order:
        if method not in mean.index:
            curves.append(None)
            continue
        kept = _spread(len(mean.loc[method]), _CURVE_POINTS)
        of_method, halves = mean.loc[method].iloc[kept], half.loc[method].iloc[kept]
        curves.append(
            {
                "epoch": of_method.index.to_list(),
                **_columns(of_method),
                **{f"{metric}_ci": _numbers(halves[metric]) for metric in METRICS},
            }
        )
    return curves


def _reached(means: pd.DataFrame, order: Sequence[str], split: str) -> Json:
    """Per method the median over seeds of the epoch, and of the time, at which a target was reached first."""
    accuracy = means.loc[means["split"] == split, "accuracy"]
    targets = np.linspace(accuracy.min(), accuracy.max(), _TARGETS)
    reached: Json = {"target": _numbers(targets)}
    for unit in ("epoch", "wall_s"):
        medians = pd.DataFrame(
            {
                target: time_to_accuracy(means, target, unit=unit, split=split).groupby("method").median()
                for target in targets
            }
        )
        reached[unit] = [_numbers(medians.loc[method]) for method in order]
    return reached


# -- single runs -----------------------------------------------------------------------------------------------------


def _details(last: pd.DataFrame, orders: dict[str, list[str]], folder: Path) -> Json:
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
            "config": _flat(_read_json(at / CONFIG)) if at else {},
            "environment": _flat(_read_json(at / ENVIRONMENT)) if at else {},
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
    kept = _spread(n_epochs, max(2, min(_ROUTE_EPOCHS, _RUN_BYTES // per_epoch)))
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
        values = values.iloc[_spread(len(values), _DIAGNOSTIC_POINTS)]
        found.setdefault(str(measure), {})["all" if depth == ALL else str(depth)] = {
            "epoch": values.index.get_level_values("epoch").to_list(),
            "mean": _numbers(values.mean(axis=1)),
            "low": _numbers(values.min(axis=1)),
            "high": _numbers(values.max(axis=1)),
        }
    return found


# -- numbers and words -----------------------------------------------------------------------------------------------


def _spread(n: int, most: int) -> Int[np.ndarray, " kept"]:
    """Indices of at most so many of n, evenly spread, with both ends."""
    return np.unique(np.rint(np.linspace(0, n - 1, min(n, most))).astype(np.int64))


def _columns(frame: Any) -> dict[str, list[float | None]]:
    return {str(name): _numbers(frame[name]) for name in frame}


def _numbers(values: Any) -> list[float | None]:
    return [_number(value) for value in values]


def _number(value: float) -> float | None:
    """Five digits; None for what is not finite, which JSON can't say."""
    return float(f"{value:.5g}") if math.isfinite(value) else None


def _json(value: Any) -> str:
    """JSON that can stand inside a script element whatever is in its strings."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _read_json(path: Path) -> Json:
    try:
        read = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not a readable JSON file ({error}); train the run again") from error
    return read if isinstance(read, dict) else {}


def _flat(values: Json, prefix: str = "") -> dict[str, str]:
    """``name.name`` and the value as text; what was not given is left out."""
    flat: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        elif value is not None:
            flat[f"{prefix}{name}"] = str(value)
    return flat


def _common(parts: Sequence[dict[str, str]]) -> dict[str, str]:
    """What all have, and alike."""
    return {name: value for name, value in parts[0].items() if all(part.get(name) == value for part in parts)}
