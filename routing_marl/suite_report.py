"""What is in a suite: how many instances of each class, and a sheet of examples."""

from dataclasses import dataclass
from textwrap import wrap

from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from routing_marl.suites import TaskSuite


@dataclass(frozen=True)
class CountRow:
    """How many instances of each class one task has in one split."""

    suite: str
    task: str
    split: str
    total: int
    per_class: tuple[int, ...]


def count_rows(suite: TaskSuite) -> list[CountRow]:
    """The counts of a suite, task by task and split by split."""
    rows = []
    for task, (name, n_classes) in enumerate(zip(suite.task_names, suite.n_classes, strict=True)):
        for part, split in suite.splits.items():
            label = split.label[split.offset[task] : split.offset[task + 1]]
            per_class = tuple(label.bincount(minlength=n_classes).tolist())
            rows.append(CountRow(suite.name, name, part, len(label), per_class))
    return rows


def contact_sheet(suite: TaskSuite, columns: int = 12) -> Figure:
    """A row of training images per task, one of each class in turn, labelled by task and class.

    Args:
        suite: what to show.
        columns: images of a row. Of a task with more classes, the first ones are shown.
    """
    images, split = suite.images.cpu().numpy(), suite.train.to("cpu")
    layout = ConstrainedLayoutEngine(w_pad=0.01, h_pad=0.01, wspace=0, hspace=0)
    figure = Figure(figsize=(1.9 + 0.8 * columns, 0.4 + 0.95 * suite.n_tasks), layout=layout)
    figure.suptitle(f"{suite.name}: training images", fontsize=10)
    grid = figure.subplots(suite.n_tasks, columns, squeeze=False)
    for task, row in enumerate(grid):
        chosen = slice(int(split.offset[task]), int(split.offset[task + 1]))
        image, label = split.image[chosen].numpy(), split.label[chosen].numpy()
        n_classes = suite.n_classes[task]
        name = suite.task_names[task].replace("_", " ")
        if suite.clusters is not None:
            name += f"\n(cluster {int(suite.clusters[task])})"
        row[0].set_ylabel(_wrapped(name, 18), fontsize=7, rotation=0, ha="right", va="center")
        for column, axes in enumerate(row):
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            class_, number = column % n_classes, column // n_classes
            members = image[label == class_]
            shown = -(-(columns - class_) // n_classes)
            if number >= len(members):
                continue
            pixels = images[members[number * len(members) // shown if shown < len(members) else number]]
            axes.imshow(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels[..., :3], cmap="gray", vmin=0, vmax=255)
            told = str(class_) if suite.class_names is None else suite.class_names[task][class_]
            axes.set_title(_wrapped(told.replace("_", " "), 14), fontsize=6, pad=2)
    return figure


def _wrapped(text: str, width: int) -> str:
    return "\n".join(line for part in text.split("\n") for line in wrap(part, width))
