"""Lines that can be told apart, and their legend."""

from typing import Any

import matplotlib
from matplotlib.figure import Figure

COLOURS = matplotlib.colormaps["tab10"].colors  # type: ignore[attr-defined]
DASHES = ("-", "--", ":", "-.")

_LEGEND_COLUMNS = 4
"""Most columns of a legend ..."""
_ROW = 0.22
"""... and inches of height of each of its rows."""


def style(number: int) -> dict[str, Any]:
    """Colour and dashes of the n-th line: ten colours, then the same ones dashed, ..."""
    return {"color": COLOURS[number % len(COLOURS)], "linestyle": DASHES[number // len(COLOURS) % len(DASHES)]}


def with_legend(width: float, height: float, n_lines: int) -> Figure:
    """A figure with room for :func:`legend_below`, however many lines it names."""
    return Figure(figsize=(width, height + _ROW * -(-n_lines // _LEGEND_COLUMNS)), layout="constrained")


def legend_below(figure: Figure) -> None:
    """The lines of the last panel by name, below all panels; long names take fewer columns and more height."""
    handles, labels = figure.axes[-1].get_legend_handles_labels()
    inches = 0.7 + 0.08 * max(map(len, labels), default=0)  # of a column: the line's sample, and its name
    columns = min(_LEGEND_COLUMNS, max(1, int(figure.get_figwidth() / inches)))
    rows_more = -(-len(labels) // columns) - -(-len(labels) // _LEGEND_COLUMNS)
    figure.set_figheight(figure.get_figheight() + _ROW * rows_more)
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)
