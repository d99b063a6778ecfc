"""Standard output and standard error: any text can be written to them, and a reader who goes away stops no program."""

import io
import os
import sys
import time
from types import TracebackType

from utils.text import visible


def settle() -> None:
    """Let both streams escape what they cannot encode, and open the null device in place of a closed one.

    A file opened later would otherwise get the number of a closed stream, and with it what libraries print.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            _to_nowhere(name)
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def write(name: str, line: str) -> None:
    """Write `line` to sys.stdout or sys.stderr at once and in one piece, its control characters escaped.

    torchrun's processes are not buffered: those of others would come between a line and its end.
    """
    text = f"{visible(line)}\n"
    try:
        try:
            print(text, end="", file=getattr(sys, name), flush=True)
        except UnicodeEncodeError:  # of a stream that nobody has settled
            print(text.encode("ascii", "backslashreplace").decode(), end="", file=getattr(sys, name), flush=True)
    except (OSError, ValueError):  # ValueError: the stream object is closed
        silence(name)


def flush() -> None:
    """Write what is still buffered: the interpreter would do it at its exit, and end with 120 where it fails."""
    for name in ("stdout", "stderr"):
        try:
            getattr(sys, name).flush()
        except (OSError, ValueError):
            silence(name)


def silence(name: str) -> None:
    """Send what is buffered and all that follows to the null device."""
    try:
        number = getattr(sys, name).fileno()
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, number)
        os.close(null)
    except (OSError, ValueError):  # a stream without a file, as in a notebook
        _to_nowhere(name)


def _to_nowhere(name: str) -> None:
    setattr(sys, name, open(os.devnull, "w", encoding="utf-8", errors="backslashreplace"))  # noqa: SIM115, PTH123


QUIET_SECONDS = 30.0  # a log file gets a sign of life this often


class Progress:
    """One epoch's progress over `total` batches: `advance` with each, `show` whenever there are numbers to show."""

    def __init__(self, title: str, total: int, start: int = 0) -> None:
        self._title = title
        self._total = total
        from tqdm import tqdm  # not at the top: bad input ends before it is needed

        self._bar = (
            tqdm(total=total, initial=start, desc=title, leave=False, unit="batch") if sys.stderr.isatty() else None
        )
        self._spoke = time.monotonic()

    def advance(self) -> None:
        """One more batch has been given to the device."""
        if self._bar is not None:
            self._bar.update()

    def show(self, done: int, loss: float, accuracy: float, images_per_second: float) -> None:
        """Show that `done` batches are done, with the mean loss and top-1 accuracy (%) over them."""
        text = f"loss {loss:.4f}, acc@1 {accuracy:.2f}%, {images_per_second:,.0f} images/s"
        if self._bar is not None:
            self._bar.set_postfix_str(text)
        elif time.monotonic() - self._spoke >= QUIET_SECONDS:
            self._spoke = time.monotonic()
            say(f"{self._title}  {done}/{self._total} batches  {text}")

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()


def say(line: str) -> None:
    """One line to the person, at once, also into a file. A reader who has gone away does not stop a run."""
    write("stdout", line)


def warn(line: str) -> None:
    """One line about something the person should know, on standard error."""
    write("stderr", "warning: " + line.replace("\n", "\\n"))
