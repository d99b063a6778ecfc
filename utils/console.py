"""Print to standard output and standard error without failing: unencodable text is escaped, broken streams ignored."""

import io
import os
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import TracebackType
from typing import Any

from utils.text import visible

_QUIET = ContextVar("quiet", default=False)  # of this thread


@contextmanager
def quiet(silent: bool = True) -> Iterator[None]:
    """Context manager in which this thread prints no line, warning or progress bar.

    Python warnings of libraries are silent too. With `silent` False, nothing changes.
    """
    if not silent:
        yield
        return
    token = _QUIET.set(True)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        _QUIET.reset(token)


def prepare_streams() -> None:
    """Make stdout and stderr write characters outside their encoding as escape sequences.

    Closed standard streams are replaced by the null device. Without the replacement, the next file that is opened gets
    the closed stream's descriptor, and whatever libraries print is written into that file.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            _discard(name)
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def write(name: str, line: str) -> None:
    """Print one line on stdout or stderr, and flush.

    `name` is "stdout" or "stderr". Control characters are escaped. Text and line end are one write, because torchrun's
    processes share unbuffered streams: with two writes, another process could print between them.
    """
    if _QUIET.get():
        return
    text = f"{visible(line)}\n"
    try:
        try:
            print(text, end="", file=getattr(sys, name), flush=True)
        except UnicodeEncodeError:  # prepare_streams was not called yet
            print(text.encode("ascii", "backslashreplace").decode(), end="", file=getattr(sys, name), flush=True)
    except (OSError, ValueError):  # ValueError: the stream object is closed
        silence(name)


def flush() -> None:
    """Flush stdout and stderr.

    A stream that cannot be flushed is redirected to the null device. Without the redirection, Python would fail to
    flush the stream at exit and end with exit code 120.
    """
    for name in ("stdout", "stderr"):
        try:
            getattr(sys, name).flush()
        except (OSError, ValueError):
            silence(name)


def silence(name: str) -> None:
    """Redirect stdout or stderr to the null device.

    `name` is "stdout" or "stderr". Text in the stream's buffer is discarded too.
    """
    try:
        number = getattr(sys, name).fileno()
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, number)
        os.close(null)
    except (OSError, ValueError):  # a stream without a file, as in a notebook
        _discard(name)


def _discard(name: str) -> None:
    setattr(sys, name, open(os.devnull, "w", encoding="utf-8", errors="backslashreplace"))  # noqa: SIM115, PTH123


LOG_SECONDS = 30.0  # between progress lines where stderr is not a terminal and there is no bar


class Progress:
    """Progress display of one epoch, a bar on a terminal or in a notebook and lines of text elsewhere.

    The lines come at regular intervals. `total` is the number of batches of the epoch and `start` the number that are
    already done. Use the object as a context manager, which closes the bar.
    """

    def __init__(self, title: str, total: int, start: int = 0) -> None:
        self._title = title
        self._total = total
        self._bar = None
        if not _QUIET.get() and (in_notebook() or sys.stderr.isatty()):
            self._bar = bar_class()(total=total, initial=start, desc=title, leave=False, unit="batch")
        self._last_line = time.monotonic()

    def advance(self) -> None:
        """Advance the progress bar by one batch."""
        if self._bar is not None:
            self._bar.update()

    def show(self, done: int, loss: float, accuracy: float, images_per_second: float) -> None:
        """Show the mean loss, the mean accuracy and the speed.

        The loss and the top-1 accuracy (%) are means over the `done` batches so far.
        """
        text = f"loss {loss:.4f}, acc@1 {accuracy:.2f}%, {images_per_second:,.0f} images/s"
        if self._bar is not None:
            self._bar.set_postfix_str(text)
        elif time.monotonic() - self._last_line >= LOG_SECONDS:
            self._last_line = time.monotonic()
            say(f"{self._title}  {done}/{self._total} batches  {text}")

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()


def in_notebook() -> bool:
    """Return True if this process is the kernel of a notebook."""
    ipython: Any = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and "IPKernelApp" in shell.config


def bar_class() -> Any:
    """Import and return the progress bar of tqdm that suits this process.

    It is a widget in a notebook with ipywidgets, and text elsewhere.
    """
    if in_notebook():
        with warnings.catch_warnings(action="ignore"):  # of a missing ipywidgets, without which bars are text
            from tqdm.auto import tqdm as notebook_tqdm
        return notebook_tqdm
    from tqdm import tqdm  # imported late: --help and bad input end before a bar is needed

    return tqdm


def say(line: str) -> None:
    """Print one line on standard output and flush.

    A closed stream is ignored.
    """
    write("stdout", line)


def warn(line: str) -> None:
    """Print a warning on standard error.

    The line gets the prefix "warning: ". A closed stream is ignored.
    """
    write("stderr", "warning: " + line.replace("\n", "\\n"))


def write_error(line: str) -> None:
    """Print one line on standard error, without a prefix.

    A closed stream is ignored.
    """
    write("stderr", line)
