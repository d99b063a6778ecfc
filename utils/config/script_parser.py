"""The command line of a script."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from utils.config.fields import NOUNS, fits, plain
from utils.errors import UsageError
from utils.paths import expanded
from utils.text import shown


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that says in one line what is wrong, as a UsageError, and shows its text as it is written."""

    def __init__(self, description: str | None = None, **more: Any) -> None:
        super().__init__(description=description, formatter_class=argparse.RawDescriptionHelpFormatter, **more)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; --help says more")


def limited(kind: type, allowed: str) -> Callable[[str], Any]:
    """Return the `type` of an argument that is an int or a float within limits such as ">= 1 and <= 1000"."""

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
    """Return the `type` of an argument that is an int from `least` to `most`."""
    return limited(int, f">= {least} and <= {most}")


def new_path(text: str) -> Path:
    """The `type` of an argument that is a path: of a file to be written, or of a folder."""
    return _path(text, existing=False)


def old_path(text: str) -> Path:
    """The `type` of an argument that is a path to be read."""
    return _path(text, existing=True)


def _path(text: str, *, existing: bool) -> Path:
    try:
        return Path(expanded(text, existing=existing))
    except UsageError as error:
        raise argparse.ArgumentTypeError(f"{shown(text)} given, but {error}") from error
