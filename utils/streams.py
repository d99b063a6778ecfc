"""Standard output and standard error: any text can be written to them, and a reader who goes away stops no program."""

import io
import os
import sys

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
