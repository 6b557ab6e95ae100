"""Lines that can be told apart, and their legend."""

from typing import Any

import matplotlib
from matplotlib.figure import Figure

COLOURS = matplotlib.colormaps["tab10"].colors  # type: ignore[attr-defined]
DASHES = ("-", "--", ":", "-.")

_LEGEND_COLUMNS = 4


def style(number: int) -> dict[str, Any]:
    """Colour and dashes of the n-th line: ten colours, then the same ones dashed, ..."""
    return {"color": COLOURS[number % len(COLOURS)], "linestyle": DASHES[number // len(COLOURS) % len(DASHES)]}


def with_legend(width: float, height: float, n_lines: int) -> Figure:
    """A figure with room for :func:`legend_below`, however many lines it names."""
    return Figure(figsize=(width, height + 0.22 * -(-n_lines // _LEGEND_COLUMNS)), layout="constrained")


def legend_below(figure: Figure) -> None:
    """The lines of the last panel by name, below all panels."""
    handles, labels = figure.axes[-1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=_LEGEND_COLUMNS, frameon=False)
