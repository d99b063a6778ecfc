"""Line charts as PNG files and as pages, by matplotlib and plotly, which are imported when the first one is drawn.

A picture shows what stands in a table: one that cannot be drawn is a warning.
"""

import functools
import html
import importlib
import io
import logging
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.console import warn
from utils.files import write_atomic
from utils.text import escaped, visible

COLOURS = {"C0": "#1f77b4", "C1": "#ff7f0e"}  # matplotlib's first two: pictures and pages look alike
FONTS = ["DejaVu Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Zen Hei", "PingFang SC", "Microsoft YaHei"]
LONGEST = {"label": 60, "title": 95}  # characters that fit


@dataclass
class Line:
    """A line of a chart: its label, its points, and matplotlib's line style ("-", "--", "none" for points alone)."""

    label: str
    xs: list[float]
    ys: list[float]
    style: str = "-"


def line_chart(path: Path, lines: Sequence[Line], x_label: str, y_label: str, title: str = "") -> bool:
    """Draw `lines` into the PNG file `path`, whole or not at all; warns and returns False where that fails."""
    return _written(path, lambda: _png(lines, x_label, y_label, title))


def line_page(path: Path, lines: Sequence[Line], x_label: str, y_label: str, title: str = "") -> bool:
    """The same as an HTML page that needs no other file: hover for values, click a name to hide its line."""
    return _written(path, lambda: _page(lines, x_label, y_label, title).encode())


def _written(path: Path, draw: Callable[[], bytes]) -> bool:
    try:
        with warnings.catch_warnings(action="ignore"):
            content = draw()
        write_atomic(path, lambda file: file.write(content))
    except Exception as error:  # of a library, of its fonts, of the disk: none of them may end a run
        _warn_once(f"cannot write {path}: {escaped(getattr(error, 'strerror', None) or error) or type(error).__name__}")
        return False
    return True


@functools.cache
def _warn_once(line: str) -> None:
    """A picture that is drawn anew in every epoch fails in every epoch."""
    warn(line)


def _png(lines: Sequence[Line], x_label: str, y_label: str, title: str) -> bytes:
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it would tell of every font cache it builds
    _import_matplotlib()
    import matplotlib.style
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # a figure without a window or a global state
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    file = io.BytesIO()
    with matplotlib.style.context(["default", {"text.parse_math": False}]):  # whatever the person's matplotlibrc says
        text = _drawable()
        figure = Figure(figsize=(8, 5), dpi=120, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        for line in lines:
            axes.plot(line.xs, line.ys, line.style, marker="o", markersize=3, linewidth=1.5)
        axes.set(xlabel=text(x_label, "label"), ylabel=text(y_label, "label"))
        axes.set_title(text(title, "title"), fontsize=9)
        if all(float(x).is_integer() for line in lines for x in line.xs):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))  # epochs have no halves
        axes.grid(alpha=0.3)
        if len(lines) > 1:
            legend = axes.legend(axes.lines, [""] * len(lines), fontsize=8)
            for entry, line in zip(legend.get_texts(), lines, strict=True):
                entry.set_text(text(line.label, "label"))  # given to legend(), a name that begins with _ is left out
        figure.savefig(file, format="png")
    return file.getvalue()


def _import_matplotlib() -> None:
    """Import it without the backend of the environment: pictures need no window, and an unknown name is an error."""
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        importlib.import_module("matplotlib.style")
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend


def _drawable() -> Callable[[str, str], str]:
    """(text, LONGEST's key) -> the text on one line, cut in its middle, with what no font here can draw escaped."""
    import matplotlib
    from matplotlib import font_manager

    installed = {font.name for font in font_manager.fontManager.ttflist}
    families = [name for name in FONTS if name in installed]
    matplotlib.rcParams["font.family"] = families or ["sans-serif"]
    fonts: list[Any] = [font_manager.get_font(font_manager.findfont(name)) for name in families]

    def drawn(character: str) -> str:
        known = character.isprintable() and any(font.get_char_index(ord(character)) for font in fonts)
        return character if known or character == " " else character.encode("unicode_escape").decode()

    def text(text: str, of: str) -> str:
        most = LONGEST[of]
        shown = "".join(map(drawn, text))
        return shown if len(shown) <= most else f"{shown[: most // 2 - 2]}...{shown[-most // 2 + 1 :]}"

    return text


def _page(lines: Sequence[Line], x_label: str, y_label: str, title: str) -> str:
    from plotly import graph_objects

    def as_text(text: str) -> str:
        """Plotly takes labels for HTML."""
        return html.escape(visible(text), quote=False)

    figure = graph_objects.Figure()
    for line in lines:
        look = {"dash": "dash" if line.style.endswith("--") else "solid", "color": COLOURS.get(line.style[:2])}
        figure.add_scatter(x=line.xs, y=line.ys, name=as_text(line.label), mode="lines+markers", line=look)
    axes = {"xaxis_title": as_text(x_label), "yaxis_title": as_text(y_label)}
    figure.update_layout(title=as_text(title), hovermode="x unified", **axes)
    return str(figure.to_html(include_plotlyjs=True, full_html=True, default_height="95vh"))
