"""Standard output and standard error: escape what a stream cannot encode, and survive a closed or full stream."""

import io
import os
import sys
import time
from types import TracebackType

from utils.text import visible


def prepare_streams() -> None:
    """Make both streams escape what they cannot encode, and open the null device for each closed standard stream.

    Otherwise the next file opened gets the descriptor of the closed stream and receives what libraries print.
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
    """Write `line` and its line end to sys.stdout or sys.stderr in one call and flush; control characters are escaped.

    `name` is "stdout" or "stderr". The streams of torchrun's processes are unbuffered: with two calls, lines of other
    processes could come between the text and its line end.
    """
    text = f"{visible(line)}\n"
    try:
        try:
            print(text, end="", file=getattr(sys, name), flush=True)
        except UnicodeEncodeError:  # before prepare_streams
            print(text.encode("ascii", "backslashreplace").decode(), end="", file=getattr(sys, name), flush=True)
    except (OSError, ValueError):  # ValueError: the stream object is closed
        silence(name)


def flush() -> None:
    """Write what is still buffered. If the interpreter did it at exit and failed, the exit code would be 120."""
    for name in ("stdout", "stderr"):
        try:
            getattr(sys, name).flush()
        except (OSError, ValueError):
            silence(name)


def silence(name: str) -> None:
    """Send the stream's buffer and everything written later to the null device; `name` is "stdout" or "stderr"."""
    try:
        number = getattr(sys, name).fileno()
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, number)
        os.close(null)
    except (OSError, ValueError):  # a stream without a file, as in a notebook
        _discard(name)


def _discard(name: str) -> None:
    setattr(sys, name, open(os.devnull, "w", encoding="utf-8", errors="backslashreplace"))  # noqa: SIM115, PTH123


LOG_SECONDS = 30.0  # between progress lines in a log file, which has no bar


class Progress:
    """Progress of one epoch over `total` batches: a bar on a terminal, else a line every LOG_SECONDS.

    `start` is the number of batches that are already done. Use as a context manager.
    """

    def __init__(self, title: str, total: int, start: int = 0) -> None:
        self._title = title
        self._total = total
        from tqdm import tqdm  # imported late: --help and bad input end before a bar is needed

        self._bar = (
            tqdm(total=total, initial=start, desc=title, leave=False, unit="batch") if sys.stderr.isatty() else None
        )
        self._last_line = time.monotonic()

    def advance(self) -> None:
        """Count one more batch, queued on the device."""
        if self._bar is not None:
            self._bar.update()

    def show(self, done: int, loss: float, accuracy: float, images_per_second: float) -> None:
        """Show the number of batches done, the mean loss and top-1 accuracy (%) over them, and the speed."""
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


def say(line: str) -> None:
    """Print one line on standard output, at once. A closed stream raises nothing."""
    write("stdout", line)


def warn(line: str) -> None:
    """Print one line on standard error, prefixed with "warning: ". A closed stream raises nothing."""
    write("stderr", "warning: " + line.replace("\n", "\\n"))


def write_error(line: str) -> None:
    """Print one line on standard error as it is. A closed stream raises nothing."""
    write("stderr", line)
