"""One HTML page about a comparison, that needs nothing else: tables, curves, routes, policies, diagnostics.

Python counts, the page's script draws. What it draws from is one block of JSON, so that a page of hundreds of runs
stays a few megabytes: curves are aggregated over seeds, and details of single runs are kept up to a limit.
"""

import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader
from markupsafe import Markup
from plotly.offline import get_plotlyjs
from scipy import stats

from routing_marl import __version__
from routing_marl.diagnostics import MEASURES
from routing_marl.display import count, percent
from routing_marl.errors import UserError
from routing_marl.files import write_whole
from routing_marl.report_details import METRICS, Json, columns, numbers, run_details, spread
from routing_marl.results import MEAN_TASK, read_results
from routing_marl.statistics import caveat, median_times
from routing_marl.summary import final_scores, labelled, summarise
from routing_marl.training import RESULTS

_CURVE_POINTS = 200
"""Most epochs of a curve that are kept; evenly spread, with both ends."""
_TARGETS = 41


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
    if not (frame["task"] == MEAN_TASK).any():
        raise UserError(
            f"{path} has no rows of task {MEAN_TASK}, the mean over tasks; give the results of finished runs"
        )
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
            "final": columns(rows[[*METRICS, *(f"{metric}_ci" for metric in METRICS)]]),
            "curves": {name: _curves(of_suite[of_suite["split"] == name], order) for name in splits},
            "reached": _reached(of_suite, order, split),
        }
    last = final_scores(frame, split)
    details = run_details(last, {suite: facts["methods"] for suite, facts in suites.items()}, path.parent)
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
        kept = spread(len(mean.loc[method]), _CURVE_POINTS)
        of_method, halves = mean.loc[method].iloc[kept], half.loc[method].iloc[kept]
        curves.append(
            {
                "epoch": of_method.index.to_list(),
                **columns(of_method),
                **{f"{metric}_ci": numbers(halves[metric]) for metric in METRICS},
            }
        )
    return curves


def _reached(means: pd.DataFrame, order: Sequence[str], split: str) -> Json:
    """Per method the median over seeds of the epoch, and of the time, at which a target was reached first."""
    reached: Json = {}
    for unit in ("epoch", "wall_s"):
        medians = median_times(means, _TARGETS, unit=unit, split=split)
        reached |= {"target": numbers(medians.columns), unit: [numbers(medians.loc[method]) for method in order]}
    return reached


def _json(value: Any) -> str:
    """JSON that can stand inside a script element whatever is in its strings."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
