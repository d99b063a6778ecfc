"""Line charts as PNG files, by matplotlib, which is imported when the first one is drawn."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from utils.files import write_atomic


@dataclass
class Line:
    """A line of a chart: its label, its points, and matplotlib's line style ("-", "--", "none" for points alone)."""

    label: str
    xs: list[float]
    ys: list[float]
    style: str = "-"


def line_chart(path: Path, lines: Sequence[Line], x_label: str, y_label: str, title: str = "") -> None:
    """Draw `lines` into the PNG file `path`, whole or not at all. Raises OSError."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it would tell of every font cache it builds
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # a figure without a window or a global state
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(8, 5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for line in lines:
        axes.plot(line.xs, line.ys, line.style, marker="o", markersize=3, linewidth=1.5, label=line.label)
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.set_title(title, fontsize=9)
    if all(float(x).is_integer() for line in lines for x in line.xs):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))  # epochs have no halves
    axes.grid(alpha=0.3)
    if len(lines) > 1:
        axes.legend(fontsize=8)
    write_atomic(path, lambda file: figure.savefig(file, format="png"))
