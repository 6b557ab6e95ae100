"""What is measured of a run, as rows: the columns are those of :data:`routing_marl.results.SCHEMA`.

Without pandas, so that a run can begin before it is loaded.
"""

from typing import Any

from routing_marl.evaluation import TaskMetrics

MEAN_TASK = -1

Row = dict[str, Any]


def metric_rows(run: Row, metrics: TaskMetrics) -> list[Row]:
    """The rows of one epoch and split: ``run`` holds the other columns."""
    columns = {name: values.double() for name, values in metrics._asdict().items()}
    means = {name: float(values.mean()) for name, values in columns.items()}
    rows = [{**run, "task": MEAN_TASK, **means}]
    per_task = zip(*(values.tolist() for values in columns.values()), strict=True)
    rows += [{**run, "task": t, **dict(zip(columns, values, strict=True))} for t, values in enumerate(per_task)]
    return rows
