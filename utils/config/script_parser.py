"""Parser, argument types and exit codes for the command lines of the scripts."""

import argparse
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from utils import exit_codes, plugin_files
from utils.config.fields import NOUNS, fits, plain
from utils.config.run_option_groups import DEVICES
from utils.errors import UsageError
from utils.paths import expanded
from utils.plugin_files import DEBUG
from utils.text import shown

Main = Callable[[Sequence[str]], int]


def command(work: Callable[[Sequence[str]], int | None], interrupted: str = exit_codes.INTERRUPTED) -> Main:
    """Return the `main` function of a script.

    The function calls `work(argv)` and turns an exception into an exit code. A failure prints one line on standard
    error. Ctrl-C prints the line `interrupted`.
    """

    @functools.wraps(work)
    def main(argv: Sequence[str]) -> int:
        debug, words = DEBUG in argv, [word for word in argv if word != DEBUG]
        return exit_codes.run_program(lambda: work(words), interrupted=interrupted, debug=debug)

    return main


class Parser(argparse.ArgumentParser):
    """ArgumentParser that raises UsageError for bad input.

    It prints its description without re-wrapping it. The `add_*` methods add the arguments that several scripts share.
    """

    def __init__(self, description: str | None = None, **more: Any) -> None:
        super().__init__(description=description, formatter_class=argparse.RawDescriptionHelpFormatter, **more)

    def error(self, message: str) -> NoReturn:
        """Raise UsageError with `message`. argparse calls this method for bad input."""
        raise UsageError(f"{message}; see --help")

    def add_run(self, name: str = "run", text: str = "directory of a run, or a checkpoint", **more: Any) -> None:
        """Add the positional argument RUN, the path of a run directory or checkpoint, and --plugin.

        The plug-ins are executed when the command line is parsed.
        """
        self.add_argument(name, metavar="RUN", type=old_path, help=text, **more)
        plugin = "Python file or module of the run's plug-ins, which is executed first; repeatable"
        self.add_argument("--plugin", metavar="FILE", action="append", default=[], help=plugin)

    def parse_args(self, args: Sequence[str], namespace: None = None) -> argparse.Namespace:  # type: ignore[override]
        """Parse the command line and execute its plug-ins. Raises UsageError for bad input."""
        options = super().parse_args(args, namespace)
        plugin_files.load(getattr(options, "plugin", []))
        return options

    def add_out(self, default: str) -> None:
        """Add --out, the path of the file to write."""
        self.add_argument("--out", type=new_path, default=Path(default), help=f"file to write; default: {default}")

    def add_force(self) -> None:
        """Add --force, which allows the script to replace an existing file."""
        self.add_argument("--force", action="store_true", help="replace an existing file")

    def add_device(self, default: str) -> None:
        """Add --device, the device to compute on: auto, cpu or cuda."""
        text = f"device to compute on; default: {default}"
        self.add_argument("--device", choices=DEVICES, default=default, help=text)

    def add_repeat(self, default: int) -> None:
        """Add --repeat, the number of timings of each variant that a benchmark compares."""
        text = f"number of timings of each variant; default: {default}"
        self.add_argument("--repeat", type=count(10_000), default=default, help=text)

    def add_check(self) -> None:
        """Add --check, which makes the script compare its pages instead of writing them.

        The generated pages are compared with their sources.
        """
        self.add_argument("--check", action="store_true", help="write nothing; exit code 1 if a page is out of date")


def limited(kind: type, allowed: str) -> Callable[[str], Any]:
    """Return an argparse type for numbers within limits.

    `kind` is int or float. `allowed` has the limits, such as ">= 1 and <= 1000".
    """

    def take(text: str) -> Any:
        try:
            value = plain(kind, text)
            if fits(value, allowed):
                return value
        except ValueError:
            pass
        raise argparse.ArgumentTypeError(f"{shown(text)} given, {NOUNS[kind]} {allowed} expected")

    return take


def count(most: int, least: int = 1) -> Callable[[str], int]:
    """Return an argparse type for ints from `least` to `most`."""
    return limited(int, f">= {least} and <= {most}")


def new_path(text: str, *, existing: bool = False) -> Path:
    """Convert an argument to the path of a folder, or of a file to write.

    This is an argparse type. `~` and `$NAME` are expanded. With `existing`, a path that exists exactly as written is
    not expanded.
    """
    try:
        return Path(expanded(text, existing=existing))
    except UsageError as error:
        raise argparse.ArgumentTypeError(f"{shown(text)} given, but {error}") from error


def old_path(text: str) -> Path:
    """Convert an argument to the path of a file to read.

    This is an argparse type. `~` and `$NAME` are expanded.
    """
    return new_path(text, existing=True)
