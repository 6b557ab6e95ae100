"""Pictures of routes: which task went through which block at each depth."""

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

Routes = npt.NDArray[np.int64]
"""``[task, depth]``: an action, or -1 where none has been taken yet."""

_PASS, _STOP, _EMPTY = "#d9d9d9", "#404040", "#f7f7f7"
_NOT_GREY = [*range(0, 14, 2), 16, 18, *range(1, 14, 2), 17, 19]
"""Places in tab20: the strong colours first, then the light ones, without its greys."""


def action_names(n_blocks: int, n_actions: int) -> list[str]:
    """A short name for each action: the block's number, then PASS, then STOP where the game has it."""
    return [*map(str, range(n_blocks)), "PASS", "STOP"][:n_actions]


def routes_as_text(routes: Routes, tasks: list[str], actions: list[str], title: str) -> str:
    """A table with one line per task and one column per depth; ``.`` where nothing has been done yet."""
    width = max(map(len, tasks))
    lines = [title, " " * width + "".join(f"{depth:>6}" for depth in range(routes.shape[1]))]
    for task, route in zip(tasks, routes.tolist(), strict=True):
        cells = (f"{actions[action] if action >= 0 else '.':>6}" for action in route)
        lines.append(f"{task:<{width}}" + "".join(cells))
    return "\n".join(lines)


def routes_as_image(routes: Routes, tasks: list[str], actions: list[str], title: str) -> npt.NDArray[np.uint8]:
    """The same table as a picture ``[height, width, 3]``, one colour per block."""
    n_tasks, n_depths = routes.shape
    n_blocks = actions.index("PASS") if "PASS" in actions else len(actions)
    figure = Figure(figsize=(max(3.2, 1.6 + 0.75 * n_depths), 1.0 + 0.3 * n_tasks), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for (task, depth), action in np.ndenumerate(routes):
        colour = _colour(int(action), n_blocks)
        axes.add_patch(Rectangle((depth - 0.46, task - 0.42), 0.92, 0.84, facecolor=colour))
        if action >= 0:
            ink = "black" if np.dot(to_rgb(colour), (0.299, 0.587, 0.114)) > 0.55 else "white"
            axes.text(depth, task, actions[action], ha="center", va="center", color=ink, fontsize=9)
    axes.set(xlim=(-0.5, n_depths - 0.5), ylim=(n_tasks - 0.5, -0.5), xlabel="depth")
    axes.set_title(title, fontsize=10)
    axes.set_xticks(range(n_depths))
    axes.set_yticks(range(n_tasks), tasks)
    axes.tick_params(length=0, labelsize=9)
    axes.spines[:].set_visible(False)
    canvas.draw()  # type: ignore[no-untyped-call]
    return np.array(canvas.buffer_rgba())[..., :3].copy()  # type: ignore[no-untyped-call]


def _colour(action: int, n_blocks: int) -> str | tuple[float, float, float]:
    """Eighteen colours for blocks, again and again where there are more; PASS and STOP are grey."""
    if action < 0:
        return _EMPTY
    if action >= n_blocks:
        return _PASS if action == n_blocks else _STOP
    red, green, blue, _ = colormaps["tab20"](_NOT_GREY[action % len(_NOT_GREY)])
    return red, green, blue
