"""Line charts as PNG files and as HTML pages. matplotlib and plotly are imported when the first chart is drawn.

A chart of a run shows the values of a table that is also on disk. A failure to draw it is therefore a warning.
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
from utils.errors import RunFailed
from utils.files import write_atomic
from utils.text import escaped, visible

COLOURS = {"C0": "#1f77b4", "C1": "#ff7f0e"}  # matplotlib's first two, so that PNG and page have the same colours
FONTS = ["DejaVu Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Zen Hei", "PingFang SC", "Microsoft YaHei"]
LONGEST_LABEL, LONGEST_TITLE = 60, 95  # characters that fit into the figure


@dataclass
class Line:
    """Line of a chart, with its label, points and line style.

    The style is matplotlib's: "-", "--", or "none" for points alone. The style may begin with a colour of COLOURS, as
    in "C0--".
    """

    label: str
    xs: list[float]
    ys: list[float]
    style: str = "-"


def line_chart(path: Path, lines: Sequence[Line], x_label: str, y_label: str, title: str = "") -> bool:
    """Draw `lines` as a chart and write the chart to a PNG file.

    The file `path` is written atomically. On failure, print a warning and return False.
    """
    return _try_write(path, lambda: _png(lines, x_label, y_label, title))


def write_line_chart(path: Path, lines: Sequence[Line], x_label: str, y_label: str, title: str = "") -> None:
    """Draw a chart like `line_chart`, but raise RunFailed on failure."""
    _write(path, lambda: _png(lines, x_label, y_label, title))


def line_page(path: Path, lines: Sequence[Line], x_label: str, y_label: str, title: str = "") -> bool:
    """Draw `lines` as a chart and write the chart to an interactive HTML file.

    The file `path` is self-contained and written atomically. On failure, print a warning and return False.
    """
    return _try_write(path, lambda: _page(lines, x_label, y_label, title).encode())


def _try_write(path: Path, draw: Callable[[], bytes]) -> bool:
    """Draw a chart and write its bytes to a file.

    `draw` returns the bytes. On failure, print a warning and return False.
    """
    try:
        _write(path, draw)
    except RunFailed as error:  # a failure of a library, its fonts or the disk must not end a run
        _warn_once(str(error))
        return False
    return True


def _write(path: Path, draw: Callable[[], bytes]) -> None:
    """Write the bytes that `draw` returns to a file. Raises RunFailed, whatever the cause of a failure."""
    try:
        with warnings.catch_warnings(action="ignore"):
            content = draw()
        write_atomic(path, lambda file: file.write(content))
    except Exception as error:
        reason = escaped(getattr(error, "strerror", None) or error) or type(error).__name__
        raise RunFailed(f"cannot write {path}: {reason}") from error


@functools.cache
def _warn_once(line: str) -> None:
    """Print a warning the first time only.

    A chart that fails once fails again in every epoch.
    """
    warn(line)


def _png(lines: Sequence[Line], x_label: str, y_label: str, title: str) -> bytes:
    """Return the chart as a PNG, drawn by matplotlib."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # no line about the font cache
    _import_matplotlib()
    import matplotlib.style
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # pyplot has global state and may open a window
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    file = io.BytesIO()
    with matplotlib.style.context(["default", {"text.parse_math": False}]):  # ignores the user's matplotlibrc
        escape = _escape_missing_glyphs()
        figure = Figure(figsize=(8, 5), dpi=120, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        for line in lines:
            axes.plot(line.xs, line.ys, line.style, marker="o", markersize=3, linewidth=1.5)
        axes.set(xlabel=_shorten(escape(x_label), LONGEST_LABEL), ylabel=_shorten(escape(y_label), LONGEST_LABEL))
        axes.set_title(_shorten(escape(title), LONGEST_TITLE), fontsize=9)
        if all(float(x).is_integer() for line in lines for x in line.xs):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))  # no tick at half an epoch
        axes.grid(alpha=0.3)
        if len(lines) > 1:
            legend = axes.legend(axes.lines, [""] * len(lines), fontsize=8)
            for entry, line in zip(legend.get_texts(), lines, strict=True):
                # legend() itself would leave out a name that begins with _
                entry.set_text(_shorten(escape(line.label), LONGEST_LABEL))
        figure.savefig(file, format="png")
    return file.getvalue()


def _import_matplotlib() -> None:
    """Import matplotlib without the environment variable MPLBACKEND.

    An unknown backend in this variable makes the import fail.
    """
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        importlib.import_module("matplotlib.style")
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend


def _shorten(text: str, longest: int) -> str:
    """Return `text`, with its middle replaced by "..." if it has more than `longest` characters."""
    return text if len(text) <= longest else f"{text[: longest // 2 - 2]}...{text[-longest // 2 + 1 :]}"


def _escape_missing_glyphs() -> Callable[[str], str]:
    """Set matplotlib's fonts, and return a function that escapes the characters they lack.

    The fonts are the installed fonts of FONTS. The function replaces each character that none of these fonts can draw
    by its Python escape sequence.
    """
    import matplotlib
    from matplotlib import font_manager

    installed = {font.name for font in font_manager.fontManager.ttflist}
    families = [name for name in FONTS if name in installed]
    matplotlib.rcParams["font.family"] = families or ["sans-serif"]
    fonts: list[Any] = [font_manager.get_font(font_manager.findfont(name)) for name in families]

    def escape(character: str) -> str:
        known = character.isprintable() and any(font.get_char_index(ord(character)) for font in fonts)
        return character if known or character == " " else character.encode("unicode_escape").decode()

    return lambda text: "".join(map(escape, text))


def _page(lines: Sequence[Line], x_label: str, y_label: str, title: str) -> str:
    """Return the chart as an HTML page, drawn by plotly."""
    from plotly import graph_objects

    def as_text(text: str) -> str:
        """Return `text` with HTML's special characters escaped, because plotly interprets labels as HTML."""
        return html.escape(visible(text), quote=False)

    figure = graph_objects.Figure()
    for line in lines:
        look = {"dash": "dash" if line.style.endswith("--") else "solid", "color": COLOURS.get(line.style[:2])}
        figure.add_scatter(x=line.xs, y=line.ys, name=as_text(line.label), mode="lines+markers", line=look)
    figure.update_layout(title=as_text(title), xaxis_title=as_text(x_label), yaxis_title=as_text(y_label))
    figure.update_layout(hovermode="x unified")  # shows the values of all lines at the pointer's x
    return str(figure.to_html(include_plotlyjs=True, full_html=True, default_height="95vh"))
